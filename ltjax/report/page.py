"""What a finished run leaves behind: `results.json`, and `report/` with a page and its pictures."""

import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata

import jax
import numpy as np

import ltjax
from ltjax import metrics
from ltjax.data import longtail, tally
from ltjax.distributed import processes
from ltjax.errors import writing
from ltjax.report import activation_maps as cams
from ltjax.report import plots
from ltjax.report.names import one_warning, printable, shown
from ltjax.workdir import log

GROUPS = ("many", "medium", "few")
MATRIX = "![confusion matrix](confusion_matrix.png)"
NO_MATRIX = f"No confusion matrix: it was not drawn, or there are more than {tally.LARGEST_MATRIX:,} classes."
ACTIVATIONS = """
![class activation maps](activation_maps.png)

Where the last stage's model sees the class of an image, for a test image of each of the smallest classes.
"""


def announce(dataset, notes: list[str]) -> None:
  """Prints what a run is about to train on, and what its user should know before it does."""
  print(printable("\n".join((f"data: {dataset.summary()}", *notes)), sys.stderr), file=sys.stderr)


def of_run(spec, stages, results: Mapping, workdir: pathlib.Path, command: str, bad_images) -> dict:
  """Writes the results and the report of a finished run; returns the content of `results.json`.

  Args:
    spec: the `config.spec.RunSpec`.
    stages: the `stage.Stage`s, in order.
    results: the `train.StageResult` of each, by name.
    workdir: of the run.
    command: how the run was started.
    bad_images: the images that were replaced by black ones, and the repeated reads.
  """
  last, activations = stages[-1], None
  try:
    activations = cams.of_stage(last, results[last.name].variables)
  except Exception as error:  # a picture may cost itself, never the results
    print(f"WARNING: the activation maps failed ({type(error).__name__}: {error})", file=sys.stderr)

  def write():
    with writing(workdir):
      found = summary(spec, stages, results, workdir, command, bad_images)
      log.write_durably(workdir / "results.json", json.dumps(found, indent=1) + "\n")
      draw(spec, stages, results, found, activations, workdir)
      return found

  return processes.from_first(write)


def summary(spec, stages, results: Mapping, workdir: pathlib.Path, command: str, bad_images) -> dict:
  """The content of `results.json`; the arguments are those of `of_run`."""
  dataset, counts = stages[0].dataset, stages[0].class_counts
  rows = {each.name: _stage(each, workdir / each.name, results[each.name]) for each in stages}
  sizes = {group: len(classes) for group, classes in longtail.shot_groups(counts).items()}
  constants, by_stage = spec.dataset.constants, {each.name: iter(results[each.name].posthoc) for each in stages}
  return dict(
      final=rows[stages[-1].name]["test"], stages=rows, groups=sizes,
      posthoc=[next(by_stage[block.stage]) for block in spec.posthoc],  # in the order of the config
      parameters=results[stages[-1].name].parameters,
      data=dict(name=spec.dataset.name, imbalance=constants.get("imbalance", float(counts.max() / counts.min())),
                train_images=int(counts.sum()),
                test_images=len(dataset.test[1]), held_out_images=int(dataset.held_out_counts.sum()),
                held_out_counts=dataset.held_out_counts.tolist(), class_counts=counts.tolist(),
                class_names=list(dataset.class_names), selected_sha256=dataset.selection_sha256,
                mean=list(dataset.mean), std=list(dataset.std), image_shape=_image_shape(dataset),
                bad_images=dict(sorted(bad_images.found.items()))),
      counts=dict(
          skipped_steps=sum(row["skipped_steps"] for row in rows.values()),
          checkpoint_fallbacks=log.Events(workdir / "events.jsonl").counts()["checkpoint_fallbacks"],
          replaced_images=len(bad_images.found), retried_reads=bad_images.retried,
          dropped_examples=sum(result.dropped for result in results.values())),
      augmentation={each.name: [dict(call.constants, name=call.name) for call in each.spec.augment]
                    for each in stages},
      seed=spec.settings.seed, precision=spec.config.precision, command=command, commit=commit(), hardware=hardware(),
      versions=versions())


def _image_shape(dataset) -> list[int]:
  """[h w c] of arrays; empty for files, which have many sizes."""
  images = dataset.train[0]
  return list(images.shape[1:]) if isinstance(images, np.ndarray) else []


