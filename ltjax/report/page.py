"""What a finished run leaves behind: `results.json`, and `report/` with a page and its pictures."""

import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata

import jax
import numpy as np

import ltjax
from ltjax import metrics
from ltjax.data import longtail
from ltjax.report import activation_maps as cams
from ltjax.report import plots
from ltjax.workdir import log as journal

GROUPS = ("many", "medium", "few")
ACTIVATIONS = """
![class activation maps](activation_maps.png)

Where the last stage's model sees the class of an image, for a test image of each of the smallest classes.
"""


def write(config, dataset, workdir: pathlib.Path, confusions: dict[str, np.ndarray], parameters: int,
          command: str = "", posthoc: Sequence[dict] = (), activations: cams.Activations | None = None,
          bad_images: Mapping[str, str] | None = None, counted: Mapping[str, int] | None = None) -> dict:
  """Writes the results and the report of a finished run and returns the content of `results.json`.

  `confusions` holds every stage's confusion matrix on the test set, in the order of the stages; `command` is how the
  run was started; `posthoc` is what `selection.run` found, `activations` what `cams.of_run` found; `bad_images` are the
  images that were replaced by black ones, each with the reason; `counted` is what else happened that nobody asked for.
  """
  counts = dataset.class_counts
  stages = {name: _stage(config[name], workdir / name, confusion, counts) for name, confusion in confusions.items()}
  sizes = {group: len(classes) for group, classes in longtail.shot_groups(counts).items()}
  results = dict(
      final=stages[config.stages[-1]]["test"], stages=stages, posthoc=list(posthoc), groups=sizes,
      parameters=parameters,
      data=dict(name=config.dataset.name, imbalance=config.dataset.get("imbalance", float(counts.max() / counts.min())),
                train_images=int(counts.sum()),
                test_images=len(dataset.test[1]), held_out_images=int(dataset.held_out_counts.sum()),
                held_out_counts=dataset.held_out_counts.tolist(), class_counts=counts.tolist(),
                class_names=list(dataset.class_names), selected_sha256=dataset.selection_sha256,
                bad_images=dict(sorted((bad_images or {}).items()))),
      counts=dict(
          skipped_steps=sum(stage["skipped_steps"] for stage in stages.values()),
          checkpoint_fallbacks=journal.Events(workdir / "events.jsonl").counts()["checkpoint_fallbacks"],
          replaced_images=len(bad_images or {}), **(counted or {})),
      augmentation=dict(config.augment.to_dict(), mixup={name: config[name].mixup for name in config.stages}),
      seed=config.seed, precision=config.precision, command=command, commit=commit(), hardware=hardware(),
      versions=versions())
  folder = workdir / "report"
  folder.mkdir(exist_ok=True)
  present = tuple(group for group in GROUPS if sizes[group])
  plots.training_curves({name: journal.read(workdir / name / "metrics.jsonl") for name in confusions}, present,
                        folder / "training_curves.png")
  plots.accuracy_by_class_size(confusions, counts, dataset.class_names, folder / "accuracy_by_class_size.png")
  plots.confusion_matrix(confusions[config.stages[-1]], counts, dataset.class_names, folder / "confusion_matrix.png")
  if activations:
    plots.activation_maps(activations, dataset.class_names, folder / "activation_maps.png")
  (folder / "README.md").write_text(_page(config, results, pictured=activations is not None))
  partial = workdir / "results.tmp"
  partial.write_text(json.dumps(results, indent=1) + "\n")
  partial.replace(workdir / "results.json")
  return results


def _stage(block, folder: pathlib.Path, confusion: np.ndarray, counts: np.ndarray) -> dict:
  lines = journal.read(folder / "metrics.jsonl")
  best = max((line for line in lines if "test" in line), key=lambda line: line["test"]["overall"])
  held_out = max((line for line in lines if "held_out" in line), key=lambda line: line["held_out"], default=None)
  timing = journal.read(folder / "timing.jsonl")
  seconds, steps = sum(line["seconds"] for line in timing), sum(line["step"] - line["start"] for line in timing)
  return dict(
      test=metrics.group_accuracy(confusion, counts), per_class=metrics.per_class_accuracy(confusion).tolist(),
      # Named for what it is: a number chosen on the test set is not the result.
      best_selected_on_test=dict(epoch=best["epoch"], overall=best["test"]["overall"]),
      best_on_held_out=held_out and dict(step=held_out["step"], balanced_accuracy=held_out["held_out"]),
      skipped_steps=sum("skipped" in line for line in lines),
      epochs=block.epochs, batch_size=block.batch_size, steps=lines[-1]["step"], seconds=seconds,
      images_per_second=steps * block.batch_size / seconds if seconds else 0.0)  # a log of times that was lost


def counts(results: dict) -> list[str]:
  """One line of what happened that nobody asked for, also where nothing did."""
  return ["counted: " + ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in results["counts"].items())]


def bad_images(results: dict) -> list[str]:
  """Lines that count the images that were replaced and name the first few; none where there were none."""
  found = results["data"]["bad_images"]
  heading = f"{len(found)} images could not be decoded and were replaced by black ones; all are in results.json:"
  return [heading, *(f"  {name}: {reason}" for name, reason in list(found.items())[:5])] if found else []


def table(results: dict) -> str:
  """The accuracies of every stage and post-hoc method in per cent, as text; a dash is for a group without classes."""
  sizes, rows = results["groups"], [(name, stage["test"]) for name, stage in results["stages"].items()]
  rows += [(_posthoc_name(found), found["test"]) for found in results.get("posthoc", ())]
  header = [f"{group} ({sizes[group]})" for group in GROUPS]
  width = max(len(text) for text in ("test accuracy, %", *(name for name, _ in rows)))
  lines = [f"{'test accuracy, %':{width}}  {'overall':>8}" + "".join(f"  {text:>12}" for text in header)]
  for name, test in rows:
    cells = [f"{100 * test[group]:12.2f}" if sizes[group] else f"{'-':>12}" for group in GROUPS]
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


def _page(config, results: dict, pictured: bool) -> str:
  data, last = results["data"], results["stages"][config.stages[-1]]
  rows = "\n".join(
      f"| {name} | {count} | {100 * accuracy:.1f} |"
      for name, count, accuracy in zip(data["class_names"], data["class_counts"], last["per_class"], strict=True))
  stages = "\n".join(
      f"- `{name}`: {stage['epochs']} epochs of batch {stage['batch_size']}, {stage['seconds']:.0f} s, "
      f"{stage['images_per_second']:.0f} images/s; best epoch {stage['best_selected_on_test']['epoch']:.4g} with "
      f"{100 * stage['best_selected_on_test']['overall']:.2f} (selected on the test set, not the result)"
      for name, stage in results["stages"].items())
  stages = "\n".join((stages, *map(_posthoc_line, results["posthoc"])))
  held_out = f", {data['held_out_images']:,} held-out" if data["held_out_images"] else ""
  return f"""# {data['name']}, imbalance {data['imbalance']:g}

```
{table(results)}
```

Classes by training images: many > 100, medium 20 to 100, few < 20; the numbers of classes stand in brackets. The
result is the last epoch's.

{stages}
- {counts(results)[0]}

![training curves](training_curves.png)

![accuracy of each class against its size](accuracy_by_class_size.png)

![confusion matrix](confusion_matrix.png)
{ACTIVATIONS if pictured else ''}
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
