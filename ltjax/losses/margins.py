"""Margins and clouds on cosine logits: unscaled cosines in, adjusted and scaled logits out; a loss follows."""

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Real

from ltjax.errors import ConfigError, DataError
from ltjax.losses.arguments import (
  Number,
  at_least_float32,
  class_indices,
  computed_once,
  only_at_label,
  positive_counts,
  ranged,
)

__all__ = ["cosface", "gcl", "kps", "ldam"]

# All of them scale the margin separately, for which XLA compiles faster code than for a scaled difference.

# These forms give the most frequent class exactly zero in every precision: sin(0) is 0, but cos(pi/2) is 6e-17.
_CLOUD_SIZES = {
  "log": lambda n, n_max: jnp.log(n_max / n),
  "cosine": lambda n, n_max: jnp.sin((1 - n / n_max) * (jnp.pi / 2)),
  "power_1_3": lambda n, n_max: n_max ** (1 / 3) - n ** (1 / 3),
  "power_1_4": lambda n, n_max: n_max ** (1 / 4) - n ** (1 / 4),
}


@ranged
def ldam(
    cosines: Float[Array, "b c"],
    labels: Int[Array, "b"],
    class_counts: Real[Array, "c"],
    *,
    max_margin: Annotated[Number, "[0, inf)"] = 0.5,
    scale: Annotated[Number, "(0, inf)"] = 30.0,
) -> Float[Array, "b c"]:
  """Label-distribution-aware margins, which grow with the rarity of the label.

  logit_ij = s (cos_ij - m_j [j = y_i]) with m_j = max_margin (n_min / n_j)^(1/4)

  Args:
    cosines: cosines between features and class vectors, in [-1, 1], [b, c].
    labels: class indices in [0, c), [b].
    class_counts: training images n of each class, positive, in any order, [c]; a traced 0 counts as the rarest.
    max_margin: the margin of the rarest class, >= 0.
    scale: s > 0.

  Returns:
    Logits for a cross entropy, [b, c], float32 or better. Predictions use the raw cosines.

  Raises:
    ConfigError: max_margin or scale outside its range.
    DataError: counts that are not one positive number per class, or labels outside [0, c).

  References:
    Cao et al., `Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss
    <https://arxiv.org/abs/1906.07413>`_, 2019, equation 13; `LDAMLoss` of kaidic/LDAM-DRW. For its deferred
    re-weighting use `effective_number` with a beta that switches from 0 to 0.9999.

  >>> ldam(jnp.zeros((1, 2)), jnp.array([0]), jnp.array([16, 1]), max_margin=0.5, scale=4.0).tolist()
  [[-1.0, 0.0]]
  """
  cosines = at_least_float32(cosines)
  counts = positive_counts(class_counts, cosines)
  margins = max_margin * (counts.min() / counts) ** 0.25
  return scale * cosines - only_at_label(scale * margins[class_indices(labels, cosines)], labels, cosines)


@ranged
def cosface(
    cosines: Float[Array, "b c"],
    labels: Int[Array, "b"],
    *,
    margin: Annotated[Number, "[0, inf)"] = 0.35,
    scale: Annotated[Number, "(0, inf)"] = 30.0,
) -> Float[Array, "b c"]:
  """The same margin for every class, on the cosine.

  logit_ij = s (cos_ij - m [j = y_i])

  Args:
    cosines: cosines between features and class vectors, in [-1, 1], [b, c].
    labels: class indices in [0, c), [b].
    margin: m >= 0.
    scale: s > 0.

  Returns:
    Logits for a cross entropy, [b, c], float32 or better. Predictions use the raw cosines.

  Raises:
    ConfigError: margin or scale outside its range.
    DataError: labels outside [0, c).

  References:
    Wang et al., `CosFace: Large Margin Cosine Loss for Deep Face Recognition <https://arxiv.org/abs/1801.09414>`_,
    2018; `CosFace` of deepinsight/insightface, where m = 0.4 and s = 64.

  >>> cosface(jnp.zeros((1, 2)), jnp.array([0]), margin=0.5, scale=4.0).tolist()
  [[-2.0, 0.0]]
  """
  cosines = at_least_float32(cosines)
  return scale * cosines - only_at_label(scale * margin, labels, cosines)


