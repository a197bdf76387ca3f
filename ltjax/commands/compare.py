"""Compares finished runs: a table, and a page with the differences of every class.

python -m ltjax compare runs/ce runs/gcl runs/gcl_seed1 [--sort=few] [--out=comparison]

Runs of one config, the seed aside, are one row with mean and standard deviation. The first run's row is the one that
the others are compared with: on the same test images by a paired bootstrap, and class by class. A run of a published
config is compared with the paper's number. OUT gets index.html, which opens without a network, runs.csv and
classes.csv.
"""

import argparse
import math
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from ltjax.config.keys import flat
from ltjax.config.load import EXIT_BAD_INPUT
from ltjax.data import longtail
from ltjax.errors import ConfigError, LtjaxError, nearest
from ltjax.report import comparison, figures, html, tables
from ltjax.report.figures import classes as class_figures
from ltjax.report.figures.style import GROUPS
from ltjax.report.names import padded, printable, shown, width
from ltjax.report.tables import Column
from ltjax.workdir import folder

# Columns of the table of runs; those after `runs` can be sorted by too.
COLUMNS = (
    Column("name", "runs", "name"), Column("runs", "seeds", "count"), Column("overall", "overall, %", "text"),
    Column("many", "many, %", "text", wide=True), Column("medium", "medium, %", "text", wide=True),
    Column("few", "few, %", "text", wide=True), Column("balanced_accuracy", "balanced, %", "text", wide=True),
    Column("macro_f1", "macro-F1, %", "text", wide=True), Column("difference", "minus the first", "text"),
    Column("p", "p", "number"), Column("gap", "minus the paper", "text", wide=True))
_COMPARED = 5  # groups whose classes are compared with the first one's


def rows(groups: Sequence[comparison.Group], sort: str) -> list[dict]:
  """A row a group, the best in column `sort` first."""
  found = []
  for group in groups:
    row = dict(name=shown(group.name, "json"), runs=len(group.runs), difference=None, p=None, gap=None)
    for key in (*comparison.MEASURES, "balanced_accuracy", "macro_f1"):
      row[key] = _mean(group.values(key))
    if group is not groups[0] and (found_difference := comparison.difference(groups[0], group)):
      mean, low, high, row["p"] = found_difference
      row["difference"] = f"{100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
    if paper := comparison.published(group.runs[0]):
      gap = 100 * np.mean(group.values("overall")) - float(paper["top1"])
      row["gap"] = f"{gap:+.1f} ({paper['paper']}: {paper['top1']})"
    found.append((row, _key(group, row, sort)))
  return [row for row, _ in sorted(found, key=lambda pair: pair[1])]


def _key(group, row: dict, sort: str) -> tuple:
  if sort in ("name", "gap", "difference"):
    number = row[sort] or ""
    return (number,) if sort == "name" else (-float(number.split(" ")[0]) if number else math.inf,)
  values = np.array([len(group.runs)]) if sort == "runs" else np.array([row["p"] or 0]) if sort == "p" else (
      group.values(sort))
  mean = values.mean()
  return (math.inf if np.isnan(mean) else mean if sort == "p" else -mean,)


def _mean(values: np.ndarray) -> str | None:
  """As "92.4 ± 1.1", the sample standard deviation; without it for one run."""
  if np.isnan(values).any():
    return None
  spread = f" ± {100 * values.std(ddof=1):.1f}" if len(values) > 1 else ""
  return f"{100 * values.mean():.1f}{spread}"


def table(found: Sequence[dict]) -> str:
  """The table of runs for a terminal."""
  used = [column for column in COLUMNS if any(row[column.key] is not None for row in found)]
  cells = [[column.label for column in used], *([column.text(row[column.key]) for column in used] for row in found)]
  widths = [max(width(line[k]) for line in cells) for k in range(len(used))]
  return "\n".join("  ".join(padded(text, size) for text, size in zip(line, widths, strict=True)).rstrip()
                   for line in cells)


