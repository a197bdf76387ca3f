"""Finished runs as one table: python benchmarks/table.py WORKDIR ... [--title TEXT] [--note TEXT] [--out FILE]

Every figure comes from the runs' results.json.
"""

import argparse
import json
import pathlib

from ltjax.data import longtail

GROUPS = ("overall", *longtail.GROUPS)


def rows(workdir: pathlib.Path) -> list[str]:
  """One line a stage."""
  results = json.loads((workdir / "results.json").read_text())
  lines = []
  for name, stage in results["stages"].items():
    cells = ["-" if stage["test"][group] is None else f"{100 * stage['test'][group]:.2f}" for group in GROUPS]
    best = stage["best_selected_on_test"]["overall"]
    lines.append(f"| {workdir.name}, {name} | {stage['epochs']} x {stage['batch_size']} | {' | '.join(cells)} | "
                 f"{100 * best:.2f} | {stage['seconds']:.0f} | {stage['images_per_second']:.0f} |")
  return lines


def table(workdirs: list[pathlib.Path], title: str, note: str = "") -> str:
  """The table, then each run's command and circumstances."""
  lines = [f"# {title}", "",
           "Test accuracy in % after the last epoch, on the balanced test set; seconds and images/s include evaluation",
           "and checkpoints. The best epoch is chosen on the test set and is not the result.", "",
           *([note, ""] if note else []),
           "| run, stage | epochs x batch | overall | many | medium | few | best epoch | seconds | images/s |",
           "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
  for workdir in workdirs:
    lines += rows(workdir)
  for workdir in workdirs:
    results = json.loads((workdir / "results.json").read_text())
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    data = results["data"]
    lines += ["", f"`{results['command']}`", "",
              f"{data['train_images']:,} training images, selection `{data['selected_sha256'][:16]}`; "
              f"{results['parameters']:,} parameters; seed {results['seed']}; {results['hardware']['device']}; "
              f"{versions}; commit {results['commit']}."]
  return "\n".join([*lines, ""])


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("workdirs", nargs="+", type=pathlib.Path)
  parser.add_argument("--title", default="Runs")
  parser.add_argument("--note", default="", help="a sentence about the circumstances")
  parser.add_argument("--out", type=pathlib.Path)
  options = parser.parse_args()
  text = table(options.workdirs, options.title, options.note)
  if options.out:
    options.out.write_text(text)
  print(text)
