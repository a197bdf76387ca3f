"""Samplers: class counts -> the probability that a drawn example is of each class. NumPy, float64.

An example of class c has the probability p_c / n_c. Counts are positive and in any order. `class_aware` alone draws
nothing independently: it gives a cycle.
"""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Real

from ltjax.errors import ConfigError, DataError
from ltjax.losses.arguments import ranged

__all__ = [
  "cben",
  "class_aware",
  "class_balanced",
  "effective_number",
  "instance",
  "power",
  "progressive",
  "reverse",
  "square_root",
]


def _positive(class_counts: Real[np.ndarray, "c"]) -> Float[np.ndarray, "c"]:
  counts = np.asarray(class_counts, dtype=np.float64)
  if counts.ndim != 1 or not counts.size:
    raise DataError(f"class_counts must be one number a class, got an array of shape {counts.shape}.")
  bad = np.flatnonzero(~(np.isfinite(counts) & (counts > 0)))
  if bad.size:
    named = ", ".join(f"class {c} has {counts[c]:g}" for c in bad[:10])
    raise DataError(f"class_counts must be positive, but {named} ({bad.size} such classes of {counts.size}); a sampler "
                    "cannot draw from an empty class, so leave it out of the label set.")
  return counts


def _effective(counts: Float[np.ndarray, "c"], complement: Float[np.ndarray, "..."]) -> Float[np.ndarray, "c"]:
  """(1 - beta) / (1 - beta^n) from 1 - beta, without cancellation."""
  with np.errstate(divide="ignore"):  # beta = 0 is log 0 = -inf, and then exactly the right weight 1.
    return complement / -np.expm1(counts * np.log1p(-complement))


def _normalised(mass: Float[np.ndarray, "c"]) -> Float[np.ndarray, "c"]:
  return mass / mass.sum()


def instance(class_counts: Real[np.ndarray, "c"]) -> Float[np.ndarray, "c"]:
  """Every example alike: p_c = n_c / N, the training distribution.

  Args:
    class_counts: n, [c].

  Returns:
    Class probabilities, [c].

  >>> instance(np.array([3, 1])).tolist()
  [0.75, 0.25]
  """
  return power(class_counts, q=1.0)


def class_balanced(class_counts: Real[np.ndarray, "c"]) -> Float[np.ndarray, "c"]:
  """Every class alike: p_c = 1 / C.

  Args:
    class_counts: n, [c].

  Returns:
    Class probabilities, [c].

  References:
    Kang et al., `Decoupling Representation and Classifier <https://arxiv.org/abs/1910.09217>`_, 2020, q = 0.

  >>> class_balanced(np.array([3, 1])).tolist()
  [0.5, 0.5]
  """
  return power(class_counts, q=0.0)


def square_root(class_counts: Real[np.ndarray, "c"]) -> Float[np.ndarray, "c"]:
  """Between the two: p_c proportional to sqrt(n_c).

  Args:
    class_counts: n, [c].

  Returns:
    Class probabilities, [c].

  References:
    Kang et al., 2020, q = 1/2.

  >>> square_root(np.array([9, 1])).tolist()
  [0.75, 0.25]
  """
  return power(class_counts, q=0.5)


def power(class_counts: Real[np.ndarray, "c"], *, q: float) -> Float[np.ndarray, "c"]:
  """p_c proportional to n_c^q.

  Args:
    class_counts: n, [c].
    q: 1 is `instance`, 0 is `class_balanced`, -1 is `reverse`.

  Returns:
    Class probabilities, [c].

  Raises:
    ConfigError: q is not finite.

  References:
    Kang et al., 2020.

  >>> power(np.array([2, 1]), q=2.0).tolist()
  [0.8, 0.2]
  """
  if not np.isfinite(q):
    raise ConfigError(f"power: q must be finite, got {q}.")
  counts = _positive(class_counts)
  # Relative to the count with the largest mass, so that no q overflows.
  return _normalised((counts / (counts.max() if q >= 0 else counts.min())) ** q)


@ranged
def effective_number(
    class_counts: Real[np.ndarray, "c"], *, beta: Annotated[float, "[0, 1)"] = 0.9999,
) -> Float[np.ndarray, "c"]:
  """Every example of class c weighs (1 - beta) / (1 - beta^n_c): p_c proportional to n_c times that.

  Args:
    class_counts: n, [c].
    beta: in [0, 1); 0 is `instance`, and towards 1 it becomes `class_balanced`.

  Returns:
    Class probabilities, [c].

  Raises:
    ConfigError: beta outside [0, 1).

  References:
    Cui et al., `Class-Balanced Loss Based on Effective Number of Samples <https://arxiv.org/abs/1901.05555>`_, 2019,
    as sampling weights in the GCL code.

  >>> effective_number(np.array([3, 1]), beta=0.0).tolist()
  [0.75, 0.25]
  """
  counts = _positive(class_counts)
  return _normalised(counts * _effective(counts, np.float64(1 - beta)))