@ranged
def kps(
    cosines: Float[Array, "b c"],
    labels: Int[Array, "b"],
    class_counts: Real[Array, "c"],
    *,
    max_margin: Annotated[Number, "[0, inf)"] = 0.2,
    base: Annotated[Number, "(1, inf)"] = 50.0,
    scale: Annotated[Number, "(0, inf)"] = 15.0,
    adjust: Annotated[Number, "[0, 1]"] = 0.0,
    flip: bool = False,
) -> Float[Array, "b c"]:
  """Key point sensitive logits: frequent classes get a larger radius, rare classes a larger margin.

  logit_ij = s_i (r_j cos_ij - m_j [j = y_i])
  r_j = log(base n_j / n_min) / log(base); m'_j = max_k r_k + 1 - r_j; m_j = max_margin m'_j / max_k m'_k
  s_i = scale (1 + adjust (m'_y - 1)): `adjust` = 1 is gradient adjustment (GA)

  Args:
    cosines: cosines between features and class vectors, in [-1, 1], [b, c].
    labels: class indices in [0, c), [b].
    class_counts: training images n of each class, positive, in any order, [c]; a traced 0 counts as the rarest.
    max_margin: the margin of the rarest class, >= 0. The released code uses 0.2 on CIFAR, the paper 0.5.
    base: > 1.
    scale: s_base > 0.
    adjust: in [0, 1], 0 before GA begins and 1 after: a `switch` schedule, at epoch 120 of 200 in the released code.
    flip: follow the released code, in which m' is r in reverse order and s_i, with GA, at most 50. The classes must
      be sorted by their counts, the most frequent first.

  Returns:
    Logits for a cross entropy, [b, c], float32 or better. Predictions use the raw cosines.

  Raises:
    ConfigError: max_margin, base, scale or adjust outside its range.
    DataError: counts that are not one positive number per class, or not sorted although `flip` needs it, or labels
      outside [0, c).

  References:
    Li et al., `Key Point Sensitive Loss for Long-Tailed Visual Recognition
    <https://doi.org/10.1109/TPAMI.2022.3196044>`_, 2022: the thesis's equations 3.16 and 3.26 to 3.30; `KPSLoss` of
    Keke921/KPSLoss.

  >>> kps(jnp.ones((1, 2)), jnp.array([1]), jnp.array([50, 1]), max_margin=0.25, scale=1.0).round(4).tolist()
  [[2.0, 0.75]]
  """
  cosines = at_least_float32(cosines)
  counts = positive_counts(class_counts, cosines)
  radii, rarity = radii_and_rarity(counts, base)
  growth = rarity
  if flip:
    _check_order(class_counts)
    rarity = radii[::-1]
    growth = jnp.minimum(rarity, jnp.maximum(50.0 / scale, 1.0))
  own = class_indices(labels, cosines)
  scales = computed_once(scale * (1 + adjust * (growth - 1))[own])
  margins = only_at_label(scales * label_margins(rarity, max_margin)[own], labels, cosines)
  return scales[..., None] * (computed_once(radii) * cosines) - margins


def radii_and_rarity(counts: Float[Array, "c"], base: float | Float[Array, ""]) -> tuple[Float[Array, "c"], ...]:
  """Returns KPS's r, which is 1 for the rarest class, and m', which is 1 for the most frequent."""
  radii = 1 + jnp.log(counts / counts.min()) / jnp.log(jnp.asarray(base, counts.dtype))
  return radii, radii.max() + 1 - radii


def label_margins(rarity: Float[Array, "c"], max_margin: float | Float[Array, ""]) -> Float[Array, "c"]:
  """Returns KPS's m, which is `max_margin` for the rarest class."""
  return rarity * (max_margin / rarity.max())


