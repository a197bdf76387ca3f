"""The confusion matrix, at any number of classes."""

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from ltjax.data import longtail
from ltjax.report.figures import style

_NUMBERED, _NAMED, _BLOCKS = 20, 120, 100  # classes whose cells have numbers, and names; else blocks a side
_APART = 0.2  # of a side, between the names of two groups that stand beside each other


def confusion_matrix(confusion: np.ndarray, class_counts: np.ndarray, class_names: tuple[str, ...]) -> Figure:
  """Rows are true classes, columns predictions, in per cent of the row; classes from the largest to the smallest.

  Above 120 classes a cell is a block of neighbouring classes. Rows without test images are grey.
  """
  order = np.argsort(-class_counts, kind="stable")
  named = len(order) <= _NAMED
  shares = _shares(confusion, order, len(order) if named else _BLOCKS)
  side = max(4.4, 2.2 + 0.155 * len(order)) if named else 5.2
  figure, axis = style.make(size=(side + 0.8, side))
  colors = colormaps["Blues"].with_extremes(bad="#dddddd")
  image = axis.imshow(shares, cmap=colors, norm=PowerNorm(0.5, 0, 100), interpolation="nearest")
  figure.colorbar(image, label="% of the row's test images", shrink=0.7, ticks=(0, 1, 5, 20, 50, 100))
  axis.grid(visible=False)
  if named:
    names = [style.name(class_names[c]) for c in order]
    size = 8 if len(names) <= _NUMBERED else 6.5
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axis.set_yticks(range(len(names)), names, fontsize=size)
    axis.set(xlabel="predicted, largest class first", ylabel="true")
  else:
    _mark_groups(axis, class_counts, len(shares))
    axis.set(xlabel=f"predicted: {len(order):,} classes in {len(shares)} blocks, largest first", ylabel="true")
  if len(order) <= _NUMBERED:
    for (row, column), share in np.ndenumerate(shares):
      if share >= 0.5:
        axis.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=7,
                  color="white" if share > 40 else "black")
  return figure


def _shares(confusion: np.ndarray, order: np.ndarray, cells: int) -> np.ndarray:
  """[cells cells]: the sums of blocks in per cent of their rows, NaN for a row without test images."""
  block = np.empty(len(order), np.int64)
  block[order] = np.arange(len(order)) * cells // len(order)
  rows, columns = np.nonzero(confusion)  # far fewer than the cells of a matrix of thousands of classes
  counts = np.zeros((cells, cells), np.int64)
  np.add.at(counts, (block[rows], block[columns]), confusion[rows, columns])
  with np.errstate(invalid="ignore"):
    return 100 * counts / counts.sum(axis=1, keepdims=True)


def _mark_groups(axis, class_counts: np.ndarray, cells: int) -> None:
  """Lines between many, medium and few, and their names in the place of class names; close ones share a place."""
  start, ticks = 0.0, {}
  for group, classes in longtail.shot_groups(class_counts).items():
    end = start + len(classes) * cells / len(class_counts)
    if len(classes):
      name, place = f"{group} ({len(classes):,})", (start + end) / 2 - 0.5
      if ticks and place - max(ticks.values()) < _APART * cells:
        before, there = ticks.popitem()
        ticks[f"{before}\n{name}"] = (there + place) / 2
      else:
        ticks[name] = place
      if start:
        axis.axhline(start - 0.5, color="#b2182b", linewidth=0.7)
        axis.axvline(start - 0.5, color="#b2182b", linewidth=0.7)
    start = end
  # A name that stands alone has its count below it, since it is narrower so.
  names = [name if "\n" in name else name.replace(" ", "\n") for name in ticks]
  axis.set_xticks(list(ticks.values()), names)
  axis.set_yticks(list(ticks.values()), names)
