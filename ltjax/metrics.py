"""Accuracies from an integer confusion matrix: rows are true classes, columns predictions. NumPy only.

Every function that takes a matrix also takes the `Tally` in it, right and all examples of each class, which is what
there is for more classes than a matrix has room for. Accuracies are fractions, not percent. Integer counts add up
exactly over batches, devices and processes, in any order.
"""

import numpy as np
from jaxtyping import Float, Int

from ltjax.data.longtail import shot_groups
from ltjax.data.tally import Tally, by_class
from ltjax.errors import DataError

__all__ = ["balanced_accuracy", "confusion_matrix", "f1_scores", "geometric_mean", "group_accuracy", "harmonic_mean",
           "macro_f1", "measured", "overall_accuracy", "per_class_accuracy", "scores"]


def confusion_matrix(
    labels: Int[np.ndarray, "n"], predictions: Int[np.ndarray, "n"], num_classes: int
) -> Int[np.ndarray, "c c"]:
  """Counts how often an example of class i was predicted as class j.

  Args:
    labels: true classes in [0, c), [n].
    predictions: predicted classes in [0, c), [n].
    num_classes: c.

  Returns:
    Counts, int64 [c, c]. Matrices of parts of a test set add up to the matrix of the complete set.

  Raises:
    DataError: arrays of different shapes, or a class out of range.

  >>> confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
  [[1, 1], [0, 1]]
  """
  labels, predictions = np.asarray(labels), np.asarray(predictions)
  if labels.ndim != 1 or labels.shape != predictions.shape:
    raise DataError(f"labels and predictions must be lists of one length, got {labels.shape} and {predictions.shape}.")
  for name, classes in (("labels", labels), ("predictions", predictions)):
    outside = np.flatnonzero((classes < 0) | (classes >= num_classes))
    if outside.size:
      raise DataError(f"{name}[{outside[0]}] is {classes[outside[0]]}, but classes go from 0 to {num_classes - 1}.")
  pairs = labels.astype(np.int64) * num_classes + predictions
  return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def overall_accuracy(confusion: Int[np.ndarray, "c c"] | Tally) -> float:
  """The fraction of examples predicted correctly.

  sum_c confusion_cc / sum confusion

  Args:
    confusion: counts, [c, c].

  Returns:
    A fraction.

  Raises:
    DataError: no examples at all.

  >>> overall_accuracy(np.array([[3, 1], [2, 2]]))
  0.625
  """
  right, total = by_class(confusion)
  if not total.sum():
    raise DataError("the confusion matrix is empty: there was no test example to measure an accuracy on.")
  return float(right.sum() / total.sum())


def per_class_accuracy(confusion: Int[np.ndarray, "c c"] | Tally) -> Float[np.ndarray, "c"]:
  """The fraction of each class's examples predicted correctly.

  confusion_cc / sum_j confusion_cj, and 0 for a class without test examples

  Args:
    confusion: counts, [c, c].

  Returns:
    Fractions, float64 [c].

  >>> per_class_accuracy(np.array([[3, 1], [0, 0]])).tolist()
  [0.75, 0.0]
  """
  right, total = by_class(confusion)
  return right / np.maximum(total, 1)


def group_accuracy(confusion: Int[np.ndarray, "c c"] | Tally, class_counts: Int[np.ndarray, "c"]) -> dict[str, float]:
  """Overall accuracy, and the mean class accuracy of the many-, medium- and few-shot classes.

  Args:
    confusion: counts, [c, c].
    class_counts: training images of each class, in any order, [c].

  Returns:
    {"overall", "many", "medium", "few"} -> fractions. A class without test examples does not enter its group's mean,
    and a group without classes scores 0, as in the reference.

  Raises:
    DataError: no examples at all, or a different number of classes in the two arguments.

  References:
    Liu et al., `Large-Scale Long-Tailed Recognition in an Open World <https://arxiv.org/abs/1904.05160>`_, 2019;
    `shot_acc` in the code of Kang et al., 2020.

  >>> group_accuracy(np.array([[3, 1], [2, 2]]), np.array([500, 50]))
  {'overall': 0.625, 'many': 0.75, 'medium': 0.5, 'few': 0.0}
  """
  class_counts, shapes = np.asarray(class_counts), [np.shape(part) for part in by_class(confusion)]
  if shapes != [class_counts.shape] * 2 or np.shape(confusion)[-1] != len(class_counts):
    raise DataError(f"class_counts has {len(class_counts)} classes, but the confusion matrix is {np.shape(confusion)}.")
  accuracy, tested = per_class_accuracy(confusion), by_class(confusion).total > 0
  scores = {"overall": overall_accuracy(confusion)}
  for name, classes in shot_groups(class_counts).items():
    members = classes[tested[classes]]
    scores[name] = float(accuracy[members].mean()) if members.size else 0.0
  return scores


