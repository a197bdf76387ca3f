"""How fast a head trains on frozen features, and how well with each loss of configs/frozen.py.

python -m ltjax extract --config=configs/gcl_folder.py --config.dataset.root=data/caltech101_lt40 \
    --config.backbone="dict(name='EfficientNet')" --config.pretrained=efficientnet_lite0 --output=FILE
python benchmarks/frozen.py --features FILE --seeds 3        writes benchmarks/results/frozen.md
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
from ltjax.report import page as report  # noqa: E402

GROUPS = ("overall", "many", "medium", "few")
LOSSES = tuple(importlib.import_module("configs.frozen").LOSSES(1.0))


def config(features: pathlib.Path, loss: str, seed: int = 0):
  found = load.read(f"{ROOT / 'configs' / 'frozen.py'}:{loss}")
  found.dataset.root, found.seed = str(features), seed
  return found


def built(features: pathlib.Path, loss: str, seed: int = 0) -> stage.Stage:
  spec = parse(config(features, loss, seed))
  return stage.build(spec, spec.read()[0])[0]


def tested(made: stage.Stage) -> np.ndarray:
  """The confusion matrix of the test after training a stage."""
  return made.evaluators["test"](train.in_memory(made, bridge.start_head(made, made.init())))


def accuracies(features: pathlib.Path, seeds: int) -> list[str]:
  """The table of the losses."""
  lines = [f"| loss | {' | '.join(GROUPS)} |", f"| --- |{' ---: |' * len(GROUPS)}"]
  for loss in LOSSES:
    made = [built(features, loss, seed) for seed in range(seeds)]
    scores = [metrics.scores(tested(each), each.class_counts) for each in made]
    cells = [100 * np.array([score[group] for score in scores]) for group in GROUPS]
    lines.append(f"| {loss} | " + " | ".join(f"{cell.mean():.1f} ± {cell.std():.1f}" for cell in cells) + " |")
  return lines


def page(features: pathlib.Path, seeds: int) -> str:
  made = built(features, LOSSES[0])
  tested(made)  # compiles
  start, computed = time.perf_counter(), time.process_time()
  tested(made)
  duration, computed, data = time.perf_counter() - start, time.process_time() - computed, made.dataset
  name, weights = data.made_by["backbone"]["name"], data.made_by["weights_sha256"][:8]
  versions = ", ".join(f"{name} {version}" for name, version in report.versions().items())
  return "\n".join([
      "# Heads on frozen features", "",
      f"{len(data.train[1]):,} training and {len(data.test[1]):,} test examples of {len(data.class_names)} classes, "
      f"features of {name}", f"(weights {weights}).", "",
      f"A head trains for {made.order.steps:,} steps of {made.order.batch_size} and is tested in **{duration:.1f} s** "
      f"({computed:.1f} s", "of a core) after compilation.", "",
      f"Test accuracy in %, mean ± standard deviation over {seeds} seeds, last epoch; the numbers of",
      "configs/frozen.py, none of them chosen on these data. Classes of Caltech-101 are also classes of ImageNet.", "",
      *accuracies(features, seeds), "",
      f"`python benchmarks/frozen.py --features FILE --seeds {seeds}`, commit {report.commit()},",
      f"{report.hardware()['host']}; {versions}.", ""])


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--features", type=pathlib.Path, required=True)
  parser.add_argument("--seeds", type=int, default=3)
  args = parser.parse_args()
  text = page(args.features, args.seeds)
  (ROOT / "benchmarks" / "results" / "frozen.md").write_text(text)
  print(text)
