"""Figures as files, under the names that `ltjax.plots` had in 0.1; `figures` makes them."""

import pathlib
from collections.abc import Mapping

import numpy as np

from ltjax.report.figures import classes, confusion, features, training
from ltjax.report.figures.style import save


def training_curves(logs: Mapping[str, list[dict]], groups: tuple[str, ...], path: pathlib.Path) -> None:
  """Loss and accuracy against the epoch, stages side by side; `logs` are the lines of each stage's metrics.jsonl."""
  save(training.training_curves(logs, groups), path)


def accuracy_by_class_size(confusions: Mapping[str, np.ndarray], class_counts: np.ndarray,
                           class_names: tuple[str, ...], path: pathlib.Path) -> None:
  """Test accuracy of every class against its number of training images, of all stages."""
  save(classes.accuracy_by_class_size(confusions, class_counts, class_names), path)


def confusion_matrix(counts: np.ndarray, class_counts: np.ndarray, class_names: tuple[str, ...],
                     path: pathlib.Path) -> None:
  """A confusion matrix, classes from the largest to the smallest; of many classes, blocks of them."""
  save(confusion.confusion_matrix(counts, class_counts, class_names), path)


def activation_maps(found, class_names: tuple[str, ...], path: pathlib.Path) -> None:
  """Where a model sees the class of an image; `found` is an `activation_maps.Activations`."""
  save(features.activation_maps(found, class_names), path)


def long_tail(class_counts: np.ndarray, path: pathlib.Path) -> None:
  """Training images of every class, from the largest to the smallest."""
  save(classes.long_tail(class_counts), path)
