"""New features for rare classes inside jit: pure functions of a batch's features, its labels and a key (AFA)."""

import math
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ltjax.errors import ConfigError
from ltjax.losses.arguments import Number, ranged

__all__ = ["Generating", "Plan", "combine", "enlarge", "generate", "generated_counts", "generation_bound", "plan"]


class Plan(NamedTuple):
  """What is generated from a batch: m slots, of which the valid ones come first, classes in order of appearance.

  Args:
    labels: int [m], the classes; any class in a slot that is not valid.
    class_rows: int [m], i: the row that gives the class-related part, one of class `labels`.
    variation_rows: int [m], j != i: the row that gives the variation-related part.
    valid: bool [m].
  """

  labels: Int[Array, "m"]
  class_rows: Int[Array, "m"]
  variation_rows: Int[Array, "m"]
  valid: Bool[Array, "m"]


class Generating(NamedTuple):
  """Images for a backbone that generates: its maps have a row for each image and then one for each slot of the plan."""

  images: Float[Array, "b h w c"]
  plan: Plan


@ranged
def generated_counts(
    labels: Int[Array, "b"], num_classes: int, *, gamma: Annotated[Number, "(0, inf)"] = 1.0,
    alpha: Annotated[Number, "[0, inf)"] = 4.0,
) -> Int[Array, "c"]:
  """How many features each class of a batch is given.

  G_c = ceil(gamma B R_c), R_c = f_c^-alpha / sum_k f_k^-alpha over the classes in the batch; 0 for the others

  Args:
    labels: int [b], in [0, c).
    num_classes: c.
    gamma: how many features are generated for each one there is, above 0.
    alpha: how much the rare classes are preferred, 0 or more; 0 gives all classes of the batch the same.

  Returns:
    int32 [c]; at least 1 where the class is in the batch. With a whole alpha the ceiling is that of the exact fraction:
    in float32 a G_c that is whole would often be rounded up to one more, so this is computed in float64 on any device.

  Raises:
    ConfigError: gamma or alpha out of range.

  References:
    Wang et al., `Attentive Feature Augmentation for Long-Tailed Visual Recognition` (AFA, LTVR), 2022, equations 9, 10.

  >>> generated_counts(jnp.array([0, 0, 0, 1, 1, 3]), 4).tolist()
  [1, 1, 0, 6]
  """
  frequency = jnp.zeros(num_classes, jnp.int32).at[labels].add(1)
  present = frequency > 0
  with jax.enable_x64(True):
    # Relative to the rarest class, so that no power is 0 / 0.
    f = jnp.maximum(frequency, 1).astype(jnp.float64)
    weights = jnp.where(present, (jnp.min(f, where=present, initial=jnp.inf) / f) ** alpha, 0.0)
    wanted = gamma * labels.size * weights / jnp.sum(weights)
    # A whole number may come out some 1e-16 above itself.
    return jnp.where(present, jnp.maximum(jnp.ceil(wanted * (1 - 1e-12)), 1), 0).astype(jnp.int32)


@ranged
def generation_bound(batch_size: int, num_classes: int, *, gamma: Annotated[float, "(0, inf)"] = 1.0) -> int:
  """The number of slots that is enough for every batch, m.

  m = ceil(gamma B) + min(B, C) - 1, because each of the K <= min(B, C) ceilings adds less than 1 to a sum of gamma B

  It is attained where C < B (10 classes in a batch of 32: 41).

  Args:
    batch_size: B.
    num_classes: C.
    gamma: as in `generated_counts`.

  Raises:
    ConfigError: gamma not above 0.

  >>> generation_bound(128, 10), generation_bound(128, 100)
  (137, 227)
  """
  return math.ceil(gamma * batch_size) + min(batch_size, num_classes) - 1


