"""How sure a model is and how sure its numbers are: calibration, ranking, confidence intervals. NumPy only."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from ltjax.data.longtail import shot_groups

BINS = 15
_DRAWS, _AT_ONCE = 1000, 100  # of the bootstrap; all draws of 8,142 classes at once take 0.12 GB
_NORMAL = 1.959964  # standard deviations around the mean that hold 95 % of a normal distribution


class Reliability(NamedTuple):
  """Examples by their confidence, in bins of equal width: how many, how confident and how often right, each [bins].

  Means are NaN in an empty bin.
  """

  counts: np.ndarray
  confidence: np.ndarray
  accuracy: np.ndarray

  @property
  def error(self) -> float:
    """The expected calibration error: sum over bins of count / n * |accuracy - confidence|."""
    gaps = np.abs(np.nan_to_num(self.accuracy - self.confidence))
    return float((self.counts * gaps).sum() / self.counts.sum())


def reliability(confidence: Float[np.ndarray, "n"], right: Bool[np.ndarray, "n"], bins: int = BINS) -> Reliability:
  """Groups examples into `bins` bins of equal width by their confidence, the largest probability.

  References:
    Guo et al., `On Calibration of Modern Neural Networks <https://arxiv.org/abs/1706.04599>`_, 2017, equations 2, 3.

  >>> round(reliability(np.array([0.9, 0.9, 0.6]), np.array([True, False, True])).error, 3)
  0.4
  """
  index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
  counts = np.bincount(index, minlength=bins)
  with np.errstate(invalid="ignore"):
    means = [np.bincount(index, values, bins) / counts for values in (confidence, right)]
  return Reliability(counts, *means)


def one_vs_rest_auc(labels: Int[np.ndarray, "n"], own: Float[np.ndarray, "n"], scores: Float[np.ndarray, "m c"],
                    places: Int[np.ndarray, "m"]) -> Float[np.ndarray, "c"]:
  """How well the score of each class separates its examples from those of all other classes.

  AUC_c = P(s_c(positive) > s_c(negative)) + P(s_c(positive) = s_c(negative)) / 2

  Args:
    labels: classes of all examples, [n].
    own: each example's score of its own class, [n].
    scores: of the examples `places`, which serve as negatives: all of them, or a sample, [m c].
    places: their indices, [m].

  Returns:
    [c], NaN for a class without positives or negatives.
  """
  found, order = np.full(scores.shape[1], np.nan), np.argsort(labels, kind="stable")
  ends = np.cumsum(np.bincount(labels, minlength=scores.shape[1]))
  for c, positives in enumerate(np.split(order, ends[:-1])):
    negatives = np.sort(scores[labels[places] != c, c])
    if len(positives) and len(negatives):
      below, upto = (np.searchsorted(negatives, own[positives], side=side) for side in ("left", "right"))
      found[c] = (below + upto).mean() / (2 * len(negatives))
  return found


def intervals(right: Int[np.ndarray, "c"], tested: Int[np.ndarray, "c"], class_counts: Int[np.ndarray, "c"],
              seed: int = 0) -> dict[str, tuple[float, float]]:
  """95 % bootstrap intervals of "overall", "many", "medium", "few" and "balanced": test images drawn class by class.

  Drawing n_c images of class c anew makes the number of right ones binomial(n_c, right_c / n_c), so that number is
  drawn. Other training runs are not in these intervals, only other test sets.

  Args:
    right: test images of each class that were predicted right, [c].
    tested: test images of each class, [c]; a class without any enters no mean.
    class_counts: training images of each class, [c].
    seed: of the draws.
  """
  there, generator = np.flatnonzero(tested), np.random.default_rng(seed)
  groups = {name: np.isin(there, classes) for name, classes in shot_groups(class_counts).items()}
  groups = dict(balanced=np.full(len(there), True)) | {name: group for name, group in groups.items() if group.any()}
  found = {name: [] for name in ("overall", *groups)}
  for _ in range(0, _DRAWS, _AT_ONCE):
    rates = generator.binomial(tested[there], right[there] / tested[there], (_AT_ONCE, len(there))) / tested[there]
    found["overall"].append(rates @ (tested[there] / tested.sum()))
    for name, group in groups.items():
      found[name].append(rates[:, group].mean(axis=1))
  return {name: tuple(map(float, np.quantile(np.concatenate(parts), (0.025, 0.975)))) for name, parts in found.items()}


def wilson(right: Int[np.ndarray, "c"], tested: Int[np.ndarray, "c"]) -> tuple[np.ndarray, np.ndarray]:
  """The 95 % interval (low [c], high [c]) of each class's accuracy, also of few images; 0 to 1 without any.

  References:
    Wilson, `Probable Inference, the Law of Succession, and Statistical Inference`, 1927.

  >>> [values.round(3).tolist() for values in wilson(np.array([3, 0]), np.array([3, 0]))]
  [[0.438, 0.0], [1.0, 1.0]]
  """
  n = np.maximum(tested, 1)
  z, share = _NORMAL**2 / n, right / n
  middle, half = share + z / 2, np.sqrt(z * (share * (1 - share) + z / 4))
  low, high = np.clip((middle - half) / (1 + z), 0, 1), np.clip((middle + half) / (1 + z), 0, 1)
  return np.where(tested > 0, low, 0.0), np.where(tested > 0, high, 1.0)