def draw(spec, stages, results: Mapping, found: dict, activations, workdir: pathlib.Path) -> None:
  """Writes `report/`; a picture that fails costs itself and a line on stderr."""
  folder, counts = workdir / "report", stages[0].class_counts
  names = tuple(shown(name, "plot") for name in stages[0].dataset.class_names)
  folder.mkdir(exist_ok=True)
  present = tuple(group for group in GROUPS if found["groups"][group])
  confusions = {each.name: results[each.name].confusion for each in stages}
  pictures = {
      "training_curves": lambda path: plots.training_curves(
          {each.name: log.read(workdir / each.name / "metrics.jsonl") for each in stages}, present, path),
      "accuracy_by_class_size": lambda path: plots.accuracy_by_class_size(confusions, counts, names, path)}
  if not isinstance(matrix := confusions[stages[-1].name], tally.Tally):
    pictures["confusion_matrix"] = lambda path: plots.confusion_matrix(matrix, counts, names, path)
  if activations:
    pictures["activation_maps"] = lambda path: plots.activation_maps(activations, names, path)
  drawn = []
  with one_warning(names) as warning:
    if warning:
      print(warning, file=sys.stderr)
    for name, picture in pictures.items():
      try:
        picture(folder / f"{name}.png")
        drawn.append(name)
      except OSError:
        raise
      except Exception as error:  # a font, a name, a figure too large: nothing that may cost the results
        print(f"WARNING: {folder / name}.png could not be drawn ({type(error).__name__}: {error})", file=sys.stderr)
  page = _page(stages[-1].name, found, drawn)
  if (plan := workdir / "plan.md").is_file():
    page += f"\n#{plan.read_text(encoding='utf-8')}"  # its heading, one level down
  (folder / "README.md").write_text(page, encoding="utf-8")


def _stage(stage, folder: pathlib.Path, result) -> dict:
  lines, counts = log.read(folder / "metrics.jsonl"), stage.class_counts
  best = max((line for line in lines if "test" in line), key=lambda line: line["test"]["overall"])
  held_out = max((line for line in lines if "held_out" in line), key=lambda line: line["held_out"], default=None)
  timing = log.read(folder / "timing.jsonl")
  seconds, steps = sum(line["seconds"] for line in timing), sum(line["step"] - line["start"] for line in timing)
  averaged = {}
  if result.averaged_confusion is not None:
    averaged["test_of_average"] = metrics.scores(result.averaged_confusion, counts)
  return dict(
      test=metrics.scores(result.confusion, counts), per_class=metrics.measured(result.confusion), **averaged,
      # Named so that nobody takes it for the result: a number chosen on the test set is not the result.
      best_selected_on_test=dict(epoch=best["epoch"], overall=best["test"]["overall"]),
      best_on_held_out=held_out and dict(step=held_out["step"], balanced_accuracy=held_out["held_out"]),
      skipped_steps=sum("skipped" in line for line in lines),
      epochs=stage.spec.epochs, batch_size=stage.spec.batch_size, steps=lines[-1]["step"], seconds=seconds,
      images_per_second=steps * stage.spec.batch_size / seconds if seconds else 0.0)  # 0: the log of times was lost


def counts(results: dict) -> list[str]:
  """One line of what happened that nobody asked for, also where nothing did."""
  return ["counted: " + ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in results["counts"].items())]


def bad_images(results: dict) -> list[str]:
  """Lines that count the images that were replaced and name the first few; none where there were none."""
  found = results["data"]["bad_images"]
  heading = f"{len(found)} images could not be decoded and were replaced by black ones; all are in results.json:"
  lines = [f"  {shown(name, 'terminal')}: {reason}" for name, reason in list(found.items())[:5]]
  return [heading, *lines] if found else []


def table(results: dict) -> str:
  """The accuracies of every stage and post-hoc method in per cent, as text; a dash is for a group without classes."""
  sizes, rows = results["groups"], [(name, stage["test"]) for name, stage in results["stages"].items()]
  rows += [(_posthoc_name(found), found["test"]) for found in results.get("posthoc", ())]
  header = [f"{group} ({sizes[group]})" for group in GROUPS]
  width = max(len(text) for text in ("test accuracy, %", *(name for name, _ in rows)))
  lines = [f"{'test accuracy, %':{width}}  {'overall':>8}" + "".join(f"  {text:>12}" for text in header)]
  for name, test in rows:
    cells = [f"{'-':>12}" if test[group] is None else f"{100 * test[group]:12.2f}" for group in GROUPS]
    lines.append(f"{name:{width}}  {100 * test['overall']:8.2f}  " + "  ".join(cells))
  return "\n".join(lines)