@ranged
def plan(labels: Int[Array, "b"], *, key: jax.Array, num_classes: int, gamma: Annotated[float, "(0, inf)"] = 1.0,
         alpha: Annotated[float, "[0, inf)"] = 4.0) -> Plan:
  """Draws what is generated from a batch with `labels`.

  A class's i is uniform over its rows, with replacement; j is uniform over the other B - 1 rows of any class.

  Args:
    labels: int [b], at least two.
    key: of the two draws.
    num_classes: c.
    gamma: as in `generated_counts`.
    alpha: as in `generated_counts`.

  Raises:
    ConfigError: gamma or alpha out of range, or a batch of one.

  References:
    Wang et al (above), algorithm 1, lines 13 to 27. It leaves the distribution of i and j open, and its range
    0 <= i, j <= B would be one too long.
  """
  labels, b = jnp.asarray(labels), len(labels)
  m = generation_bound(b, num_classes, gamma=gamma)
  if b < 2:
    raise ConfigError(f"generation joins two images of a batch, so batch_size must be at least 2, got {b}")
  key_class, key_variation = jax.random.split(key)
  counts = generated_counts(labels, num_classes, gamma=gamma, alpha=alpha)
  # The class of each slot: classes in order of their first row, class c in G_c slots.
  first_row = jnp.full(num_classes, b).at[labels].min(jnp.arange(b))
  by_appearance = jnp.argsort(first_row)
  ends, slots = jnp.cumsum(counts[by_appearance]), jnp.arange(m)
  place = jnp.searchsorted(ends, slots, side="right")
  drawn = by_appearance[jnp.where(slots < ends[-1], place, 0)]
  # The k-th row of a class is `start + k` places into the rows sorted by class.
  frequency = jnp.zeros(num_classes, jnp.int32).at[labels].add(1)
  start = jnp.cumsum(frequency) - frequency
  nth = jax.random.randint(key_class, (m,), 0, frequency[drawn])
  class_rows = jnp.argsort(labels)[start[drawn] + nth]
  variation_rows = (class_rows + 1 + jax.random.randint(key_variation, (m,), 0, b - 1)) % b
  return Plan(drawn.astype(labels.dtype), class_rows, variation_rows, slots < ends[-1])


def enlarge(images: Float[Array, "b h w c"], labels: Int[Array, "b"], plan: Plan) -> tuple[
    Generating, Int[Array, "b+m"], Bool[Array, "b+m"]]:
  """(input of the network, labels, valid) of a batch and, after it, what `plan` generates from it."""
  return (Generating(images, plan), jnp.concatenate([labels, plan.labels]),
          jnp.concatenate([jnp.ones(len(labels), bool), plan.valid]))


def combine(class_related: Float[Array, "b ..."], variation_related: Float[Array, "b ..."],
            plan: Plan) -> Float[Array, "m ..."]:
  """X_class[i] + X_var[j] for every slot of `plan` (equation 11), 0 where it is not valid, whatever the rows hold."""
  valid = plan.valid.reshape(-1, *(1,) * (class_related.ndim - 1))
  return jnp.where(valid, class_related[plan.class_rows] + variation_related[plan.variation_rows], 0)


@ranged
def generate(
    class_related: Float[Array, "b ..."], variation_related: Float[Array, "b ..."], labels: Int[Array, "b"], *,
    key: jax.Array, num_classes: int, gamma: Annotated[float, "(0, inf)"] = 1.0,
    alpha: Annotated[float, "[0, inf)"] = 4.0,
) -> tuple[Float[Array, "m ..."], Int[Array, "m"], Bool[Array, "m"]]:
  """New features of the classes in a batch, the rarer a class the more: its own part of one image, the rest of another.

  X_gen = X_class[i] + X_var[j] with label c, i of class c, j != i, G_c times for each class c (`generated_counts`)

  Args:
    class_related: X_class, [b ...].
    variation_related: X_var, [b ...].
    labels: int [b], in [0, c), at least two.
    key: of the draws of i and j.
    num_classes: c.
    gamma: as in `generated_counts`; a Python number, it fixes m.
    alpha: as in `generated_counts`.

  Returns:
    (features [m ...], labels int [m], valid bool [m]) with m of `generation_bound`. Slots that are not valid come last,
    hold zeros and some label; nothing must count them. Gradients flow to both parts, on which the paper is silent.

  Raises:
    ConfigError: gamma or alpha out of range, or a batch of one.

  References:
    Wang et al (above), section III-C2.
  """
  drawn = plan(labels, key=key, num_classes=num_classes, gamma=gamma, alpha=alpha)
  return combine(class_related, variation_related, drawn), drawn.labels, drawn.valid
