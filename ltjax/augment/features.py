"""New features for rare classes (AFA), inside jit: pure functions of the features and labels of a batch and a key."""

import math
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ltjax.errors import ConfigError
from ltjax.losses.arguments import Number, ranged

__all__ = ["Generating", "Plan", "combine", "enlarge", "generate", "generated_counts", "generation_bound", "plan"]


class Plan(NamedTuple):
  """A plan of the features to generate from a batch: m slots, valid ones first, classes in order of appearance.

  Args:
    labels: int [m], the classes; any class in an invalid slot.
    class_rows: int [m], i: the source of the class-related part, a row of class `labels`.
    variation_rows: int [m], j != i: the source of the variation-related part.
    valid: bool [m].
  """

  labels: Int[Array, "m"]
  class_rows: Int[Array, "m"]
  variation_rows: Int[Array, "m"]
  valid: Bool[Array, "m"]


class Generating(NamedTuple):
  """The input of a backbone that generates features: it returns a row per image, then a row per slot of the plan."""

  images: Float[Array, "b h w c"]
  plan: Plan


@ranged
def generated_counts(
    labels: Int[Array, "b"], num_classes: int, *, gamma: Annotated[Number, "(0, inf)"] = 1.0,
    alpha: Annotated[Number, "[0, inf)"] = 4.0,
) -> Int[Array, "c"]:
  """Returns how many features to generate for each class of a batch.

  G_c = ceil(gamma B R_c), R_c = f_c^-alpha / sum_k f_k^-alpha over the classes in the batch; 0 for the others

  Args:
    labels: int [b], in [0, c).
    num_classes: c.
    gamma: generated features per existing one, > 0.
    alpha: preference for rare classes, >= 0; with 0 all classes of the batch get the same number.

  Returns:
    int32 [c]; at least 1 for a class in the batch. The computation runs in float64 on every device, because float32
    would often round an integer G_c up to the next one; for an integer alpha the result is exact.

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
    # Rounding may lift an integer by about 1e-16.
    return jnp.where(present, jnp.maximum(jnp.ceil(wanted * (1 - 1e-12)), 1), 0).astype(jnp.int32)


@ranged
def generation_bound(batch_size: int, num_classes: int, *, gamma: Annotated[float, "(0, inf)"] = 1.0) -> int:
  """Returns m, the number of slots that suffices for every batch.

  m = ceil(gamma B) + min(B, C) - 1, because each of the K <= min(B, C) ceilings adds less than 1 to a sum of gamma B

  Batches with C < B attain it (10 classes in a batch of 32: 41).

  Args:
    batch_size: B.
    num_classes: C.
    gamma: as in `generated_counts`.

  Raises:
    ConfigError: gamma out of range.

  >>> generation_bound(128, 10), generation_bound(128, 100)
  (137, 227)
  """
  return math.ceil(gamma * batch_size) + min(batch_size, num_classes) - 1


@ranged
def plan(labels: Int[Array, "b"], *, key: jax.Array, num_classes: int, gamma: Annotated[float, "(0, inf)"] = 1.0,
         alpha: Annotated[float, "[0, inf)"] = 4.0) -> Plan:
  """Draws the features to generate from a batch with `labels`.

  Row i is uniform over the rows of its class, with replacement; row j is uniform over the other B - 1 rows.

  Args:
    labels: int [b], at least two.
    key: for both draws.
    num_classes: c.
    gamma: as in `generated_counts`.
    alpha: as in `generated_counts`.

  Raises:
    ConfigError: gamma or alpha out of range, or a batch of one.

  References:
    Wang et al. (above), algorithm 1, lines 13 to 27. It does not specify the distribution of i and j, and its range
    0 <= i, j <= B is too long by one.
  """
  labels, b = jnp.asarray(labels), len(labels)
  m = generation_bound(b, num_classes, gamma=gamma)
  if b < 2:
    raise ConfigError(f"generation combines two images of a batch, so batch_size must be at least 2, got {b}")
  key_class, key_variation = jax.random.split(key)
  counts = generated_counts(labels, num_classes, gamma=gamma, alpha=alpha)
  # The class of each slot: classes in the order of their first rows, class c in G_c slots.
  first_row = jnp.full(num_classes, b).at[labels].min(jnp.arange(b))
  by_appearance = jnp.argsort(first_row)
  ends, slots = jnp.cumsum(counts[by_appearance]), jnp.arange(m)
  rank = jnp.searchsorted(ends, slots, side="right")
  drawn = by_appearance[jnp.where(slots < ends[-1], rank, 0)]
  # Among the rows sorted by class, row k of a class has the index start + k.
  frequency = jnp.zeros(num_classes, jnp.int32).at[labels].add(1)
  start = jnp.cumsum(frequency) - frequency
  nth = jax.random.randint(key_class, (m,), 0, frequency[drawn])
  class_rows = jnp.argsort(labels)[start[drawn] + nth]
  variation_rows = (class_rows + 1 + jax.random.randint(key_variation, (m,), 0, b - 1)) % b
  return Plan(drawn.astype(labels.dtype), class_rows, variation_rows, slots < ends[-1])


def enlarge(images: Float[Array, "b h w c"], labels: Int[Array, "b"], plan: Plan) -> tuple[
    Generating, Int[Array, "b+m"], Bool[Array, "b+m"]]:
  """Returns (network input, labels, valid) of a batch, followed by the rows that `plan` generates from it."""
  return (Generating(images, plan), jnp.concatenate([labels, plan.labels]),
          jnp.concatenate([jnp.ones(len(labels), bool), plan.valid]))


def combine(class_related: Float[Array, "b ..."], variation_related: Float[Array, "b ..."],
            plan: Plan) -> Float[Array, "m ..."]:
  """Returns X_class[i] + X_var[j] for every slot of `plan` (equation 11), 0 in invalid slots, even if a row is NaN."""
  valid = plan.valid.reshape(-1, *(1,) * (class_related.ndim - 1))
  return jnp.where(valid, class_related[plan.class_rows] + variation_related[plan.variation_rows], 0)


@ranged
def generate(
    class_related: Float[Array, "b ..."], variation_related: Float[Array, "b ..."], labels: Int[Array, "b"], *,
    key: jax.Array, num_classes: int, gamma: Annotated[float, "(0, inf)"] = 1.0,
    alpha: Annotated[float, "[0, inf)"] = 4.0,
) -> tuple[Float[Array, "m ..."], Int[Array, "m"], Bool[Array, "m"]]:
  """Generates features for the classes of a batch, more for rare ones, each from the parts of two images.

  X_gen = X_class[i] + X_var[j] with label c, i of class c, j != i, G_c times per class c (`generated_counts`)

  Args:
    class_related: X_class, [b ...].
    variation_related: X_var, [b ...].
    labels: int [b], in [0, c), at least two.
    key: for drawing i and j.
    num_classes: c.
    gamma: as in `generated_counts`; a Python number, because m depends on it.
    alpha: as in `generated_counts`.

  Returns:
    (features [m ...], labels int [m], valid bool [m]) with m from `generation_bound`. Invalid slots come last and hold
    zeros and an arbitrary label; leave them out of every sum. Gradients flow into both parts; the paper does not say.

  Raises:
    ConfigError: gamma or alpha out of range, or a batch of one.

  References:
    Wang et al. (above), section III-C2.
  """
  drawn = plan(labels, key=key, num_classes=num_classes, gamma=gamma, alpha=alpha)
  return combine(class_related, variation_related, drawn), drawn.labels, drawn.valid
