"""Compares finished runs: a table, and a page with the differences of every class.

python -m ltjax compare runs/ce runs/gcl runs/gcl_seed1 [--sort=few] [--out=comparison]

Runs of one config, the seed aside, are one row with mean and standard deviation. The first run's row is the one that
the others are compared with: on the same test images by a paired bootstrap, and class by class. A run of a published
config is compared with the paper's number. OUT gets index.html, which opens without a network, runs.csv and
classes.csv.
"""

import argparse
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
from ltjax.report.names import padded, printable, shown, width
from ltjax.report.tables import Column
from ltjax.workdir import folder

COLUMNS = (
    Column("name", "runs", "name"), Column("seeds", "seeds", "count"), Column("overall", "overall, %", "worded"),
    *(Column(key, f"{key}, %", "worded", wide=True) for key in longtail.GROUPS),
    Column("balanced_accuracy", "balanced, %", "worded", wide=True),
    Column("macro_f1", "macro-F1, %", "worded", wide=True),
    Column("difference", "minus the first", "worded"), Column("p", "p", "number"),
    Column("gap", "minus the paper", "worded", wide=True))
_COMPARED = 5  # groups whose classes are compared with the first one's


def rows(groups: Sequence[comparison.Group], sort: str) -> list[dict]:
  """A row a group, the largest in column `sort` first; names and p are sorted upwards."""
  found = []
  for group in groups:
    row = dict(name=shown(group.name, "json"), seeds=len(group.runs), difference=None, p=None, gap=None)
    for key in (*comparison.MEASURES, "balanced_accuracy", "macro_f1"):
      row[key] = _mean(group.values(key))
    if group is not groups[0] and (change := comparison.difference(groups[0], group)):
      row["p"] = change.p
      row["difference"] = change.mean, f"{100 * change.mean:+.1f} ({100 * change.low:+.1f} to {100 * change.high:+.1f})"
    if paper := comparison.published(group.runs[0]):
      gap = np.mean(group.values("overall")) - float(paper["top1"]) / 100
      row["gap"] = float(gap), f"{100 * gap:+.1f} ({paper['paper']}: {paper['top1']})"
    found.append(row)

  def key(row: dict) -> tuple:
    value = row[sort][0] if isinstance(row[sort], tuple) else row[sort]
    return value is None, value if sort in ("name", "p") or value is None else -value

  return sorted(found, key=key)


def _mean(values: np.ndarray) -> tuple[float, str] | None:
  """The mean, and as text "92.4 ± 1.1" with the sample standard deviation, which one run does not have."""
  if np.isnan(values).any():
    return None
  spread = f" ± {100 * values.std(ddof=1):.1f}" if len(values) > 1 else ""
  return float(values.mean()), f"{100 * values.mean():.1f}{spread}"


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
  apart = [_short(group) for group in rest if not comparison.same_test_set(first, group)]
  text = html.render(
      "compare.html", title=f"Comparison of {len(groups)} configs", first=_short(first), runs=found, run_columns=used,
      differing=comparison.differing(groups),
      names=[_short(group) for group in groups], pictures=pictures, columns=columns, classes=classes,
      groups=longtail.GROUPS, apart=apart, left_out=len(rest) - len(comparable),
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
