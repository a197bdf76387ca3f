"""GCL against cross entropy on the long-tailed digits over several seeds: the figures in the README.

python benchmarks/digits.py --seeds 5        writes benchmarks/results/digits.md
"""

import argparse
import importlib
import json
import pathlib
import sys
import tempfile

import numpy as np

from ltjax import main
from ltjax.data import longtail
from ltjax.report import page as report

ROOT = pathlib.Path(__file__).resolve().parents[1]
GROUPS = ("overall", *longtail.GROUPS)


def runs(names: tuple[str, ...], seeds: int, folder: pathlib.Path, root: str | None = None,
         epochs: int = 0) -> dict[str, list[dict]]:
  """The results of each config with seeds 0, 1, ..., seed by seed; those that are in `folder` are read.

  With `root` the images lie there; with `epochs` the first stage has so many.
  """
  sys.path.insert(0, str(ROOT))
  found = {name: [] for name in names}
  for seed in range(seeds):
    for name in names:
      config = importlib.import_module(f"configs.{name}").get_config()
      config.seed = seed
      if root:
        config.dataset.root = root
      if epochs:
        config.representation.epochs = epochs
      results = folder / f"{name}_{seed}" / "results.json"
      found[name].append(json.loads(results.read_text()) if results.exists() else main.run(
          config, results.parent, command=f"{name}, seed {seed}"))
  return found


def table(found: dict[str, list[dict]]) -> list[str]:
  """Mean and standard deviation of every group of classes, and of what a second config gains over the first."""
  accuracies = {name: {group: 100 * np.array([results["final"][group] for results in rows]) for group in GROUPS}
                for name, rows in found.items()}
  if len(accuracies) == 2:
    first, second = accuracies.values()
    accuracies["difference"] = {group: second[group] - first[group] for group in GROUPS}
  rows = [f"| {name} | " + " | ".join(map(_spread, of_groups.values())) + " |"
          for name, of_groups in accuracies.items()]
  return ["| config | " + " | ".join(GROUPS) + " |", "| --- |" + " ---: |" * len(GROUPS), *rows]


def _spread(values: np.ndarray) -> str:
  return f"{values.mean():.1f} ± {values.std(ddof=1):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def made_with(command: str, found: dict[str, list[dict]]) -> list[str]:
  """The last lines of a page of results; the commit is the one that the runs themselves have noted."""
  commits = sorted({results["commit"] for rows in found.values() for results in rows})
  versions = ", ".join(f"{name} {version}" for name, version in report.versions().items())
  return [f"`{command}`, commit {' and '.join(commits)}, {report.hardware()['host']};", f"{versions}.", ""]


def page(seeds: int) -> str:
  with tempfile.TemporaryDirectory() as folder:
    found = runs(("ce_digits", "gcl_digits"), seeds, pathlib.Path(folder))
  return "\n".join([
      "# GCL against cross entropy on long-tailed digits", "",
      f"Test accuracy in %, mean ± standard deviation over {seeds} seeds (order, initialisation, augmentation, noise;",
      "the subset is the same), last epoch.", "",
      *table(found), "", *made_with(f"python benchmarks/digits.py --seeds {seeds}", found)])


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--seeds", type=int, default=5)
  text = page(parser.parse_args().seeds)
  (ROOT / "benchmarks" / "results" / "digits.md").write_text(text)
  print(text)