def measured(confusion: Int[np.ndarray, "c c"] | Tally) -> list[float | None]:
  """`per_class_accuracy` for JSON: None instead of 0 for a class without test examples.

  >>> measured(np.array([[3, 1], [0, 0]]))
  [0.75, None]
  """
  tested = by_class(confusion).total > 0
  return [float(accuracy) if there else None
          for accuracy, there in zip(per_class_accuracy(confusion), tested, strict=True)]


def balanced_accuracy(confusion: Int[np.ndarray, "c c"] | Tally) -> float:
  """The mean accuracy of the classes that have examples.

  >>> balanced_accuracy(np.array([[3, 1, 0], [0, 2, 2], [0, 0, 0]]))
  0.625
  """
  return float(_tested(confusion).mean())


def scores(confusion: Int[np.ndarray, "c c"] | Tally, class_counts: Int[np.ndarray, "c"]) -> dict[str, float | None]:
  """`group_accuracy` for results: None instead of 0 for a group without test examples.

  >>> scores(np.array([[3, 1], [2, 2]]), np.array([500, 50]))
  {'overall': 0.625, 'many': 0.75, 'medium': 0.5, 'few': None}
  """
  tested, found = by_class(confusion).total > 0, group_accuracy(confusion, class_counts)
  groups = shot_groups(class_counts)
  return {name: value if name not in groups or tested[groups[name]].any() else None for name, value in found.items()}


def f1_scores(confusion: Int[np.ndarray, "c c"]) -> Float[np.ndarray, "c"]:
  """The harmonic mean of precision and recall of each class.

  F1_c = 2 confusion_cc / (sum_j confusion_cj + sum_i confusion_ic), and 0 for a class that has and gets no example

  >>> f1_scores(np.array([[3, 1], [2, 2]])).round(3).tolist()
  [0.667, 0.571]
  """
  confusion = np.asarray(confusion)
  return 2 * np.diagonal(confusion) / np.maximum(confusion.sum(axis=1) + confusion.sum(axis=0), 1)


def macro_f1(confusion: Int[np.ndarray, "c c"]) -> float:
  """The mean F1 of the classes that have examples.

  >>> round(macro_f1(np.array([[3, 1], [2, 2]])), 3)
  0.619
  """
  return float(f1_scores(confusion)[np.asarray(confusion).sum(axis=1) > 0].mean())


def geometric_mean(confusion: Int[np.ndarray, "c c"]) -> float:
  """The geometric mean of the accuracies of the classes that have examples: 0 as soon as one class is never right.

  >>> round(geometric_mean(np.array([[3, 1], [2, 2]])), 3)
  0.612
  """
  accuracy = _tested(confusion)
  return float(np.exp(np.log(accuracy).mean())) if accuracy.all() else 0.0


def harmonic_mean(confusion: Int[np.ndarray, "c c"]) -> float:
  """The harmonic mean of the accuracies of the classes that have examples: 0 as soon as one class is never right.

  >>> round(harmonic_mean(np.array([[3, 1], [2, 2]])), 3)
  0.6
  """
  accuracy = _tested(confusion)
  return float(1 / (1 / accuracy).mean()) if accuracy.all() else 0.0


def _tested(confusion) -> np.ndarray:
  return per_class_accuracy(confusion)[by_class(confusion).total > 0]