def _posthoc_name(found: dict) -> str:
  """As "classifier + tau_normalize(tau=0.7)"."""
  values = ", ".join(f"{key}={value}" for key, value in found["hyper_parameters"].items())
  return f"{found['stage']} + {found['name']}({values})"


def _posthoc_line(found: dict) -> str:
  """How the hyper-parameters of a post-hoc method came about."""
  text, choice = f"- `{_posthoc_name(found)}`: ", found["selection"]
  if choice is None:
    return text + "as the config says"
  # As many as one reads; results.json has all.
  best = sorted(choice["candidates"], key=lambda candidate: -candidate["balanced_accuracy"])[:5]
  tried = ", ".join(
      " ".join(f"{key}={value}" for key, value in candidate.items() if key != "balanced_accuracy")
      + f" {100 * candidate['balanced_accuracy']:.2f}" for candidate in best)
  return (f"{text}chosen among {len(choice['candidates'])} on {choice['images']} {choice['chosen_on']} of "
          f"{choice['classes']} classes, by the mean accuracy of the classes: {tried}"
          f"{', ...' if len(choice['candidates']) > len(best) else ''}")


def _page(last_stage: str, results: dict, drawn: list[str]) -> str:
  data, last = results["data"], results["stages"][last_stage]
  rows = "\n".join(
      f"| {shown(name, 'markdown')} | {count} | {'-' if accuracy is None else f'{100 * accuracy:.1f}'} |"
      for name, count, accuracy in zip(data["class_names"], data["class_counts"], last["per_class"], strict=True))
  stages = "\n".join(
      f"- `{name}`: {stage['epochs']} epochs of batch {stage['batch_size']}, {stage['seconds']:.0f} s, "
      f"{stage['images_per_second']:.0f} images/s; best epoch {stage['best_selected_on_test']['epoch']:.4g} with "
      f"{100 * stage['best_selected_on_test']['overall']:.2f} (selected on the test set, not the result)"
      for name, stage in results["stages"].items())
  stages = "\n".join((stages, *map(_posthoc_line, results["posthoc"])))
  missing = sum(accuracy is None for accuracy in last["per_class"])
  untested = f"\n- {missing} classes have no test image: no accuracy (-), and no part in a mean" if missing else ""
  held_out = f", {data['held_out_images']:,} held-out" if data["held_out_images"] else ""
  return f"""# {shown(data['name'], 'markdown')}, imbalance {data['imbalance']:g}

```
{table(results)}
```

Classes by training images: many > 100, medium 20 to 100, few < 20; the numbers of classes stand in brackets. The
result is the last epoch's.

{stages}
- {counts(results)[0]}{untested}

![training curves](training_curves.png)

![accuracy of each class against its size](accuracy_by_class_size.png)

{MATRIX if "confusion_matrix" in drawn else NO_MATRIX}
{ACTIVATIONS if "activation_maps" in drawn else ""}
| class | training images | test accuracy, % |
| --- | ---: | ---: |
{rows}

{data['train_images']:,} training{held_out} and {data['test_images']:,} test images; SHA-256 of the selected indices
`{data['selected_sha256']}`.
{results['parameters']:,} parameters, seed {results['seed']}, {results['precision']}, {results['hardware']['device']},
commit {results['commit']}.
"""


def commit() -> str:
  """The git commit of the code that runs, with '+changes' where files differ from it; 'unknown' outside a checkout."""
  folder = pathlib.Path(ltjax.__file__).parent
  git = ["git", "-C", str(folder)]
  try:
    # Files git does not know (an installed copy, say) must not borrow the commit of the repository around them.
    subprocess.run([*git, "ls-files", "--error-unmatch", ltjax.__file__], check=True, capture_output=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], check=True, capture_output=True, text=True).stdout
  except (OSError, subprocess.CalledProcessError):
    return "unknown"
  return head + ("+changes" if changed else "")


def hardware() -> dict:
  """The devices and the host."""
  device = jax.devices()[0]
  cpu = platform.processor() or platform.machine()
  cpuinfo = pathlib.Path("/proc/cpuinfo")
  if cpuinfo.is_file():
    cpu = next((line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line), cpu)
  kind = cpu if device.platform == "cpu" else device.device_kind
  return dict(device=f"{jax.device_count()} x {kind} ({device.platform})", host=f"{os.cpu_count()} cores, {cpu}",
              processes=jax.process_count())


def versions() -> dict[str, str]:
  """Versions of Python and of the libraries that numbers depend on."""
  names = ("ltjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
  found = dict(python=platform.python_version(), ltjax=ltjax.__version__)
  for name in names[1:]:
    found[name] = metadata.version(name)
  return found
