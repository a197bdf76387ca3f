"""Finds every number of ltjax/report/published.csv and published_classes.csv in the text of its paper.

python benchmarks/check_published.py FOLDER

FOLDER holds one text file a paper, in whose name the paper's name in the tables occurs (thesis, fbl, camc, afa). A
number counts as found where a line that begins as the column `row` says has it, or has its error rate, which the
thesis's chapter 3 gives. Some have one digit. That the line is of the right table, and the column, is checked by eye.
"""

import csv
import pathlib
import re
import sys

REPORT = pathlib.Path(__file__).resolve().parents[1] / "ltjax" / "report"
PAPERS = ("thesis", "fbl", "camc", "afa")


def written(number: str) -> set[str]:
  """How a text may write an accuracy: as it is, or as an error rate, with and without a zero at the end."""
  error = f"{100 - float(number):.{len(number.partition('.')[2])}f}"
  return {text.removesuffix(end) for text in (number, error) for end in ("", "0")}


def plain(line: str) -> str:
  """A line without markup, marks of notes and tabs."""
  return " ".join(re.sub(r"<[^>]*>|[$*_\\†♠♣]", "", line).split())


def texts(folder: pathlib.Path) -> dict[str, list[str]]:
  """{paper: the lines of its text}; of several files with its name, the one with the shortest name counts."""
  found = {paper: min(folder.glob(f"*{paper}*.txt"), key=lambda path: len(path.name)) for paper in PAPERS}
  return {paper: [plain(line) for line in path.read_text().splitlines()] for paper, path in found.items()}


def missing(lines: dict[str, list[str]]) -> list[str]:
  """What the papers' lines do not contain."""
  lost = []
  for name in ("published.csv", "published_classes.csv"):
    for row in csv.DictReader((REPORT / name).read_text().splitlines()):
      numbers = set()
      for line in lines[row["paper"]]:
        if any(line.startswith(label) for label in row["row"].split("; ")):
          numbers |= set(re.findall(r"\d+\.\d+", line))
      wanted = [row[key] for key in ("top1", "many", "medium", "few", "accuracy") if row.get(key)]
      wanted += re.findall(r"(\d+\.\d+) \(", row.get("other", ""))
      lost += [f"{row['paper']}, {row['method']}, {row['dataset']}, {row['imbalance']}: {number}" for number in wanted
               if not written(number) & numbers]
  return lost


if __name__ == "__main__":
  not_found = missing(texts(pathlib.Path(sys.argv[1])))
  print("\n".join(not_found) or "every number is in the text of its paper")
  sys.exit(bool(not_found))
