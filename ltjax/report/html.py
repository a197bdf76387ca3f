"""Pages as single HTML files: everything is inside, nothing is fetched, and names are never markup."""

import base64
import functools
import pathlib
import re
import shlex
from collections.abc import Mapping, Sequence

import jinja2
from PIL import Image

import ltjax
from ltjax.report import baselines
from ltjax.report.names import shown
from ltjax.report.tables import CLASS_COLUMNS, Column


def render(template: str, **values) -> str:
  """A page from one of the templates in the package; everything that `values` hold is escaped."""
  return _environment().get_template(template).render(version=ltjax.__version__, **values)


@functools.cache
def _environment() -> jinja2.Environment:
  made = jinja2.Environment(
      loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent / "templates"), undefined=jinja2.StrictUndefined,
      autoescape=lambda name: name is not None and name.endswith(".html"), trim_blocks=True, lstrip_blocks=True)
  made.globals.update(data=data, percent=Column("", "", "percent").text)
  return made


def data(columns: Sequence[Column], rows: Sequence[Mapping]) -> dict:
  """A table as `table.js` reads it; numbers are rounded to what can be seen."""
  return dict(
      columns=[dict(key=column.key, kind=column.kind, wide=column.wide, bar=column.key == "accuracy")
               for column in columns],
      rows=[[round(value, 6) if isinstance(value := row[column.key], float) else value for column in columns]
            for row in rows])


def picture(path: pathlib.Path, **words) -> dict:
  """A figure for a template: a PNG as a data address, its size on the page, and the `words` about it."""
  with Image.open(path) as image:
    width, height = image.size
  source = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
  return dict(source=source, width=round(width / 1.25), height=round(height / 1.25), **words)


def of_run(results: Mapping, config: str, drawn, folder: pathlib.Path, classes: list[dict], examples) -> str:
  """The page of a run.

  Args:
    results: the content of `results.json`.
    config: the config as JSON.
    drawn: the `figures.Picture`s that lie in `folder`.
    folder: of the page.
    classes: the rows of `tables.of_classes`.
    examples: an `examples.Examples`, or None.
  """
  data, last = results["data"], list(results["stages"])[-1]
  pictures = [picture(folder / f"{each.name}.png", name=each.name, title=each.title, text=each.text,
                      photos=each.photos) for each in drawn]
  command, config_file = _command(results["command"])
  changes = [[shown(text, "json") for text in change] for change in results.get("changes", ())]
  held_out = f"{data['held_out_images']:,} held-out, " if data["held_out_images"] else ""
  return render(
      "run.html", title=f"{shown(str(data['name']), 'json')}, imbalance {data['imbalance']:.4g}"
      + (f": {results['evaluated_on']}" if "evaluated_on" in results else ""), last=last, priors=results.get("priors"),
      subtitle=f"{len(data['class_counts']):,} classes; {data['train_images']:,} training, {held_out}"
      f"{data['test_images']:,} {'evaluated' if 'evaluated_on' in results else 'test'} images",
      images=results.get("evaluated_on", "the test set"), tiles=tiles(results), remarks=_remarks(results),
      rows=model_rows(results), groups=results["groups"], pictures=pictures, columns=CLASS_COLUMNS, classes=classes,
      examples=examples, command=command, config_file=config_file, changes=changes, config=config,
      stages=results["stages"], facts=_facts(results), happened=results["counts"], commit=results["commit"],
      bad_images=[(shown(name, "json"), reason) for name, reason in data["bad_images"].items()][:100])


def tiles(results: Mapping) -> list[dict]:
  """The headline numbers of the last stage: label, value, and a note such as the confidence interval."""
  test, found = results["final"], results.get("metrics", {})
  intervals = found.get("intervals", {})

  def tile(label: str, value: float | None, key: str = "", note: str = "") -> dict:
    if key in intervals:
      low, high = intervals[key]
      note = f"95 %: {100 * low:.1f} to {100 * high:.1f}"
    return dict(label=label, value="–" if value is None else f"{100 * value:.2f} %", note=note)

  made = [tile("overall accuracy", test["overall"], "overall")]
  made += [tile(f"{group}, {size:,} class{'es' if size != 1 else ''}", test[group], group)
           for group, size in results["groups"].items() if size]
  if found:
    worst, others = found["worst_class"], found["worst_class"].get("others", 0)  # older results have none
    more = f" and {others:,} more" if others else ""
    made += [tile("balanced accuracy", found["balanced_accuracy"], "balanced"), tile("macro-F1", found["macro_f1"]),
             tile("G-mean", found["g_mean"]), tile("H-mean", found["h_mean"]),
             tile("worst class", worst["accuracy"], note=f"{shown(worst['name'], 'json')}{more}")]
  if "ece" in found:
    notes = [f"{group} {100 * value:.1f}" for group, value in found["ece"].items() if group != "overall"]
    made += [tile("macro one-vs-rest AUC", found["auc"], note=found["auc_of"]),
             tile("calibration error", found["ece"]["overall"], note=", ".join(notes))]
  return made


def model_rows(results: Mapping) -> list[tuple[str, Mapping]]:
  """(name, accuracies by group) of every stage, post-hoc method and baseline."""
  return [*((name, stage["test"]) for name, stage in results["stages"].items()),
          *((posthoc_name(found), found["test"]) for found in results.get("posthoc", ())),
          *((f"baseline: {found['name']}", found["test"]) for found in results.get("baselines", ()))]


def posthoc_name(found: Mapping) -> str:
  """As "classifier + tau_normalize(tau=0.7)"."""
  values = ", ".join(f"{key}={value}" for key, value in found["hyper_parameters"].items())
  return f"{found['stage']} + {found['name']}({values})"


def _remarks(results: Mapping) -> list[str]:
  """Sentences about the numbers, as far as they apply."""
  found, remarks = results.get("metrics", {}), [f"{line}." for line in baselines.warn(results)]
  missing = sum(value is None for value in list(results["stages"].values())[-1]["per_class"])
  if missing:
    remarks.append(f"{'1 class has' if missing == 1 else f'{missing:,} classes have'} no test image: no accuracy, and "
                   "no part in a mean.")
  if found.get("intervals"):
    remarks.append("Intervals are 95 % bootstrap intervals over test images, not over training runs.")
  if found.get("g_mean") == 0:
    remarks.append("G-mean and H-mean are 0 where a class is never right.")
  return remarks


def _facts(results: Mapping) -> list[tuple[str, str]]:
  data, hardware = results["data"], results["hardware"]
  return [("parameters", f"{results['parameters']:,}"), ("seed", str(results["seed"])),
          ("precision", results["precision"]), ("devices", hardware["device"]), ("host", hardware["host"]),
          ("commit", results["commit"]),
          ("versions", ", ".join(f"{name} {version}" for name, version in results["versions"].items())),
          ("selected images", f"SHA-256 {data['selected_sha256']}"),
          *((f"augmentation, {stage}", ", ".join(each["name"] for each in operations) or "none")
            for stage, operations in results["augmentation"].items())]


def _command(command: str) -> tuple[str, str]:
  """(the command on one line, the config file)."""
  try:
    words = shlex.split(command)
  except ValueError:
    words = []
  files = [match[1] for word in words if (match := re.fullmatch(r"--?config=(.*)", word, re.DOTALL))]
  return shown(command, "json"), shown(files[0], "json") if files else ""
