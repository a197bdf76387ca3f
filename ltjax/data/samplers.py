"""Samplers: class counts -> the probability of each class that the next example belongs to it. NumPy, float64.

Each example of class c has the probability p_c / n_c. Counts are positive and in any order. Only `class_aware` returns
a cycle instead, because its draws depend on each other.
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
    raise DataError(f"class_counts must be one number per class, got an array of shape {counts.shape}.")
  bad = np.flatnonzero(~(np.isfinite(counts) & (counts > 0)))
  if bad.size:
    named = ", ".join(f"class {c} has {counts[c]:g}" for c in bad[:10])
    raise DataError(f"class_counts must be positive, but {named} ({bad.size} such classes of {counts.size}); a sampler "
                    "cannot draw from an empty class, so leave it out of the label set.")
  return counts


def _effective(counts: Float[np.ndarray, "c"], complement: Float[np.ndarray, "..."]) -> Float[np.ndarray, "c"]:
  """Returns (1 - beta) / (1 - beta^n) from 1 - beta, without cancellation."""
  with np.errstate(divide="ignore"):  # beta = 0 gives log 0 = -inf, which leads to the exact weight 1
    return complement / -np.expm1(counts * np.log1p(-complement))


def _normalised(mass: Float[np.ndarray, "c"]) -> Float[np.ndarray, "c"]:
  return mass / mass.sum()


def instance(class_counts: Real[np.ndarray, "c"]) -> Float[np.ndarray, "c"]:
  """Draws every example with the same probability: p_c = n_c / N, the training distribution.

  Args:
    class_counts: n, [c].

  Returns:
    Class probabilities, [c].

  >>> instance(np.array([3, 1])).tolist()
  [0.75, 0.25]
  """
  return power(class_counts, q=1.0)


def class_balanced(class_counts: Real[np.ndarray, "c"]) -> Float[np.ndarray, "c"]:
  """Draws every class with the same probability: p_c = 1 / C.

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
  """Halfway between `instance` and `class_balanced`: p_c is proportional to sqrt(n_c).

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


@ranged
def power(class_counts: Real[np.ndarray, "c"], *, q: Annotated[float, "(-inf, inf)"]) -> Float[np.ndarray, "c"]:
  """Draws class c with a probability proportional to n_c^q.

  Args:
    class_counts: n, [c].
    q: 1 is `instance`, 0 is `class_balanced`, -1 is `reverse`.

  Returns:
    Class probabilities, [c].

  Raises:
    ConfigError: an infinite q.

  References:
    Kang et al., 2020.

  >>> power(np.array([2, 1]), q=2.0).tolist()
  [0.8, 0.2]
  """
  counts = _positive(class_counts)
  # Relative to the count with the largest mass, so that no q overflows.
  return _normalised((counts / (counts.max() if q >= 0 else counts.min())) ** q)


@ranged
def effective_number(
    class_counts: Real[np.ndarray, "c"], *, beta: Annotated[float, "[0, 1)"] = 0.9999,
) -> Float[np.ndarray, "c"]:
  """Weights each example of class c by (1 - beta) / (1 - beta^n_c): p_c is proportional to n_c times that weight.

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
  """Class-based effective number: `effective_number` with a separate beta for each class.

  beta_c = a + b (delta_c - min delta) / (max delta - min delta) with delta_c = log n_max - log n_c
  p_c is proportional to n_c (1 - beta_c) / (1 - beta_c^n_c)

  Args:
    class_counts: n, [c].
    a: beta of the most frequent class, in [0, 1).
    b: what the rarest class gets on top of a, in [0, 1), with a + b < 1.

  Returns:
    Class probabilities, [c]. With equal counts no class is rarest, and every beta_c is a.

  Raises:
    ConfigError: a or b outside its range, or a + b >= 1.

  References:
    Li et al., `Long-tailed Visual Recognition via Gaussian Clouded Logit Adjustment
    <https://arxiv.org/abs/2305.11733>`_, 2022: the thesis's equations 5.13 to 5.15, as in the FBL code. The GCL code
    uses a = 0.9999 and b = 1e-5, which is almost `effective_number`, and computes beta in float32 (relative error
    3e-5).

  >>> cben(np.array([5000, 500, 50])).round(3).tolist()
  [0.701, 0.159, 0.14]
  """
  if a + b >= 1:
    raise ConfigError(f"cben: a + b must be below 1, got a={a} and b={b}.")
  counts = _positive(class_counts)
  delta = np.log(counts.max() / counts)
  rarity = delta / delta.max() if delta.max() > 0 else delta
  return _normalised(counts * _effective(counts, (1 - a) - b * rarity))