def of_classes(first: comparison.Group, others: Sequence[comparison.Group]) -> tuple[list[Column], list[dict]]:
  """(columns, a row a class) of the accuracies of the first group and the differences of `others` from it."""
  data = first.runs[0].results["data"]
  columns = [Column("name", "class", "name"), Column("group", "group", "text"),
             Column("train", "training images", "count"), Column("accuracy", f"{_short(first)}, %", "percent"),
             *(Column(f"difference {k}", f"{_short(group)} minus it", "points", wide=k > 0)
               for k, group in enumerate(others))]
  counts, accuracy = np.array(data["class_counts"]), first.per_class
  differences = [group.per_class - accuracy for group in others]
  members = {int(c): name for name, classes in longtail.shot_groups(counts).items() for c in classes}
  found = [dict(name=shown(name, "json"), group=members[c], train=int(counts[c]), accuracy=_number(accuracy[c])) | {
      f"difference {k}": _number(values[c]) for k, values in enumerate(differences)}
           for c, name in enumerate(data["class_names"])]
  return columns, sorted(found, key=lambda row: row.get("difference 0") or 0.0)


def _number(value: float) -> float | None:
  return None if np.isnan(value) else float(value)


def _short(group: comparison.Group) -> str:
  return shown(group.name, "json")


def write(groups: Sequence[comparison.Group], found: Sequence[dict], out: pathlib.Path) -> None:
  """Writes the page, its figures and its tables."""
  out.mkdir(parents=True, exist_ok=True)
  first, *rest = groups
  names = first.runs[0].results["data"]["class_names"]
  comparable = [group for group in rest if group.runs[0].results["data"]["class_names"] == names][:_COMPARED]
  counts = np.array(first.runs[0].results["data"]["class_counts"])
  used = [column for column in COLUMNS if any(row[column.key] is not None for row in found)]
  tables.write(out / "runs.csv", [column.key for column in used], found)
  columns, classes = of_classes(first, comparable) if comparable else ((), ())
  if classes:
    tables.write(out / "classes.csv", [column.key for column in columns], classes)
  drawn = figures.draw([figures.Picture(
      f"gains_{k}", f"{_short(group)} minus {_short(first)}", "The mean difference of the classes' accuracies in ten "
      "groups of classes, from the largest to the smallest.",
      lambda values=group.per_class - first.per_class: class_figures.gain_bars(values, counts, "difference"))
      for k, group in enumerate(comparable)], names, out)
  pictures = [html.picture(out / f"{each.name}.png", title=each.title, text=each.text) for each in drawn]
  apart = [(_short(group)) for group in rest if not comparison.same_test_set(first, group)]
  text = html.render(
      "compare.html", title=f"Comparison of {len(groups)} configs", first=_short(first), runs=found, run_columns=used,
      differing={key: list(map(repr, row)) for key, row in comparison.differing(groups).items()},
      names=[_short(group) for group in groups], pictures=pictures, columns=columns, classes=classes, groups=GROUPS,
      apart=apart, left_out=len([*rest]) - len(comparable),
      folders=[(_short(group), [shown(str(run.workdir), "json") for run in group.runs]) for group in groups])
  (out / "index.html").write_text(text, encoding="utf-8", errors="backslashreplace")


def main(arguments: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(prog="ltjax compare", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("runs", nargs="+", type=pathlib.Path, metavar="RUN", help="folders of finished runs")
  parser.add_argument("--sort", default="overall", help="a column of the table; the best comes first")
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("comparison"), help="folder of the page")
  given = parser.parse_args(arguments)
  try:
    known = [column.key for column in COLUMNS]
    if given.sort not in known:
      raise ConfigError(f"--sort: there is no column {given.sort!r}{nearest(given.sort, known)}; there are "
                        f"{', '.join(known)}")
    runs = [comparison.read(path, flat(folder.load(path))) for path in (path.expanduser() for path in given.runs)]
    groups = comparison.grouped(runs)
    found = rows(groups, given.sort)
    write(groups, found, given.out.expanduser())
    note = f"differences are from {_short(groups[0])}, the first run given\n" if len(groups) > 1 else ""
    print(printable(f"{table(found)}\n{note}\nwritten: {given.out.expanduser() / 'index.html'}", sys.stdout))
  except (LtjaxError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)


if __name__ == "__main__":
  main(sys.argv[1:])
