"""What an evaluation counts: a confusion matrix, or, for thousands of classes, only what accuracies are made of."""

from typing import Any, NamedTuple

import numpy as np

from ltjax.data import longtail

# With more classes there is no matrix: iNaturalist's 8,142 classes would take 265 MB a device, and 65 KB without.
LARGEST_MATRIX = 1000


class Tally(NamedTuple):
  """Counts of a test set by true class.

  Args:
    right: examples that were predicted right, [c].
    total: all examples, [c].
  """

  right: Any
  total: Any


def zeros(classes: int) -> np.ndarray | Tally:
  """The counts before the first batch, int32: a matrix [c c], or a `Tally` where that would be too large."""
  if classes <= LARGEST_MATRIX:
    return np.zeros((classes, classes), np.int32)
  return Tally(np.zeros(classes, np.int32), np.zeros(classes, np.int32))


def add(counts, labels, predictions, valid):
  """`counts` plus the valid ones of a batch of labels, predictions and flags [b], inside jit."""
  ones = valid.astype(np.int32)
  if isinstance(counts, Tally):
    right = ones * (predictions == labels)
    return Tally(counts.right.at[labels].add(right), counts.total.at[labels].add(ones))
  return counts.at[labels, predictions].add(ones)


def count(labels: np.ndarray, predictions: np.ndarray, classes: int) -> Tally:
  """The `Tally` of labels and predictions [n] on the host, int64."""
  right = np.bincount(labels[labels == predictions], minlength=classes)
  return Tally(right, np.bincount(labels, minlength=classes))


def matrix(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
  """The confusion matrix of labels and predictions [n] on the host, int32: of 8,142 classes int64 takes half a GiB."""
  counts = np.zeros((classes, classes), np.int32)
  np.add.at(counts, (labels, predictions), 1)
  return counts


def by_class(counts: np.ndarray | Tally) -> Tally:
  """A confusion matrix [c c] as the `Tally` that it contains; a `Tally` as it is."""
  if isinstance(counts, Tally):
    return counts
  counts = np.asarray(counts)
  return Tally(np.diagonal(counts), counts.sum(axis=1))


def class_means(values: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
  """The mean of each class' `values` [n], float64 [c]; NaN for a class without any.

  >>> class_means(np.array([1.0, 3.0, 5.0]), np.array([0, 0, 2]), 3).tolist()
  [2.0, nan, 5.0]
  """
  with np.errstate(invalid="ignore"):
    return np.bincount(labels, values, classes) / np.bincount(labels, minlength=classes)


def group_means(of_classes: np.ndarray, class_counts: np.ndarray) -> dict[str, float | None]:
  """The mean of the many-, medium- and few-shot classes' values [c], for JSON: None where a group has none.

  >>> group_means(np.array([2.0, np.nan, 5.0, 7.0]), np.array([500, 50, 5, 4]))
  {'many': 2.0, 'medium': None, 'few': 6.0}
  """
  found = {group: of_classes[members] for group, members in longtail.shot_groups(class_counts).items()}
  there = {group: values[~np.isnan(values)] for group, values in found.items()}
  return {group: float(values.mean()) if values.size else None for group, values in there.items()}
