"""What CAMC's calibration learns: its gates before and after the second stage, and accuracy, on photographs.

python benchmarks/camc_gate.py --root=DIR [--seeds=3] [--epochs=40] [--width=32] [--runs=DIR]

DIR is the data set of configs/camc_caltech.py, from which the runs differ in epochs and width. For each seed one
first stage is trained, and three second stages follow it: the plain normalised classifier (NormFC), CAMC with divided
products and CAMC with cosines. A gate is the sigmoid of one position for one tail class in a test image.
Writes benchmarks/results/camc_gate.md; what is done is not done again.
"""

import argparse
import json
import pathlib
import shutil
import sys

import jax
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from configs import camc_caltech  # noqa: E402
from ltjax import bridge, stage, train  # noqa: E402
from ltjax.config import parse  # noqa: E402
from ltjax.data import evaluate, longtail  # noqa: E402
from ltjax.report import page as report  # noqa: E402
from ltjax.workdir.checkpoint import Checkpoints  # noqa: E402

CAMC = dict(name="CAMC", scale=16.0, threshold=100, num_prototypes=5)
PLAIN = "plain classifier"
HEADS = {
    PLAIN: dict(name="NormalizedLinear", scale=16.0, normalize_features=True),
    "CAMC, divided products": CAMC, "CAMC, cosines": CAMC | dict(normalize_prototypes=True)}
GROUPS = ("overall", *longtail.GROUPS)


def stages(args, seed: int, head: dict, dataset=None):
  """The two stages of the config with this head in the second one, and the data set."""
  config = camc_caltech.get_config()
  config.seed, config.dataset.root, config.representation.epochs = seed, args.root, args.epochs
  config.eval_every_epochs = config.checkpoint_every_epochs = max(args.epochs, config.classifier.epochs)
  config.backbone.width = args.width
  with config.unlocked(), config.classifier.ignore_type():
    config.classifier.head = head
  spec = parse(config)
  dataset = dataset or spec.read()[0]
  return *stage.build(spec, dataset), dataset


def gates(made: stage.Stage, variables: dict) -> np.ndarray:
  """The sigmoids of all test images, positions and tail classes, flat."""
  images, found, size = made.dataset.test[0], [], made.settings.eval_batch_size
  prepare, mean, std = made.augmentation.evaluate, *map(np.float32, (made.dataset.mean, made.dataset.std))

  @jax.jit
  def look(variables, pixels):
    maps = made.model.apply(variables, prepare(pixels, mean, std), method="maps")
    return made.model.head.reinforcement(variables["params"]["head"], maps) - 1

  for first in range(0, len(images), size):
    places = np.arange(first, min(first + size, len(images)))
    found.append(np.asarray(look(variables, evaluate.pixels(images, places, made.augmentation))).ravel())
  return np.concatenate(found)


def run(name: str, first: stage.Stage, last: stage.Stage, folder: pathlib.Path, earlier: pathlib.Path) -> dict:
  """Trains one second stage; its accuracies in %, and its gates before and after."""
  if not folder.exists():
    folder.mkdir(parents=True)
    shutil.copytree(earlier / "representation", folder / "representation")
  found = {}
  calibrated = name != PLAIN
  if calibrated:
    begun = jax.device_get(bridge.from_stage(last, first, folder, Checkpoints))
    start = gates(last, begun)
    found["start"] = [float(start.min()), float(start.max())]
    logits = last.extractor(begun)(last.dataset.test[0], "logits", "features")
    kernel = begun["params"]["head"]["kernel"]
    features = logits["features"] / np.linalg.norm(logits["features"], axis=1, keepdims=True)
    plain = 16.0 * features @ (kernel / np.linalg.norm(kernel, axis=0))
    found["shift"] = float(np.abs(logits["logits"] - plain).max())
  result = train.run_stage(last, folder, before=first)
  test = json.loads((folder / last.name / "metrics.jsonl").read_text().splitlines()[-1])["test"]
  found |= {group: 100 * test[group] for group in GROUPS}
  if calibrated:
    end = gates(last, jax.device_get(result.variables))
    found |= dict(ends=float(np.mean((end < 0.02) | (end > 0.98))), spread=float(end.std()),
                  low=float(np.quantile(end, 0.05)), high=float(np.quantile(end, 0.95)))
  return found


def page(found: dict[str, list[dict]], args) -> str:
  def mean(values, digits=1):
    values = np.array(values)
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1) if len(values) > 1 else 0:.{digits}f}"

  head = ["| second stage | overall | many | medium | few | first shift of a score | gates outside [.02, .98] | "
          "5 to 95 % of the gates |", "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
  rows = []
  for name, runs in found.items():
    cells = [mean([each[group] for each in runs]) for group in GROUPS]
    cells += ["-"] * 3 if name == PLAIN else [
        f"{max(each['shift'] for each in runs):.1e}", f"{100 * max(each['ends'] for each in runs):.1f} %",
        f"{np.mean([each['low'] for each in runs]):.2f} to {np.mean([each['high'] for each in runs]):.2f}"]
    rows.append(f"| {name} | {' | '.join(cells)} |")
  starts = [edge for runs in found.values() for each in runs for edge in each.get("start", [])]
  low, high = min(starts), max(starts)
  versions = ", ".join(f"{name} {version}" for name, version in report.versions().items())
  return "\n".join([
      "# What CAMC's calibration learns", "",
      f"configs/camc_caltech.py at width {args.width} with {args.epochs} epochs in the first stage, which all rows of",
      f"a seed share. Test accuracy in %, mean ± standard deviation over {len(found[PLAIN])} seeds; shares and shifts",
      "are the largest of the seeds.",
      f"Before the second stage the gates lie in [{low:.4f}, {high:.4f}].", "", *head, *rows, "",
      f"`python benchmarks/camc_gate.py --seeds={args.seeds} --epochs={args.epochs} --width={args.width}`,",
      f"commit {report.commit()}, {report.hardware()['device']}; {versions}.", ""])


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--root", default="data/caltech101_lt40")
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--epochs", type=int, default=40)
  parser.add_argument("--width", type=int, default=32)
  parser.add_argument("--runs", type=pathlib.Path, default=ROOT / "runs" / "camc_gate")
  args = parser.parse_args()
  found, dataset = {name: [] for name in HEADS}, None
  for seed in range(args.seeds):
    for index, (name, head) in enumerate(HEADS.items()):
      first, last, dataset = stages(args, seed, head, dataset)
      if index == 0:
        train.run_stage(first, args.runs / f"{seed}")
      found[name].append(run(name, first, last, args.runs / f"{seed}_{index}", args.runs / f"{seed}"))
      print(seed, name, json.dumps(found[name][-1]), flush=True)
    (ROOT / "benchmarks" / "results" / "camc_gate.md").write_text(page(found, args))
