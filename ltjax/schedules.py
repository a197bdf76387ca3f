"""Schedules: clock -> number. A config may give one of these instead of a number for any hyper-parameter.

Schedules run on the host, and their values enter the compiled step as arrays, so a new value compiles nothing.
Epochs count from 0, and every schedule is constant within an epoch, as in all the released code.
"""

import math
from typing import Annotated, NamedTuple

__all__ = ["constant", "cosine", "linear", "multi_step", "parabolic", "rising_cosine", "sine", "switch"]
NonNegative = Annotated[float, "[0, inf)"]
NonNegatives = Annotated[tuple, "[0, inf)"]


class Clock(NamedTuple):
  """The progress of a stage."""

  step: int
  steps_per_epoch: int
  epochs: int

  @property
  def epoch(self) -> int:
    """The number of completed epochs."""
    return self.step // self.steps_per_epoch


def _warm(clock: Clock, warmup: float) -> float:
  return min(1.0, (clock.epoch + 1) / warmup) if warmup > 0 else 1.0


def constant(clock: Clock, *, value: float) -> float:
  """Returns the same `value` at every step."""
  del clock
  return value


def multi_step(clock: Clock, *, base: float, at: NonNegatives, factors: NonNegatives, warmup: NonNegative = 0) -> float:
  """`base * factors[k]` from epoch `at[k]` on, after a linear warm-up base * (e + 1) / warmup over the first epochs.

  Factors are relative to `base`, not to each other. LDAM-DRW and FBL use (0.01, 1e-4); GCL, KPS and MiSLAS use
  (0.1, 0.01); all at (160, 180) of 200 epochs with 5 epochs of warm-up.

  >>> multi_step(Clock(step=170, steps_per_epoch=1, epochs=200), base=0.1, at=(160, 180), factors=(0.1, 0.01))
  0.010000000000000002
  """
  passed = sum(clock.epoch >= epoch for epoch in at)
  return base * (factors[passed - 1] if passed else _warm(clock, warmup))


def cosine(clock: Clock, *, base: float, warmup: NonNegative = 0) -> float:
  """base * (1 + cos(pi e / epochs)) / 2: the last epoch is small but not zero (GCL stage 2, MiSLAS)."""
  return _warm(clock, warmup) * base * 0.5 * (1 + math.cos(math.pi * clock.epoch / clock.epochs))


def linear(clock: Clock, *, start: float = 0.0, end: float = 1.0, shorten: NonNegative = 1) -> float:
  """start + (end - start) e / (epochs - shorten): with shorten=1 the last epoch reaches `end` (progressive sampling).

  FBL's linear increase and decrease use shorten=0.
  """
  return start + (end - start) * _progress(clock, shorten)


def sine(clock: Clock, *, start: float = 0.0, end: float = 1.0, shorten: NonNegative = 0) -> float:
  """start + (end - start) sin(pi e / 2 (epochs - shorten)): fast at first (FBL's sine increase)."""
  return start + (end - start) * math.sin(math.pi / 2 * _progress(clock, shorten))


def rising_cosine(clock: Clock, *, start: float = 0.0, end: float = 1.0, shorten: NonNegative = 0) -> float:
  """start + (end - start) (1 - cos(pi e / 2 (epochs - shorten))): slow at first (FBL's cosine increase)."""
  return start + (end - start) * (1 - math.cos(math.pi / 2 * _progress(clock, shorten)))


def parabolic(clock: Clock, *, start: float = 0.0, end: float = 1.0, shorten: NonNegative = 0) -> float:
  """start + (end - start) (e / (epochs - shorten))^2: FBL's curriculum with shorten=10, BBN's alpha from 1 to 0.

  With shorten=10 the last epochs exceed `end`, as in the released code of FBL: 1.097 in the last of 200 epochs.
  """
  return start + (end - start) * _progress(clock, shorten) ** 2


def _progress(clock: Clock, shorten: float) -> float:
  return clock.epoch / max(clock.epochs - shorten, 1)


def switch(clock: Clock, *, at: NonNegative, before: float = 0.0, after: float = 1.0) -> float:
  """`before` until epoch `at`, `after` from then on (deferred re-weighting, the KPS gradient adjustment)."""
  return after if clock.epoch >= at else before
