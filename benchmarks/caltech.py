"""GCL and CAMC against cross entropy on long-tailed Caltech-101 over several seeds, on photographs of 64 pixels.

python benchmarks/caltech.py --seeds 3    writes benchmarks/results/caltech.md and the first reports of GCL and CAMC

The images are those of configs/gcl_caltech.py, or --root=DIR; --runs=DIR keeps the runs, so that what is done is not
done again.
"""

import argparse
import pathlib
import shutil

from digits import ROOT, made_with, runs, table

CONFIGS = ("ce_caltech", "gcl_caltech", "camc_caltech")
TWO_STAGES = CONFIGS[1:]


def few_shot(found: list[dict]) -> str:
  """The few-shot accuracy of each seed after the first stage."""
  return ", ".join(f"{100 * results['stages']['representation']['test']['few']:.1f}" for results in found)


def page(found: dict[str, list[dict]], seeds: int) -> str:
  seconds = {name: sum(stage["seconds"] for stage in rows[0]["stages"].values()) for name, rows in found.items()}
  return "\n".join([
      "# GCL and CAMC against cross entropy on photographs", "",
      "40 classes of Caltech-101, 235 to 5 training images, 64 pixels, ResNet-10 of half the width. Test",
      f"accuracy in %, mean ± standard deviation over {seeds} seeds (order, initialisation, augmentation,",
      "noise), last epoch.", "",
      *table(found), "",
      *(f"Few-shot accuracy of {name} before the classifier is trained again: {few_shot(found[name])}."
        for name in TWO_STAGES),
      "Training, testing and saving took " + ", ".join(
          f"{first / 60:.1f} minutes ({name})" for name, first in seconds.items()) + " with the first seed.",
      "Reports of it: " + ", ".join(f"[{name}]({name}/README.md)" for name in TWO_STAGES) + ".", "",
      *made_with(f"python benchmarks/caltech.py --seeds {seeds}", found)])


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--root")
  parser.add_argument("--runs", type=pathlib.Path, default=ROOT / "runs" / "caltech")
  args = parser.parse_args()
  results = ROOT / "benchmarks" / "results"
  text = page(runs(CONFIGS, args.seeds, args.runs, args.root), args.seeds)
  (results / "caltech.md").write_text(text)
  for name in TWO_STAGES:
    shutil.copytree(args.runs / f"{name}_0" / "report", results / name, dirs_exist_ok=True)
  print(text)