@ranged
def progressive(class_counts: Real[np.ndarray, "c"], *, progress: Annotated[float, "[0, 1]"]) -> Float[np.ndarray, "c"]:
  """Moves from `instance` to `class_balanced` over a stage.

  p_c = (1 - progress) n_c / N + progress / C

  Args:
    class_counts: n, [c].
    progress: in [0, 1], usually a schedule: epoch / (epochs - 1).

  Returns:
    Class probabilities, [c].

  Raises:
    ConfigError: progress outside [0, 1].

  References:
    Kang et al., 2020; in the authors' code, progress is 0 in the first epoch and 1 in the last.

  >>> progressive(np.array([3, 1]), progress=0.5).tolist()
  [0.625, 0.375]
  """
  return (1 - progress) * instance(class_counts) + progress * class_balanced(class_counts)


def reverse(class_counts: Real[np.ndarray, "c"]) -> Float[np.ndarray, "c"]:
  """Draws rare classes most often: p_c is proportional to 1 / n_c.

  Args:
    class_counts: n, [c].

  Returns:
    Class probabilities, [c]. The probability of a single example is proportional to 1 / n_c^2.

  References:
    Zhou et al., `BBN: Bilateral-Branch Network <https://arxiv.org/abs/1912.02413>`_, 2020.

  >>> reverse(np.array([3, 1])).tolist()
  [0.25, 0.75]
  """
  return power(class_counts, q=-1.0)


# (name, counter, size) -> the indices 0 ... size - 1 in a random order, a pure function of its arguments.
Permutation = Callable[[str, int, int], Int[np.ndarray, "size"]]


class Cycle(NamedTuple):
  """An endless sequence of examples that visits the classes in turn. Computing an entry needs no state.

  Every round visits each class once, in a new order, and takes its next `samples_per_class` examples. When a class has
  no examples left, it starts again with all of them in a new order.
  """

  class_counts: Int[np.ndarray, "c"]
  samples_per_class: int

  def at(self, indices: Int[np.ndarray, "b"], permutation: Permutation) -> tuple[
      Int[np.ndarray, "b"], Int[np.ndarray, "b"]]:
    """Returns the class at each index of the sequence, and the example's index in its class (0 to n_c - 1)."""
    turn, shown = np.divmod(indices, self.samples_per_class)
    rounds, position = np.divmod(turn, len(self.class_counts))
    classes = np.empty(len(indices), np.int64)
    for number in np.unique(rounds):
      inside = rounds == number
      classes[inside] = permutation("classes", int(number), len(self.class_counts))[position[inside]]
    # Each earlier round has visited the class once.
    lap, position = np.divmod(rounds * self.samples_per_class + shown, self.class_counts[classes])
    within = np.zeros(len(indices), np.int64)
    laps, members = np.unique(np.stack([classes, lap]), axis=1, return_inverse=True)
    by_lap, sizes = np.argsort(members.ravel(), kind="stable"), np.bincount(members.ravel())
    for (c, number), inside in zip(laps.T.tolist(), np.split(by_lap, np.cumsum(sizes)[:-1]), strict=True):
      if self.class_counts[c] > 1:
        within[inside] = permutation(f"class{c}", number, int(self.class_counts[c]))[position[inside]]
    return classes, within


@ranged
def class_aware(class_counts: Real[np.ndarray, "c"], *, samples_per_class: Annotated[int, "[1, inf)"] = 4) -> Cycle:
  """The class-aware sampler of cRT: visits the classes in turn and takes some examples of each.

  It draws every class equally often, as `class_balanced` does, but without replacement: no example repeats before its
  class is exhausted, and no class before all others had their turn. The released code drops an unfinished turn at the
  end of an epoch; here the next epoch continues it.

  Args:
    class_counts: n, [c].
    samples_per_class: examples of one class in a row, >= 1.

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
