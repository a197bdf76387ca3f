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


def runs(names: tuple[str, ...], seeds: int, folder: pathlib.Path, root: str | None = None) -> dict[str, list[dict]]:
  """The results of each config with seeds 0, 1, ..., seed by seed; those that are in `folder` are read."""
  sys.path.insert(0, str(ROOT))
  found = {name: [] for name in names}
  for seed in range(seeds):
    for name in names:
      config = importlib.import_module(f"configs.{name}").get_config()
      config.seed = seed
      if root:
        config.dataset.root = root
      results = folder / f"{name}_{seed}" / "results.json"
      found[name].append(json.loads(results.read_text()) if results.exists() else main.run(
          config, results.parent, command=f"{name}, seed {seed}"))
  return found


def table(found: dict[str, list[dict]]) -> list[str]:
  """Mean and standard deviation of every group of classes, and of what each config gains over the first."""
  accuracies = {name: {group: 100 * np.array([results["final"][group] for results in rows]) for group in GROUPS}
                for name, rows in found.items()}
  first, *others = accuracies
  accuracies |= {f"{name} - {first}": {group: accuracies[name][group] - accuracies[first][group] for group in GROUPS}
                 for name in others}
  rows = [f"| {name} | " + " | ".join(f"{v[g].mean():.1f} ± {v[g].std(ddof=1):.1f}" for g in GROUPS) + " |"
          for name, v in accuracies.items()]
  return ["| config | " + " | ".join(GROUPS) + " |", "| --- |" + " ---: |" * len(GROUPS), *rows]


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
