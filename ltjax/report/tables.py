"""What is known of each class, of each test image and of each pair of classes, as rows of tables and CSV files."""

import csv
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ltjax import metrics
from ltjax.data import longtail
from ltjax.report import statistics
from ltjax.report.names import shown


class Column:
  """A column of a table on a page.

  Attributes:
    key: of its values in the rows.
    label: its heading.
    kind: "name", "text", "count", "percent", "points" (a difference of per cent), "number", or "worded": a pair of the
      number that it is sorted by and the text that is shown.
    wide: whether a narrow screen leaves it out.
  """

  def __init__(self, key: str, label: str, kind: str = "number", wide: bool = False):
    self.key, self.label, self.kind, self.wide = key, label, kind, wide

  def text(self, value) -> str:
    """`value` as the table shows it; a dash where there is none. `table.js` has the same rules."""
    if value is None:
      return "–"
    if self.kind in ("name", "text"):
      return str(value)
    if self.kind == "worded":
      return value[1]
    return {"count": "{:,}", "percent": "{:.1f}", "points": "{:+.1f}", "number": "{:.4g}"}[self.kind].format(
        100 * value if self.kind in ("percent", "points") else value)


CLASS_COLUMNS = (
    Column("name", "class", "name"), Column("group", "group", "text"), Column("train", "training images", "count"),
    Column("test", "test images", "count", wide=True), Column("accuracy", "accuracy, %", "percent"),
    Column("low", "95 % from", "percent", wide=True), Column("high", "to", "percent", wide=True),
    Column("precision", "precision, %", "percent", wide=True), Column("f1", "F1, %", "percent", wide=True),
    Column("taken_for", "most often taken for", "name", wide=True))


def of_classes(confusion: np.ndarray, class_counts: np.ndarray, class_names: Sequence[str]) -> list[dict]:
  """A row a class, the least accurate first; None for what a class without test images does not have.

  The interval is Wilson's for the class' accuracy. A class is "taken for" the class that gets most of its wrong test
  images.
  """
  tested, predicted, right = confusion.sum(axis=1), confusion.sum(axis=0), np.diagonal(confusion)
  low, high = statistics.wilson(right, tested)
  groups, f1 = {}, metrics.f1_scores(confusion)
  for group, members in longtail.shot_groups(class_counts).items():
    groups |= dict.fromkeys(members.tolist(), group)
  names, wrong = [shown(name, "json") for name in class_names], {pair[0]: pair[1] for pair in reversed(
      confused_pairs(confusion))}
  rows = []
  for c, name in enumerate(names):
    there, chosen = bool(tested[c]), bool(predicted[c])
    rows.append(dict(
        label=c, name=name, group=groups[c], train=int(class_counts[c]), test=int(tested[c]),
        accuracy=float(right[c] / tested[c]) if there else None, low=float(low[c]) if there else None,
        high=float(high[c]) if there else None, precision=float(right[c] / predicted[c]) if chosen else None,
        f1=float(f1[c]) if there else None, taken_for=names[wrong[c]] if c in wrong else None))
  return sorted(rows, key=lambda row: (2 if row["accuracy"] is None else row["accuracy"], row["train"], row["label"]))


def confused_pairs(confusion: np.ndarray) -> list[tuple[int, int, int]]:
  """(true class, predicted class, images) of all wrong predictions, the most frequent first, in a fixed order."""
  rows, columns = np.nonzero(confusion)  # far fewer than the cells of a matrix of thousands of classes
  rows, columns = rows[rows != columns], columns[rows != columns]
  counts = confusion[rows, columns]
  order = np.lexsort((columns, rows, -counts))
  return list(zip(rows[order].tolist(), columns[order].tolist(), counts[order].tolist(), strict=True))


def write_classes(rows: Iterable[dict], path: pathlib.Path) -> None:
  """Writes `of_classes` as a CSV, in the order of the labels."""
  write(path, ("label", *(column.key for column in CLASS_COLUMNS)), sorted(rows, key=lambda row: row["label"]))


NORM_COLUMNS = ("stage", "epoch", *longtail.GROUPS)


def of_feature_norms(logs: Mapping[str, Sequence[Mapping]]) -> list[dict]:
  """A row for each evaluation of a stage that has two at least: its epoch, and the mean feature norm of each group.

  `logs` are the lines of each stage's feature_norms.jsonl; other lines are left out.
  """
  found = {stage: [line for line in lines if "feature_norms" in line] for stage, lines in logs.items()}
  return [dict(stage=stage, epoch=float(line["epoch"]), **line["feature_norms"])
          for stage, lines in found.items() if len(lines) > 1 for line in lines]


PREDICTION_COLUMNS = ("image", "label", "predicted_label", "confidence", "true_probability", "class", "predicted")


def write_predictions(seen, images: Sequence[str], class_names: Sequence[str], path: pathlib.Path) -> None:
  """Writes a row for each test image.

  Args:
    seen: a `predictions.Predictions`.
    images: the names of the test images.
    class_names: by label.
    path: of the CSV.
  """
  names = [shown(name, "csv") for name in class_names]
  columns = (seen.labels.tolist(), seen.predicted.tolist(), seen.confidence.tolist(), seen.true_probability.tolist())
  _write(path, PREDICTION_COLUMNS, (
      (shown(image, "csv"), label, predicted, f"{confidence:.6f}", f"{probability:.6f}", names[label], names[predicted])
      for image, label, predicted, confidence, probability in zip(images, *columns, strict=True)))


def write(path: pathlib.Path, keys: Sequence[str], rows: Iterable[dict]) -> None:
  """Writes the values `keys` of `rows` as a CSV file; no name is a formula."""
  _write(path, keys, ([_cell(row[key]) for key in keys] for row in rows))


def _cell(value):
  if isinstance(value, tuple):
    value = value[0]
  if isinstance(value, str):
    return shown(value, "csv")
  return "" if value is None else f"{value:.6f}" if isinstance(value, float) else value


def _write(path: pathlib.Path, heading: Sequence[str], rows: Iterable[Sequence]) -> None:
  with open(path, "w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(heading)
    writer.writerows(rows)
