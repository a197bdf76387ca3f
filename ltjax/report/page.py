"""What a finished run leaves behind: `results.json`, and `report/` with a page and its pictures."""

import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata

import jax
import numpy as np

import ltjax
from ltjax import metrics
from ltjax.data import longtail, tally
from ltjax.distributed import processes
from ltjax.errors import writing
from ltjax.report import activation_maps as cams
from ltjax.report import baselines, examples, forecast, html, predictions, statistics, tables
from ltjax.report.names import printable, shown
from ltjax.workdir import log


def announce(dataset, stages, notes: list[str], *, starts: bool) -> None:
  """Prints what a run is about to train on, and what its user should know before it does, or `starts` to."""
  notes = [*notes, *(forecast.notes(stages) if starts else ())]
  print(printable("\n".join((f"data: {dataset.summary()}", *notes)), sys.stderr), file=sys.stderr, flush=True)


def of_run(spec, stages, results: Mapping, workdir: pathlib.Path, command: str, bad_images, changes=()) -> dict:
  """Writes the results and the report of a finished run; returns the content of `results.json`.

  Args:
    spec: the `config.spec.RunSpec`.
    stages: the `stage.Stage`s, in order.
    results: the `train.StageResult` of each, by name.
    workdir: of the run.
    command: how the run was started.
    bad_images: the images that were replaced by black ones, and the repeated reads.
    changes: (key, value, value of the config's file) of what the command line changes.
  """
  last, variables = stages[-1], results[stages[-1].name].variables

  def keep(found: dict) -> dict:
    with writing(workdir):
      log.write_durably(workdir / "results.json", json.dumps(found, indent=1) + "\n")
    return found

  found = processes.from_first(lambda: keep(
      summary(spec, stages, results, workdir, command, bad_images) | dict(changes=[list(each) for each in changes])))
  # Of several processes, each takes part in what follows: the test set may be spread over their devices.
  source = last
  if last.has_constant_features:  # they are in the work folder
    source = _attempt("the features", last.on_features, variables, workdir / "features", lambda _: False) or last
  seen = _attempt("the predictions of the test set", predictions.of_stage, source, variables)
  activations = _attempt("the activation maps", cams.of_stage, last, variables)
  simple = _attempt("the baselines", baselines.of_stage, source, variables) if spec.own_data else None

  def write():
    full = results | {last.name: with_matrix(results[last.name], seen)}
    more = None
    if isinstance(full[last.name].confusion, np.ndarray):
      more = _attempt("further measures", measures, full[last.name].confusion, last.class_counts,
                      last.dataset.class_names, seen)
    complete = keep(found | dict(baselines=simple or []) | (dict(metrics=more) if more else {}))
    with writing(workdir):
      logs = {each.name: [line for name in ("metrics.jsonl", "feature_norms.jsonl")
                          for line in log.read(workdir / each.name / name)] for each in stages}
      _attempt("the report", draw, spec.config.to_json(indent=1), stages, full, complete, seen, activations, logs,
               workdir / "report")
    return complete

  return processes.from_first(write)


def _attempt(what: str, function: Callable, *arguments):
  """What `function` gives; None and a line on stderr where it fails, because it may cost itself, never the results."""
  try:
    return function(*arguments)
  except OSError:
    raise
  except Exception as error:
    print(f"WARNING: {what} failed ({type(error).__name__}: {error})", file=sys.stderr)
    return None


def with_matrix(result, seen):
  """`result` with a confusion matrix: that of many classes comes from the predictions `seen`, on the host alone."""
  if seen is None or not isinstance(result.confusion, tally.Tally):
    return result
  return result._replace(confusion=tally.matrix(seen.labels, seen.predicted, len(result.confusion.total)))


def measures(confusion: np.ndarray, class_counts: np.ndarray, class_names: Sequence[str], seen) -> dict:
  """Measures beside the accuracies of `metrics.scores`, as JSON; those of probabilities only where `seen` is given."""
  tested, right = confusion.sum(axis=1), np.diagonal(confusion)
  there = np.flatnonzero(tested)
  accuracies = right[there] / tested[there]
  worst = int(there[np.argmin(accuracies)])
  found = dict(
      balanced_accuracy=metrics.balanced_accuracy(confusion), macro_f1=metrics.macro_f1(confusion),
      g_mean=metrics.geometric_mean(confusion), h_mean=metrics.harmonic_mean(confusion),
      worst_class=dict(label=worst, name=class_names[worst], accuracy=float(accuracies.min()),
                       others=int((accuracies == accuracies.min()).sum()) - 1),
      intervals={name: list(ends) for name, ends in statistics.intervals(right, tested, class_counts).items()})
  if seen is not None:
    from ltjax.report import figures

    auc = seen.auc[np.isfinite(seen.auc)]
    sampled = seen.negatives < len(seen.labels)
    found |= dict(
        auc=float(auc.mean()) if len(auc) else None,
        auc_of=f"against {seen.negatives:,} drawn test images" if sampled else "",
        ece={group: bins.error for group, bins in figures.reliabilities(seen, class_counts).items()})
  return found


