"""GCL against cross entropy on the long-tailed digits over several seeds: the figures in the README.

python benchmarks/digits.py --seeds 5        writes benchmarks/results/digits.md
"""

import argparse
import importlib
import pathlib
import sys
import tempfile

import numpy as np

from ltjax import main, report

ROOT = pathlib.Path(__file__).resolve().parents[1]
GROUPS = ("overall", "many", "medium", "few")


def accuracies(name: str, seed: int, folder: pathlib.Path) -> dict:
  sys.path.insert(0, str(ROOT))
  config = importlib.import_module(f"configs.{name}").get_config()
  config.seed = seed
  return main.run(config, folder / f"{name}_{seed}")["final"]


def run(seeds: int) -> str:
  with tempfile.TemporaryDirectory() as folder:
    rows = {name: [accuracies(name, seed, pathlib.Path(folder)) for seed in range(seeds)]
            for name in ("ce_digits", "gcl_digits")}
  table = {name: {group: 100 * np.array([row[group] for row in runs]) for group in GROUPS}
           for name, runs in rows.items()}
  table["difference"] = {group: table["gcl_digits"][group] - table["ce_digits"][group] for group in GROUPS}
  lines = [f"| {name} | " + " | ".join(f"{v[g].mean():.1f} ± {v[g].std(ddof=1):.1f}" for g in GROUPS) + " |"
           for name, v in table.items()]
  versions = ", ".join(f"{name} {version}" for name, version in report.versions().items())
  return "\n".join([
      "# GCL against cross entropy on long-tailed digits", "",
      f"Test accuracy in %, mean ± standard deviation over {seeds} seeds (order, initialisation, augmentation, noise;",
      "the subset is the same), last epoch.", "",
      "| config | " + " | ".join(GROUPS) + " |", "| --- |" + " ---: |" * len(GROUPS), *lines, "",
      f"`python benchmarks/digits.py --seeds {seeds}`, commit {report.commit()}, {report.hardware()['host']};",
      f"{versions}.",
      ""])


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--seeds", type=int, default=5)
  text = run(parser.parse_args().seeds)
  (ROOT / "benchmarks" / "results" / "digits.md").write_text(text)
  print(text)
