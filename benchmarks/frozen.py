"""How fast a head trains on frozen features, and how well with each loss of configs/frozen.py.

python -m ltjax extract --config=configs/gcl_folder.py --config.dataset.root=data/caltech101_lt40 \
    --config.backbone="dict(name='EfficientNet')" --config.pretrained=efficientnet_lite0 --output=FILE
python benchmarks/frozen.py --features FILE --seeds 3        writes benchmarks/results/frozen.md
"""

import argparse
import importlib
import pathlib
import sys
import tempfile
import time

import jax
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.digits import GROUPS, made_with  # noqa: E402
from ltjax import main, stage  # noqa: E402
from ltjax.config import load, parse  # noqa: E402

LOSSES = tuple(importlib.import_module("configs.frozen").LOSSES(1.0))


def config(features: pathlib.Path, loss: str, seed: int = 0):
  found = load.read(f"{ROOT / 'configs' / 'frozen.py'}:{loss}")
  found.dataset.root, found.seed = str(features), seed
  return found


def seconds(features: pathlib.Path) -> tuple[float, int, int]:
  """(seconds of a training from its first to its last step and the test, steps, examples), after compilation."""
  spec = parse(config(features, "logit_adjustment"))
  (made,) = stage.build(spec, spec.read()[0])

  def train() -> None:
    state, step, data = made.make_state(made.init()), 0, made.data
    while step < made.order.steps:
      count = made.count(step, made.order.steps)
      state, _ = made.train_steps[count](state, data, *made.batches(step, count))
      step += count
    made.evaluators["test"](dict(params=state.params, batch_stats=state.batch_stats))
    jax.block_until_ready(state)

  train()
  start = time.perf_counter()
  train()
  return time.perf_counter() - start, made.order.steps, len(made.dataset.train[1])


def accuracies(features: pathlib.Path, seeds: int) -> tuple[list[str], dict]:
  """The table of the losses, and their results."""
  found, lines = {}, [f"| loss | {' | '.join(GROUPS)} |", f"| --- |{' ---: |' * len(GROUPS)}"]
  with tempfile.TemporaryDirectory() as folder:
    for loss in LOSSES:
      found[loss] = [main.run(config(features, loss, seed), pathlib.Path(folder) / f"{loss}_{seed}",
                              command=f"frozen.py:{loss}, seed {seed}") for seed in range(seeds)]
      cells = [100 * np.array([results["final"][group] for results in found[loss]]) for group in GROUPS]
      lines.append(f"| {loss} | " + " | ".join(f"{cell.mean():.1f} ± {cell.std():.1f}" for cell in cells) + " |")
  return lines, found


def page(features: pathlib.Path, seeds: int) -> str:
  duration, steps, examples = seconds(features)
  lines, found = accuracies(features, seeds)
  data = next(iter(found.values()))[0]["data"]
  backbone = data["made_by"]["backbone"]["name"]
  return "\n".join([
      "# Heads on frozen features", "",
      f"{examples:,} training and {data['test_images']:,} test examples of {len(data['class_names'])} classes,",
      f"features of {backbone} (weights {data['made_by']['weights_sha256'][:8]}).", "",
      f"A head trains for {steps:,} steps of 128 and is tested in **{duration:.1f} s** after compilation.", "",
      f"Test accuracy in %, mean ± standard deviation over {seeds} seeds, last epoch; the numbers of",
      "configs/frozen.py, none of them chosen on these data. Classes of Caltech-101 are also classes of ImageNet.", "",
      *lines, "", *made_with(f"python benchmarks/frozen.py --seeds {seeds}", found)])


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--features", type=pathlib.Path, required=True)
  parser.add_argument("--seeds", type=int, default=3)
  args = parser.parse_args()
  text = page(args.features, args.seeds)
  (ROOT / "benchmarks" / "results" / "frozen.md").write_text(text)
  print(text)
