"""Which example is at which position of which batch: a pure function of (seed, stage, step).

It does not depend on devices or processes, so a run resumes exactly from one integer, on any machine.
"""

from collections.abc import Callable, Sequence

import numpy as np

from ltjax.data import prng
from ltjax.data.samplers import Cycle
from ltjax.schedules import Clock

# Clock -> class probabilities, a cycle over the classes, or None: a permutation.
Sampler = Callable[[Clock], np.ndarray] | Cycle | None


class Order:
  """Example indices of every batch of a stage, from one stream of examples or, for two-branch networks, from several.

  Without a sampler an epoch is a permutation of the data. Batches have one static shape, so the epoch drops its last
  N mod B examples; the next epoch permutes all of them again. With probabilities every position is an independent draw
  with replacement: a class by its probability, then one of its examples uniformly, as `torch.multinomial` over
  per-sample weights does. With a cycle the batches are consecutive parts of one endless sequence.
  The last sampler draws from `others`, labels of further examples, if there are any; their indices follow those of
  `labels`.
  """

  def __init__(self, labels: np.ndarray, num_classes: int, *, batch_size: int, epochs: int, seed: int, stage: str,
               samplers: Sequence[Sampler] = (None,), draws: Sequence[int] = (),
               others: np.ndarray | None = None):
    self.epochs, self.batch_size, self.steps_per_epoch = epochs, batch_size, len(labels) // batch_size
    # Examples that fit into no batch of an epoch. Only a permutation leaves any out.
    self.dropped = len(labels) % batch_size if None in samplers else 0
    pools = [(labels, 0)] * len(samplers)
    if others is not None:
      pools[-1] = others, len(labels)
    self._streams = [
        _Stream(first + np.argsort(own, kind="stable").astype(np.int32), np.bincount(own, minlength=num_classes),
                batch_size, seed, (stage, "order", *["branch"] * number), sampler)
        for number, (sampler, (own, first)) in enumerate(zip(samplers, pools, strict=True))]
    self._draws = tuple(draws) or tuple(range(len(self._streams)))  # the stream of each column

  @property
  def steps(self) -> int:
    """Length of the stage in steps."""
    return self.steps_per_epoch * self.epochs

  def clock(self, step: int) -> Clock:
    """The clock that schedules read at `step`."""
    return Clock(step, self.steps_per_epoch, self.epochs)

  def batch(self, step: int) -> np.ndarray:
    """int32 [batch_size], or [batch_size columns] where there are several: the examples of batch `step`."""
    batches = [stream.batch(self.clock(step)) for stream in self._streams]
    return batches[0] if len(self._draws) == 1 else np.stack([batches[stream] for stream in self._draws], axis=-1)


class _Stream:
  """One stream of examples."""

  def __init__(self, by_class: np.ndarray, counts: np.ndarray, batch_size: int, seed: int, names: tuple[str, ...],
               sampler: Sampler):
    self._by_class, self._counts, self._starts = by_class, counts, np.cumsum(counts) - counts
    self._batch_size, self._seed, self._names, self._sampler = batch_size, seed, names, sampler
    self._epoch, self._permutation = -1, None

  def batch(self, clock: Clock) -> np.ndarray:
    if self._sampler is None:
      return self._permuted(clock)
    if isinstance(self._sampler, Cycle):
      positions = clock.step * self._batch_size + np.arange(self._batch_size)
      classes, within = self._sampler.at(positions, self._shuffled)
    else:
      classes, within = self._drawn(clock)
    return self._by_class[self._starts[classes] + within]

  def _drawn(self, clock: Clock) -> tuple[np.ndarray, np.ndarray]:
    draws = prng.host_uniform(self._seed, *self._names, counter=clock.step, size=2 * self._batch_size)
    edges = np.cumsum(self._sampler(clock))
    # Divided by its last entry, the sum ends at exactly 1, so no draw falls behind the last class.
    classes = np.searchsorted(edges / edges[-1], draws[: self._batch_size], side="right")
    return classes, (draws[self._batch_size :] * self._counts[classes]).astype(np.int64)

  def _permuted(self, clock: Clock) -> np.ndarray:
    if clock.epoch != self._epoch:
      # Sorting raw words instead of numpy's shuffle: numpy promises only the words for ever.
      words = prng.host_words(self._seed, *self._names, counter=clock.epoch, size=len(self._by_class))
      self._epoch, self._permutation = clock.epoch, np.argsort(words, kind="stable").astype(np.int32)
    number = clock.step % clock.steps_per_epoch
    return self._permutation[number * self._batch_size : (number + 1) * self._batch_size]

  def _shuffled(self, name: str, counter: int, size: int) -> np.ndarray:
    words = prng.host_words(self._seed, *self._names, name, counter=counter, size=size)
    return np.argsort(words, kind="stable")
