"""How fast a head trains on frozen features, and how well with each loss of configs/frozen.py.

python -m ltjax extract --config=configs/gcl_folder.py --config.dataset.root=data/caltech101_lt40 \\
    --config.backbone="dict(name='EfficientNet')" --config.pretrained=efficientnet_lite0 --output=caltech.safetensors
python -m ltjax extract --config=configs/ce_cifar.py:cifar100 --config.dataset.dir=data/cifar \\
    --config.backbone="dict(name='EfficientNet')" --config.pretrained=efficientnet_lite0 \\
    --config.augment="(dict(name='random_resized_crop', size=128),)" --config.interpolation=bicubic \\
    --output=cifar100.safetensors
python benchmarks/frozen.py --features caltech.safetensors cifar100.safetensors --seeds 3
"""

import argparse
import importlib
import pathlib
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ltjax import bridge, metrics, stage, train  # noqa: E402
from ltjax.config import load, parse  # noqa: E402
from ltjax.report import baselines  # noqa: E402
from ltjax.report import page as report  # noqa: E402

GROUPS = ("overall", "many", "medium", "few")
LOSSES = tuple(importlib.import_module("configs.frozen").LOSSES(1.0))
RATES, SCALES = (0.03, 0.1, 0.3, 1.0, 3.0), (10.0, 25.0, 40.0)


def built(features: pathlib.Path, loss: str, scale: float, seed: int = 0) -> stage.Stage:
  """The stage of configs/frozen.py with RATES as its candidates."""
  config = load.read(f"{ROOT / 'configs' / 'frozen.py'}:{loss},scale={scale}")
  config.dataset.root, config.seed = str(features), seed
  with config.ignore_type():
    config.classifier.lr.base = RATES
  spec = parse(config)
  return stage.build(spec, spec.read()[0])[0]


def chosen(features: pathlib.Path, loss: str) -> tuple[float, float]:
  """The scale and the rate that are best on a fifth of the training examples; of equals the first."""
  scores = {}
  for scale in SCALES:
    part = built(features, loss, scale).on_part(train.HELD_OUT)
    start = bridge.start_head(part, part.init())
    scores |= {(scale, rate): train.held_out_accuracy(part.with_rate(rate), start) for rate in RATES}
  return max(scores, key=scores.get)


def tested(made: stage.Stage, rate: float) -> np.ndarray:
  """The confusion matrix of the test after training a stage."""
  made = made.with_rate(rate)
  return made.evaluators["test"](train.in_memory(made, bridge.start_head(made, made.init())))


def cells(scores: list[dict]) -> str:
  """The columns of the groups."""
  found = [100 * np.array([score[group] for score in scores]) for group in GROUPS]
  return " | ".join(f"{cell.mean():.1f} ± {cell.std():.1f}" if len(cell) > 1 else f"{cell[0]:.1f}" for cell in found)


def table(features: pathlib.Path, seeds: int) -> list[str]:
  """What a file holds, how fast a head trains on it, and a row for each loss."""
  first, rows = built(features, LOSSES[0], SCALES[0]), []
  for loss in LOSSES:
    scale, rate = chosen(features, loss)
    made = [built(features, loss, scale, seed) for seed in range(seeds)]
    scores = [metrics.scores(tested(each, rate), each.class_counts) for each in made]
    rows.append(f"| {loss} | {scale:g} | {rate:g} | {cells(scores)} |")
    print(rows[-1], flush=True)
  tested(first, RATES[0])  # compiles
  start, computed = time.perf_counter(), time.process_time()
  tested(first, RATES[0])
  duration, computed, data = time.perf_counter() - start, time.process_time() - computed, first.dataset
  simple = baselines.of_stage(first, first.init())
  return [
      f"## {features.stem}", "",
      f"{len(data.train[1]):,} training and {len(data.test[1]):,} test examples of {len(data.class_names)} classes, "
      f"features of {data.made_by['backbone']['name']}", f"(weights {data.made_by['weights_sha256'][:8]}). A head "
      f"trains for {first.order.steps:,} steps of {first.order.batch_size} and is tested in {duration:.1f} s "
      f"({computed:.1f} s of a core) after compilation.", "",
      f"| loss | scale | rate | {' | '.join(GROUPS)} |", f"| --- | ---: | ---: |{' ---: |' * len(GROUPS)}", *rows,
      *[f"| {found['name']} | | | {cells([found['test']])} |" for found in simple], ""]


def page(files: list[pathlib.Path], seeds: int) -> str:
  versions = ", ".join(f"{name} {version}" for name, version in report.versions().items())
  return "\n".join([
      "# Heads on frozen features", "",
      f"Test accuracy in %, mean ± standard deviation over {seeds} seeds, last epoch, with each loss of "
      "configs/frozen.py.", "For each, the learning rate is chosen among "
      f"{', '.join(f'{rate:g}' for rate in RATES)} and the scale of the cosines among "
      f"{', '.join(f'{scale:g}' for scale in SCALES)}", "by the balanced accuracy on a fifth of the training "
      "examples; all other numbers are those of the papers. `linear` has no scale.",
      "Classes of Caltech-101 and CIFAR-100 are also classes of ImageNet, on which the backbone was trained.", "",
      *[line for file in files for line in table(file, seeds)],
      f"`python benchmarks/frozen.py --features {' '.join(file.name for file in files)} --seeds {seeds}`, commit "
      f"{report.commit()},", f"{report.hardware()['host']}; {versions}.", ""])


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--features", type=pathlib.Path, required=True, nargs="+")
  parser.add_argument("--seeds", type=int, default=3)
  args = parser.parse_args()
  text = page(args.features, args.seeds)
  (ROOT / "benchmarks" / "results" / "frozen.md").write_text(text)
  print(text)