@ranged
def cben(
    class_counts: Real[np.ndarray, "c"], *, a: Annotated[float, "[0, 1)"] = 0.999,
    b: Annotated[float, "[0, 1)"] = 0.0009,
) -> Float[np.ndarray, "c"]:
  """Class-based effective number: as `effective_number`, with a beta of its own for each class.

  beta_c = a + b (delta_c - min delta) / (max delta - min delta) with delta_c = log n_max - log n_c
  p_c proportional to n_c (1 - beta_c) / (1 - beta_c^n_c)

  Args:
    class_counts: n, [c].
    a: beta of the most frequent class, in [0, 1).
    b: added to it for the rarest class, >= 0, a + b < 1.

  Returns:
    Class probabilities, [c]. Equal counts have no rarest class: beta_c = a.

  Raises:
    ConfigError: a or b out of its range.

  References:
    Li et al., `Long-tailed Visual Recognition via Gaussian Clouded Logit Adjustment
    <https://arxiv.org/abs/2305.11733>`_, 2022: the thesis's equations 5.13 to 5.15, as in the FBL code. The GCL code
    has a = 0.9999 and b = 1e-5, almost `effective_number`, and computes beta in float32 (3e-5 relative error).

  >>> cben(np.array([5000, 500, 50])).round(3).tolist()
  [0.701, 0.159, 0.14]
  """
  if not (0 <= a < 1 and b >= 0 and a + b < 1):
    raise ConfigError(f"cben: 0 <= a, 0 <= b and a + b < 1 are needed, got a={a} and b={b}.")
  counts = _positive(class_counts)
  delta = np.log(counts.max() / counts)
  rarity = delta / delta.max() if delta.max() > 0 else delta
  return _normalised(counts * _effective(counts, (1 - a) - b * rarity))


@ranged
def progressive(class_counts: Real[np.ndarray, "c"], *, progress: Annotated[float, "[0, 1]"]) -> Float[np.ndarray, "c"]:
  """From `instance` to `class_balanced` over a stage.

  p_c = (1 - progress) n_c / N + progress / C

  Args:
    class_counts: n, [c].
    progress: in [0, 1], usually a schedule: epoch / (epochs - 1).

  Returns:
    Class probabilities, [c].

  Raises:
    ConfigError: progress outside [0, 1].

  References:
    Kang et al., 2020, with the authors' code going from 0 in the first epoch to 1 in the last.

  >>> progressive(np.array([3, 1]), progress=0.5).tolist()
  [0.625, 0.375]
  """
  return (1 - progress) * instance(class_counts) + progress * class_balanced(class_counts)


def reverse(class_counts: Real[np.ndarray, "c"]) -> Float[np.ndarray, "c"]:
  """The rarer the class, the likelier: p_c proportional to 1 / n_c.

  Args:
    class_counts: n, [c].

  Returns:
    Class probabilities, [c]. This is the class's probability, not the example's: that one goes with 1 / n_c^2.

  References:
    Zhou et al., `BBN: Bilateral-Branch Network <https://arxiv.org/abs/1912.02413>`_, 2020.

  >>> reverse(np.array([3, 1])).tolist()
  [0.25, 0.75]
  """
  return power(class_counts, q=-1.0)


# (name, counter, size) -> the places 0 ... size - 1 in a random order, a pure function of its arguments.
Permutation = Callable[[str, int, int], Int[np.ndarray, "size"]]


class Cycle(NamedTuple):
  """An endless sequence of examples that goes round the classes; what is where in it is computed, never remembered.

  In every round each class has its turn, in a fresh order, and shows its next `samples_per_class` examples; when a
  class has shown all it has, they come again in a fresh order.
  """

  class_counts: Int[np.ndarray, "c"]
  samples_per_class: int

  def at(self, places: Int[np.ndarray, "b"], permutation: Permutation) -> tuple[
      Int[np.ndarray, "b"], Int[np.ndarray, "b"]]:
    """The classes at `places` of the sequence, and which of its class each example is (0 to n_c - 1)."""
    turn, shown = np.divmod(places, self.samples_per_class)
    rounds, place = np.divmod(turn, len(self.class_counts))
    classes = np.empty(len(places), np.int64)
    for number in np.unique(rounds):
      inside = rounds == number
      classes[inside] = permutation("classes", int(number), len(self.class_counts))[place[inside]]
    # A class has had its turn once in each earlier round.
    lap, place = np.divmod(rounds * self.samples_per_class + shown, self.class_counts[classes])
    within = np.zeros(len(places), np.int64)
    laps, members = np.unique(np.stack([classes, lap]), axis=1, return_inverse=True)
    by_lap, sizes = np.argsort(members.ravel(), kind="stable"), np.bincount(members.ravel())
    for (c, number), inside in zip(laps.T.tolist(), np.split(by_lap, np.cumsum(sizes)[:-1]), strict=True):
      if self.class_counts[c] > 1:
        within[inside] = permutation(f"class{c}", number, int(self.class_counts[c]))[place[inside]]
    return classes, within


@ranged
def class_aware(class_counts: Real[np.ndarray, "c"], *, samples_per_class: Annotated[int, "[1, inf)"] = 4) -> Cycle:
  """The class-aware sampler of cRT: the classes in turn, some examples of one class after the other.

  Every class alike, as `class_balanced`, but without replacement: no example comes again before all of its class came,
  and no class before all others. The released code drops the rest of a turn at the end of an epoch; here it goes on.

  Args:
    class_counts: n, [c].
    samples_per_class: how many examples of a class come in a row.

  Returns:
    The `Cycle`.

  Raises:
    ConfigError: samples_per_class below 1.

  References:
    Kang et al., 2020: `ClassAwareSampler` of facebookresearch/classifier-balancing, num_samples_cls=4; from
    Shen et al., `Relay Backpropagation <https://arxiv.org/abs/1512.05830>`_, 2016.

  >>> cycle = class_aware(np.array([3, 1]), samples_per_class=2)
  >>> cycle.at(np.arange(4), lambda name, counter, size: np.arange(size))[0].tolist()
  [0, 0, 1, 1]
  """
  return Cycle(_positive(class_counts).astype(np.int64), samples_per_class)


# What a run does in place of independent draws from the probabilities.
instance.permutes = True  # an epoch is a permutation, so it draws without replacement
class_aware.cycles = True  # the result is a `Cycle`