def summary(spec, stages, results: Mapping, workdir: pathlib.Path, command: str, bad_images) -> dict:
  """The content of `results.json`; the arguments are those of `of_run`."""
  dataset, counts = stages[0].dataset, stages[0].class_counts
  rows = {each.name: _stage(each, workdir / each.name, results[each.name]) for each in stages}
  sizes = {group: len(classes) for group, classes in longtail.shot_groups(counts).items()}
  constants, by_stage = spec.dataset.constants, {each.name: iter(results[each.name].posthoc) for each in stages}
  return dict(
      final=rows[stages[-1].name]["test"], stages=rows, groups=sizes,
      balanced_accuracy=metrics.balanced_accuracy(results[stages[-1].name].confusion),
      posthoc=[next(by_stage[block.stage]) for block in spec.posthoc],  # in the order of the config
      parameters=results[stages[-1].name].parameters,
      data=dict(name=spec.dataset.name, imbalance=constants.get("imbalance", float(counts.max() / counts.min())),
                train_images=int(counts.sum()),
                test_images=len(dataset.test[1]), held_out_images=int(dataset.held_out_counts.sum()),
                held_out_counts=dataset.held_out_counts.tolist(), class_counts=counts.tolist(),
                class_names=list(dataset.class_names), selected_sha256=dataset.selection_sha256,
                mean=list(dataset.mean), std=list(dataset.std), image_shape=_image_shape(dataset),
                image_type=_image_type(dataset), made_by=dict(dataset.made_by),
                interpolation=stages[0].augmentation.interpolation, test_crops=spec.test_crops,
                bad_images=dict(sorted(bad_images.found.items()))),
      counts=dict(
          skipped_steps=sum(row["skipped_steps"] for row in rows.values()),
          checkpoint_fallbacks=log.Events(workdir / "events.jsonl").counts()["checkpoint_fallbacks"],
          replaced_images=len(bad_images.found), retried_reads=bad_images.retried,
          dropped_examples=sum(result.dropped for result in results.values())),
      augmentation={each.name: [dict(call.constants, name=call.name) for call in each.spec.augment]
                    for each in stages},
      preset=json.loads(spec.config.preset.to_json()) if spec.config.get("preset") else None,
      seed=spec.settings.seed, precision=spec.config.precision, command=command, commit=commit(), hardware=hardware(),
      versions=versions())


def _image_shape(dataset) -> list[int]:
  """[h w c] of arrays; empty for files, which have many sizes."""
  return [] if dataset.holds_files else list(dataset.train[0].shape[1:])


def _image_type(dataset) -> str:
  """The type of the arrays, "uint8" for files."""
  return "uint8" if dataset.holds_files else dataset.train[0].dtype.name


def draw(config: str, stages, results: Mapping, found: dict, seen, activations, logs: Mapping[str, list[dict]],
         folder: pathlib.Path) -> None:
  """Writes tables, figures and pages to `folder`; what cannot be drawn costs itself and a line on stderr.

  `config` is shown as it is; the other arguments are those of `figures.of_run`, and `found` are the results.
  """
  from ltjax.report import figures  # Matplotlib takes a third of the time that a run takes to start

  last = stages[-1]
  folder.mkdir(exist_ok=True)
  for old in (*folder.glob("*.png"), *folder.glob("*.svg")):  # of an earlier report, which may not be drawn again
    old.unlink()
  counts, names, confusion = last.class_counts, last.dataset.class_names, results[last.name].confusion
  if isinstance(confusion, tally.Tally):  # many classes, and no predictions that a matrix could be made of
    (folder / "README.md").write_text(_page(last.name, found, []), encoding="utf-8")
    return
  classes = tables.of_classes(confusion, counts, names)
  tables.write_classes(classes, folder / "classes.csv")
  if seen is not None:
    images = last.dataset.test[0]
    tables.write_predictions(seen, [examples.image_name(images, place) for place in range(len(seen.labels))], names,
                             folder / "predictions.csv")
  if norms := tables.of_feature_norms(logs):
    tables.write(folder / "feature_norms.csv", tables.NORM_COLUMNS, norms)
  drawn = figures.draw(figures.of_run(stages, results, logs, seen, activations), names, folder)
  text = _page(last.name, found, drawn)
  if (plan := folder.parent / "plan.md").is_file():
    text += f"\n#{plan.read_text(encoding='utf-8')}"  # its heading, one level down
  (folder / "README.md").write_text(text, encoding="utf-8")
  shown_images = seen and _attempt("the images of the page", examples.of_stage, last, confusion, seen)
  text = _attempt("the page", html.of_run, found, config, drawn, folder, classes, shown_images)
  if text:
    (folder / "index.html").write_text(text, encoding="utf-8", errors="backslashreplace")


