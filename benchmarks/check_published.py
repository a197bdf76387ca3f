"""Finds every number of tests/golden/published_results.csv in the text of its paper.

python benchmarks/check_published.py FOLDER

FOLDER holds one text file a paper, in whose name the paper's name in the table occurs (thesis, fbl, camc, afa). A
number counts as found where it stands in the text by itself, or where its error rate does: the thesis's chapter 3 gives
error rates. Some have one digit. It may stand in any table; what it belongs to is checked by eye.
"""

import csv
import pathlib
import re
import sys

TABLE = pathlib.Path(__file__).resolve().parents[1] / "tests" / "golden" / "published_results.csv"


def written(number: str) -> set[str]:
  """How a text may write an accuracy: as it is, or as an error rate, with and without a zero at the end."""
  error = f"{100 - float(number):.{len(number.partition('.')[2])}f}"
  return {text.removesuffix(end) for text in (number, error) for end in ("", "0")}


def missing(texts: dict[str, str]) -> list[str]:
  """What the texts, by the papers' names, do not contain."""
  found = []
  for row in csv.DictReader(TABLE.read_text().splitlines()):
    numbers = set(re.findall(r"\d+\.\d+", texts[row["paper"]]))
    found += [f"{row['paper']}, {row['method']}, {row['dataset']}, {row['imbalance']}: {key} {row[key]}"
              for key in ("top1", "many", "medium", "few") if row[key] and not written(row[key]) & numbers]
  return found


if __name__ == "__main__":
  files = {name: next(pathlib.Path(sys.argv[1]).glob(f"*{name}*.txt")) for name in ("camc", "afa", "thesis")}
  files["fbl"] = min(pathlib.Path(sys.argv[1]).glob("*fbl*.txt"), key=lambda path: len(path.name))
  lost = missing({name: path.read_text() for name, path in files.items()})
  print("\n".join(lost) or "every number is in the text of its paper")
  sys.exit(bool(lost))