def _check_order(class_counts) -> None:
  if isinstance(class_counts, jax.core.Tracer):
    return
  rises = np.flatnonzero(np.diff(np.asarray(class_counts, np.float64)) > 0)
  if rises.size:
    raise DataError(f"kps: flip=True needs class_counts from the most frequent class to the rarest, but class "
                    f"{rises[0] + 1} has more than class {rises[0]}; sort the classes, or use flip=False.")


@ranged
def gcl(
    cosines: Float[Array, "b c"],
    labels: Int[Array, "b"],
    class_counts: Real[Array, "c"],
    *,
    key: jax.Array | None = None,
    noise: Float[Array, "b c"] | None = None,
    scale: Annotated[Number, "(0, inf)"] = 30.0,
    margin: Annotated[Number, "[0, inf)"] = 0.0,
    noise_scale: Annotated[Number, "[0, inf)"] = 0.5,
    cloud_size: str = "log",
) -> Float[Array, "b c"]:
  """Gaussian clouded logits: subtracts a random amount from each cosine, on average more for rare classes.

  logit_ij = s (cos_ij - a delta_j |clip(eps_ij, -1, 1)| - m [j = y_i]) with eps ~ N(0, 1/9)
  delta_j = d_j / max_k d_k, with d_j by `cloud_size`:
  log: log n_max - log n_j; cosine: cos(pi n_j / 2 n_max); power_1_q: n_max^(1/q) - n_j^(1/q), q = 3 or 4

  Args:
    cosines: cosines between features and class vectors, in [-1, 1], [b, c].
    labels: class indices in [0, c), [b].
    class_counts: training images n of each class, positive, in any order, [c]; a traced 0 counts as the rarest.
    key: for drawing eps, a new one for each element. Give `key` or `noise`.
    noise: eps itself, before the clip and the absolute value, [b, c].
    scale: s > 0.
    margin: m >= 0, subtracted from the label's cosine.
    noise_scale: a >= 0.
    cloud_size: "log", "cosine", "power_1_3" or "power_1_4".

  Returns:
    Logits for a cross entropy or `focal`, [b, c], float32 or better. Predictions use the raw cosines.

  Raises:
    ConfigError: both or neither of `key` and `noise`, an unknown `cloud_size`, or scale, margin or noise_scale outside
      its range.
    DataError: counts that are not one positive number per class, or labels outside [0, c).

  References:
    Li et al., `Long-tailed Visual Recognition via Gaussian Clouded Logit Adjustment
    <https://arxiv.org/abs/2305.11733>`_, 2022: the thesis's equations 5.9, 5.11 and 5.12. The factor a = 0.5 is only in
    the authors' code; the paper has a = 1. Equal counts give no cloud here; the authors' code divides by zero.

  >>> gcl(jnp.zeros((1, 2)), jnp.array([0]), jnp.array([100, 1]), noise=jnp.ones((1, 2))).round().tolist()
  [[0.0, -15.0]]
  """
  cosines = at_least_float32(cosines)
  cloud = clouds("gcl", cosines, class_counts, key, noise, noise_scale, cloud_size)
  return scale * (cosines - cloud) - only_at_label(scale * margin, labels, cosines)


def clouds(function: str, cosines, class_counts, key, noise, noise_scale, cloud_size: str) -> Float[Array, "b c"]:
  """Returns GCL's a delta |clip(eps, -1, 1)|."""
  if (key is None) == (noise is None):
    raise ConfigError(f"{function} draws its noise from `key` or takes it as `noise`: give exactly one of them, "
                      f"got {'neither' if key is None else 'both'}.")
  if cloud_size not in _CLOUD_SIZES:
    raise ConfigError(f"{function}: cloud_size must be one of {', '.join(_CLOUD_SIZES)}, got {cloud_size!r}.")
  counts = positive_counts(class_counts, cosines)
  delta = _CLOUD_SIZES[cloud_size](counts, counts.max())
  delta = delta / jnp.where(delta.max() > 0, delta.max(), 1.0)
  if noise is None:
    noise = jax.random.normal(key, cosines.shape, cosines.dtype) / 3
  return computed_once(noise_scale * delta) * jnp.abs(jnp.clip(at_least_float32(noise), -1, 1))
