"""Training from scratch on long-tailed Caltech-101 over several seeds, on photographs of 64 pixels.

python benchmarks/caltech.py --seeds 3                   GCL against cross-entropy: benchmarks/results/caltech.md
python benchmarks/caltech.py camc_caltech --seeds 1      other configs: benchmarks/results/camc_caltech.md
    --epochs 15                                          of the first stage, in place of the config's

The report of the last config's first seed goes beside the page. The images are those of configs/gcl_caltech.py, or
--root=DIR; --runs=DIR keeps the runs, so that what is done is not done again.
"""

import argparse
import pathlib
import shutil

from digits import ROOT, made_with, runs, table

CONFIGS = ("ce_caltech", "gcl_caltech")


def page(found: dict[str, list[dict]], seeds: int, epochs: int) -> str:
  seconds = {name: sum(stage["seconds"] for stage in rows[0]["stages"].values()) for name, rows in found.items()}
  before = {name: [100 * results["stages"]["representation"]["test"]["few"] for results in rows]
            for name, rows in found.items() if len(rows[0]["stages"]) > 1}
  last, options = list(found)[-1], f" {' '.join(found)}" if tuple(found) != CONFIGS else ""
  options += f" --seeds {seeds}" + (f" --epochs {epochs}" if epochs else "")
  spread = f"mean ± standard deviation over {seeds} seeds (order, initialisation, augmentation,\nnoise)"
  shorter = f", {epochs} epochs in the first stage" if epochs else ""
  return "\n".join([
      "# From scratch on photographs", "",
      "40 classes of Caltech-101, 235 to 5 training images, 64 pixels, ResNet-10 of half the width. Test",
      f"accuracy in %, {spread if seeds > 1 else 'one seed'}, last epoch{shorter}.", "",
      *table(found), "",
      *(f"Few-shot accuracy of {name} before the classifier is trained again: "
        f"{', '.join(f'{few:.1f}' for few in each)}." for name, each in before.items()),
      "Training, testing and saving took " + " and ".join(
          f"{first / 60:.1f} minutes ({name})" for name, first in seconds.items())
      + f" with the first seed; [the report of {last}]({last}/README.md) is of it.", "",
      *made_with(f"python benchmarks/caltech.py{options}", found)])


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("configs", nargs="*", default=CONFIGS, metavar="CONFIG")
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--epochs", type=int, default=0)
  parser.add_argument("--root")
  parser.add_argument("--runs", type=pathlib.Path, default=ROOT / "runs" / "caltech")
  args = parser.parse_args()
  results, names = ROOT / "benchmarks" / "results", tuple(args.configs)
  text = page(runs(names, args.seeds, args.runs, args.root, args.epochs), args.seeds, args.epochs)
  (results / f"{'caltech' if names == CONFIGS else '_'.join(names)}.md").write_text(text)
  shutil.rmtree(results / names[-1], ignore_errors=True)
  shutil.copytree(args.runs / f"{names[-1]}_0" / "report", results / names[-1],
                  ignore=shutil.ignore_patterns("*.html", "*.csv", "*.svg"))
  print(text)
