"""Which example is at which place of which batch: a pure function of (seed, stage, step).

It does not know devices or processes, so a run resumes exactly from one integer and on any machine.
"""

from collections.abc import Callable

import numpy as np

from ltjax import prng
from ltjax.schedules import Clock


class Order:
  """Example indices of every batch of a stage.

  Without probabilities an epoch is a permutation of the data (its last N mod B examples are left for the next epochs'
  permutations, as static shapes want). With probabilities every place is an independent draw with replacement: a class
  by its probability, then one of its examples uniformly, as `torch.multinomial` over per-sample weights does.
  """

  def __init__(self, labels: np.ndarray, num_classes: int, *, batch_size: int, epochs: int, seed: int, stage: str,
               probabilities: Callable[[Clock], np.ndarray] | None = None):
    self.batch_size, self.epochs, self._names = batch_size, epochs, (stage, "order")
    self.steps_per_epoch = len(labels) // batch_size
    self._seed, self._size, self._probabilities = seed, len(labels), probabilities
    self._by_class = np.argsort(labels, kind="stable").astype(np.int32)
    self._counts = np.bincount(labels, minlength=num_classes)
    self._starts = np.cumsum(self._counts) - self._counts
    self._epoch, self._permutation = -1, None

  @property
  def steps(self) -> int:
    """Length of the stage in steps."""
    return self.steps_per_epoch * self.epochs

  def clock(self, step: int) -> Clock:
    """The clock that schedules read at `step`."""
    return Clock(step, self.steps_per_epoch, self.epochs)

  def batch(self, step: int) -> np.ndarray:
    """int32 [batch_size]: the examples of batch `step`."""
    if self._probabilities is None:
      return self._permuted(step)
    draws = prng.host_uniform(self._seed, *self._names, counter=step, size=2 * self.batch_size)
    edges = np.cumsum(self._probabilities(self.clock(step)))
    classes = np.searchsorted(edges / edges[-1], draws[: self.batch_size], side="right")
    within = (draws[self.batch_size :] * self._counts[classes]).astype(np.int64)
    return self._by_class[self._starts[classes] + within]

  def _permuted(self, step: int) -> np.ndarray:
    epoch, place = divmod(step, self.steps_per_epoch)
    if epoch != self._epoch:
      words = prng.host_words(self._seed, *self._names, counter=epoch, size=self._size)
      self._epoch, self._permutation = epoch, np.argsort(words, kind="stable").astype(np.int32)
    return self._permutation[place * self.batch_size : (place + 1) * self.batch_size]