def _stage(stage, folder: pathlib.Path, result) -> dict:
  lines, counts = log.read(folder / "metrics.jsonl"), stage.class_counts
  best = max((line for line in lines if "test" in line), key=lambda line: line["test"]["overall"])
  held_out = [line for line in lines if "held_out" in line]
  chosen = max(held_out, key=lambda line: line["held_out"], default=None)
  timing = log.read(folder / "timing.jsonl")
  seconds, steps = sum(line["seconds"] for line in timing), sum(line["step"] - line["start"] for line in timing)
  averaged = {}
  if result.averaged_confusion is not None:
    averaged["test_of_average"] = metrics.scores(result.averaged_confusion, counts)
  return dict(
      test=metrics.scores(result.confusion, counts), per_class=metrics.measured(result.confusion), **averaged,
      # Named so that nobody takes it for the result: a number chosen on the test set is not the result.
      best_selected_on_test=dict(epoch=best["epoch"], overall=best["test"]["overall"]),
      held_out=held_out[-1]["held_out"] if held_out else None,  # after the last step
      learning_rate=result.learning_rate,
      best_on_held_out=chosen and dict(step=chosen["step"], balanced_accuracy=chosen["held_out"]),
      skipped_steps=sum("skipped" in line for line in lines),
      epochs=stage.spec.epochs, batch_size=stage.spec.batch_size, steps=lines[-1]["step"], seconds=seconds,
      images_per_second=steps * stage.spec.batch_size / seconds if seconds else 0.0)  # 0: the log of times was lost


def counts(results: dict) -> list[str]:
  """One line of what happened that nobody asked for, also where nothing did."""
  return ["counted: " + ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in results["counts"].items())]


def bad_images(results: dict) -> list[str]:
  """Lines that count the images that were replaced and name the first few; none where there were none."""
  found = results["data"]["bad_images"]
  were = "1 image could not be decoded and was replaced by a black one" if len(found) == 1 else (
      f"{len(found)} images could not be decoded and were replaced by black ones")
  heading = f"{were}; all are in results.json:"
  lines = [f"  {shown(name, 'terminal')}: {reason}" for name, reason in list(found.items())[:5]]
  return [heading, *lines] if found else []


def closing(results: dict) -> str:
  """What a run prints at its end: the table, what did worse than something simpler, what was counted."""
  return "\n".join(("", table(results), *baselines.warn(results), *counts(results), *bad_images(results), ""))


def table(results: dict) -> str:
  """The accuracies of every stage and post-hoc method in per cent, as text; a dash is for a group without classes."""
  sizes, rows = results["groups"], html.model_rows(results)
  header = [f"{group} ({sizes[group]})" for group in longtail.GROUPS]
  width = max(len(text) for text in ("test accuracy, %", *(name for name, _ in rows)))
  lines = [f"{'test accuracy, %':{width}}  {'overall':>8}" + "".join(f"  {text:>12}" for text in header)]
  for name, test in rows:
    cells = [f"{'-':>12}" if test[group] is None else f"{100 * test[group]:12.2f}" for group in longtail.GROUPS]
    lines.append(f"{name:{width}}  {100 * test['overall']:8.2f}  " + "  ".join(cells))
  return "\n".join(lines)


def _posthoc_line(found: dict) -> str:
  """How the hyper-parameters of a post-hoc method came about."""
  text, choice = f"- `{html.posthoc_name(found)}`: ", found["selection"]
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


def _page(last_stage: str, results: dict, drawn) -> str:
  data, last = results["data"], results["stages"][last_stage]
  rows = "\n".join(
      f"| {shown(name, 'markdown')} | {count} | {'-' if accuracy is None else f'{100 * accuracy:.1f}'} |"
      for name, count, accuracy in zip(data["class_names"], data["class_counts"], last["per_class"], strict=True))
  stages = "\n".join(
      f"- `{name}`: {'1 epoch' if stage['epochs'] == 1 else str(stage['epochs']) + ' epochs'} "
      f"of batch {stage['batch_size']}, {stage['seconds']:.0f} s, "
      f"{stage['images_per_second']:.0f} images/s; best epoch {stage['best_selected_on_test']['epoch']:.4g} with "
      f"{100 * stage['best_selected_on_test']['overall']:.2f} (selected on the test set, not the result)"
      for name, stage in results["stages"].items())
  stages = "\n".join((stages, *map(_posthoc_line, results["posthoc"])))
  missing = sum(accuracy is None for accuracy in last["per_class"])
  untested = f"\n- {missing} classes have no test image: no accuracy (-), and no part in a mean" if missing else ""
  held_out = f", {data['held_out_images']:,} held-out" if data["held_out_images"] else ""
  warned = "".join(f"\n- {line}" for line in baselines.warn(results))
  pictures = "\n".join(f"![{each.title}]({each.name}.png)\n\n{each.text}\n" for each in drawn)
  return f"""# {shown(data['name'], 'markdown')}, imbalance {data['imbalance']:g}

```
{table(results)}
```

Classes by training images: many > 100, medium 20 to 100, few < 20; the numbers of classes stand in brackets. The
result is the last epoch's.

{stages}
- {counts(results)[0]}{untested}{warned}

{pictures}
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
