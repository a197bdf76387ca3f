"""What a trained model says of every test image, in bounded memory: the facts behind the page's numbers and figures."""

import inspect
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from ltjax.errors import DataError
from ltjax.report import statistics
from ltjax.schedules import Clock

_HELD = 50_000 * 1_000  # scores that are held at a time, 0.2 GB: ImageNet's test set, or 6,140 images of 8,142 classes
_SHOWN_CLASSES, _SHOWN_IMAGES = 10, 40  # whose features are kept for a picture


class Predictions(NamedTuple):
  """Of each of n test images, in order.

  Attributes:
    labels: the class, int [n].
    predicted: the class that the model says, int [n].
    confidence: the probability that it gives it, [n].
    true_probability: the probability that it gives the true class, [n].
    feature_norms: the length of the feature before the head, [n].
    auc: one-vs-rest AUC of each class, [c], NaN where it has none.
    negatives: images that the AUC takes as negatives: n, or a sample.
    places: the images whose features are kept, of at most 10 classes, [m].
    features: those features, [m d].
  """

  labels: np.ndarray
  predicted: np.ndarray
  confidence: np.ndarray
  true_probability: np.ndarray
  feature_norms: np.ndarray
  auc: np.ndarray
  negatives: int
  places: np.ndarray
  features: np.ndarray

  @property
  def right(self) -> np.ndarray:
    """Whether the model is right, bool [n]."""
    return self.labels == self.predicted


def of_stage(stage, variables: dict) -> Predictions:
  """The predictions of a stage's model on the test set; of several processes, each calls it.

  Raises:
    DataError: probabilities that are not finite.
  """
  images, labels = stage.dataset.test
  size, classes = len(labels), len(stage.class_counts)
  generator = np.random.default_rng(0)
  sample = np.sort(generator.permutation(size)[:max(1, _HELD // classes)])
  places = shown_places(labels, stage.class_counts)
  scores, features = np.empty((len(sample), classes), np.float32), []
  predicted = np.empty(size, np.int64)
  confidence, own, norms = (np.empty(size, np.float32) for _ in range(3))
  for part, found in _batches(stage, variables, images, size):
    logits = found["logits"]
    rows = np.arange(len(part))
    predicted[part] = logits.argmax(axis=1)
    confidence[part], own[part] = logits[rows, predicted[part]], logits[rows, labels[part]]
    norms[part] = np.linalg.norm(found["features"], axis=1)
    inside = (sample >= part[0]) & (sample <= part[-1])
    scores[inside] = logits[sample[inside] - part[0]]
    features.append(found["features"][places[(places >= part[0]) & (places <= part[-1])] - part[0]])
  if not np.isfinite(confidence).all():
    raise DataError(f"the model gives {(~np.isfinite(confidence)).sum():,} test images probabilities that are not "
                    "finite")
  return Predictions(labels, predicted, np.exp(confidence), np.exp(own), norms,
                     statistics.one_vs_rest_auc(labels, own, scores, sample), len(sample), places,
                     np.concatenate(features))


def _batches(stage, variables: dict, images, size: int) -> Iterator[tuple[np.ndarray, dict]]:
  """(indices, {"logits": log-probabilities [b c], "features": [b d]}) of all images, in order."""
  scale, first = logit_scale(stage), 0
  for found, valid in stage.extractor(variables).stream(images, np.arange(size)):
    logits, features = (np.asarray(found[key], np.float32)[valid] for key in ("logits", "features"))
    logits *= scale  # in place, as the rows of thousands of classes are large
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    yield np.arange(first, first + len(logits)), dict(logits=logits, features=features)
    first += len(logits)


def shown_places(labels: np.ndarray, class_counts: np.ndarray) -> np.ndarray:
  """At most 40 images of each of at most 10 classes, ascending: from the largest to the smallest class that has some.

  Classes with five images at least come first, as fewer show no cluster.
  """
  tested = np.bincount(labels, minlength=len(class_counts))
  order = np.argsort(-class_counts, kind="stable")
  there = order[tested[order] >= min(5, tested.max())]
  chosen = there[np.unique(np.linspace(0, len(there) - 1, _SHOWN_CLASSES).round().astype(int))]
  return np.sort(np.concatenate([np.flatnonzero(labels == c)[:_SHOWN_IMAGES] for c in chosen]))


def logit_scale(stage) -> float:
  """The factor that makes logits of a head: the scale that the stage's adjustment gives cosines, else 1."""
  call = stage.objective.adjust
  if call is None or "scale" not in call.arguments:
    return 1.0
  last = Clock(stage.spec.epochs - 1, 1, stage.spec.epochs)  # schedules are at their ends
  default = inspect.signature(call.function).parameters["scale"].default
  return float((dict(scale=default) | call.constants | call.at(last))["scale"])


def class_vector_norms(stage, variables: dict) -> np.ndarray | None:
  """The norms of the classifier's class vectors, [c]; None for a head without any, or to which they mean nothing."""
  head = stage.model.head
  own = {kind: tree["head"] for kind, tree in jax.device_get(variables).items() if "head" in tree}
  kernel = own.get("params", {}).get("kernel")
  if getattr(kernel, "ndim", 0) != 2 or kernel.shape[1] != len(stage.class_counts) or getattr(head, "takes_maps", 0):
    return None
  features = np.random.default_rng(0).standard_normal((2, kernel.shape[0])).astype(np.float32)
  doubled = own | dict(params=own["params"] | dict(kernel=2 * kernel))
  before, after = (head.apply(each, features, train=False) for each in (own, doubled))
  return None if np.allclose(before, after, rtol=1e-3, atol=1e-5) else np.linalg.norm(kernel, axis=0)
