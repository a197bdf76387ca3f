"""The default for one's own images on long-tailed Caltech-101, beside simple classifiers.

python benchmarks/folder.py --root=DIR --seeds=3     writes benchmarks/results/folder.md

DIR holds train/<class>/ and test/<class>/. The same run gives two baselines on the same features; a third has no
network: histograms of oriented gradients (Dalal and Triggs, 2005) with a logistic regression. The first seed also
fine-tunes the last blocks. From scratch: benchmarks/caltech.py.
"""

import argparse
import pathlib
import sys
import time

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.digits import GROUPS, made_with  # noqa: E402
from ltjax import main, metrics  # noqa: E402
from ltjax.config import load  # noqa: E402
from ltjax.report import baselines  # noqa: E402

TUNED = "last,tuning_epochs=3"
SIDE, CELL, BINS = 64, 8, 9  # of a histogram of gradients


def hog(path: pathlib.Path) -> np.ndarray:
  """Histograms of the gradients' directions in cells of 8 x 8 pixels, weighted by length, normalised by 2 x 2 cells."""
  grey = np.asarray(Image.open(path).convert("L").resize((SIDE, SIDE)), np.float32)
  down, right = np.gradient(grey)
  length, direction = np.hypot(down, right), (np.arctan2(down, right) % np.pi) * BINS / np.pi
  cells, side = np.arange(SIDE) // CELL, SIDE // CELL
  found = np.zeros((side, side, BINS), np.float32)
  np.add.at(found, (cells[:, None], cells[None, :], direction.astype(int) % BINS), length)
  blocks = np.stack([found[i:side - 1 + i, j:side - 1 + j] for i in (0, 1) for j in (0, 1)], axis=-2)
  blocks = blocks.reshape(side - 1, side - 1, -1)
  return (blocks / (np.linalg.norm(blocks, axis=-1, keepdims=True) + 1e-3)).ravel()


def without_a_network(root: pathlib.Path, names: list[str]) -> np.ndarray:
  """The confusion matrix of histograms of gradients with a logistic regression."""
  sets = []
  for split in ("train", "test"):
    paths = [(path, label) for label, name in enumerate(names) for path in sorted((root / split / name).iterdir())]
    sets.append((np.stack([hog(path) for path, _ in paths]), np.array([label for _, label in paths])))
  (train, labels), (test, truth) = sets
  return metrics.confusion_matrix(truth, baselines.logistic_regression(train, labels, test), len(names))


def row(name: str, scores: list[dict]) -> str:
  cells = [100 * np.array([score[group] for score in scores]) for group in GROUPS]
  spread = "" if len(scores) == 1 else " ± {:.1f}"
  return f"| {name} | " + " | ".join(f"{cell.mean():.1f}{spread.format(cell.std(ddof=1) if spread else 0)}"
                                     for cell in cells) + " |"


def trained(root: pathlib.Path, argument: str, seed: int, workdir: pathlib.Path) -> tuple[dict, float]:
  """(results, seconds) of a run of configs/folder.py."""
  config = load.read(f"{ROOT}/configs/folder.py{f':{argument}' if argument else ''}")
  config.seed, config.dataset.root = seed, str(root)
  began = time.perf_counter()
  results = main.run(config, workdir, command=f"folder.py, seed {seed}")
  return results, time.perf_counter() - began


def page(root: pathlib.Path, seeds: int, runs: pathlib.Path) -> str:
  found, seconds = zip(*(trained(root, "", seed, runs / str(seed)) for seed in range(seeds)), strict=True)
  tuned, tuned_seconds = trained(root, TUNED, 0, runs / "tuned")
  data, simple = found[0]["data"], found[0]["baselines"]
  hogs = metrics.scores(without_a_network(root, data["class_names"]), np.array(data["class_counts"]))
  return "\n".join([
      "# A pretrained backbone on a folder of photographs", "",
      f"{len(data['class_names'])} classes of Caltech-101, {max(data['class_counts'])} to {min(data['class_counts'])} "
      f"training images, {data['train_images']:,} in all; {data['test_images']} test images.",
      f"Test accuracy in %, mean ± standard deviation over {seeds} seeds, last epoch. Classes of Caltech-101 are also",
      "classes of ImageNet, on which EfficientNet-Lite0 was trained.", "",
      "| | " + " | ".join(GROUPS) + " |", "| --- |" + " ---: |" * len(GROUPS),
      row("**configs/folder.py**", [results["final"] for results in found]),
      row(f"configs/folder.py:{TUNED}, one seed", [tuned["final"]]),
      *(row(f"{each['name']}, same features", [each["test"]]) for each in simple),
      row("logistic regression, histograms of gradients", [hogs]), "",
      f"A run took {min(seconds):.0f} to {max(seconds):.0f} s, from reading the images to the report, and "
      f"{tuned_seconds:.0f} s where it fine-tuned the last blocks. From scratch: [caltech.md](caltech.md).", "",
      *made_with(f"python benchmarks/folder.py --root=DIR --seeds={seeds}", dict(folder=list(found)))])


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--root", type=pathlib.Path, required=True)
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--runs", type=pathlib.Path, default=ROOT / "runs" / "folder")
  args = parser.parse_args()
  text = page(args.root, args.seeds, args.runs)
  (ROOT / "benchmarks" / "results" / "folder.md").write_text(text)
  print(text)
