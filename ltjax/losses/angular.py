"""Margins and clouds on the angle: unscaled cosines in, adjusted and scaled logits out; a loss follows."""

import functools
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Real

from ltjax.losses.arguments import (
  Number,
  at_least_float32,
  class_indices,
  computed_once,
  is_label,
  only_at_label,
  positive_counts,
  ranged,
)
from ltjax.losses.cross_entropy import at_label
from ltjax.losses.margins import clouds, label_margins, radii_and_rarity
from ltjax.losses.traits import has

__all__ = ["arcface", "gcl_angular", "kps_angular"]


@has(needs_angles=True)
@ranged
def arcface(
    cosines: Float[Array, "b c"],
    labels: Int[Array, "b"],
    *,
    margin: Annotated[Number, "[0, 3.141592653589793]"] = 0.5,
    scale: Annotated[Number, "(0, inf)"] = 30.0,
    fallback: bool = False,
    straight_through: bool = False,
) -> Float[Array, "b c"]:
  """The same margin for every class, on the angle.

  logit_ij = s cos(theta_ij + m [j = y_i]) with cos(theta + m) = cos(theta) cos(m) - sin(theta) sin(m) and
  sin(theta) = sqrt(max(1 - cos(theta)^2, 1e-7)), so that parallel vectors have a gradient

  Args:
    cosines: cosines between features and class vectors, in [-1, 1], [b, c].
    labels: class indices in [0, c), [b].
    margin: m in [0, pi].
    scale: s > 0.
    fallback: where theta + m > pi, use cos(theta) - m sin(m) instead of cos(theta + m), which rises again there.
    straight_through: use the gradient of `scale * cosines`, as insightface does: it adds the margin without a gradient.

  Returns:
    Logits for a cross entropy, [b, c], float32 or better. Predictions use the raw cosines.

  Raises:
    ConfigError: margin or scale outside its range.
    DataError: labels outside [0, c).

  References:
    Deng et al., `ArcFace: Additive Angular Margin Loss for Deep Face Recognition <https://arxiv.org/abs/1801.07698>`_,
    2019; `ArcFace` of deepinsight/insightface, where m = 0.5 and s = 64.

  >>> arcface(jnp.zeros((1, 2)), jnp.array([0]), margin=jnp.pi / 2, scale=4.0).tolist()
  [[-4.0, 0.0]]
  """
  cosines = at_least_float32(cosines)
  moved = _turned_at_label(fallback, cosines, jnp.asarray(margin, cosines.dtype), class_indices(labels, cosines))
  return scale * (cosines + jax.lax.stop_gradient(moved - cosines) if straight_through else moved)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _turned_at_label(fallback: bool, cosines, margin, labels):
  """Returns cos(theta + m) at the label, cos(theta) elsewhere."""
  turned = _turned(fallback, at_label(cosines, labels), margin)
  return jnp.where(is_label(labels, cosines), turned[..., None], cosines)


# The derivative is that of autodiff, but takes one square root per row instead of one per element.
@_turned_at_label.defjvp
def _turned_at_label_jvp(fallback, primals, tangents):
  (cosines, margin, labels), (d_cosines, d_margin, _) = primals, tangents
  own = at_label(cosines, labels)
  _, slope = jax.jvp(lambda x: _turned(fallback, x, margin), (own,), (jnp.ones_like(own),))
  _, by_margin = jax.jvp(lambda m: _turned(fallback, own, m), (margin,), (d_margin,))
  tangent = jnp.where(is_label(labels, cosines), slope[..., None] * d_cosines + by_margin[..., None], d_cosines)
  return _turned_at_label(fallback, cosines, margin, labels), tangent


def _turned(fallback: bool, cosines, margin):
  cos_m, sin_m = jnp.cos(margin), jnp.sin(margin)
  turned = cosines * cos_m - _sine(cosines) * sin_m
  return jnp.where(cosines > -cos_m, turned, cosines - margin * sin_m) if fallback else turned


@has(needs_angles=True)
@ranged
def kps_angular(
    cosines: Float[Array, "b c"],
    labels: Int[Array, "b"],
    class_counts: Real[Array, "c"],
    *,
    max_angle: Annotated[Number, "[0, 3.141592653589793]"] = 0.2,
    angle_power: Annotated[Number, "[0, inf)"] = 1.0,
    max_margin: Annotated[Number, "[0, inf)"] = 0.0,
    base: Annotated[Number, "(1, inf)"] = 50.0,
    scale: Annotated[Number, "(0, inf)"] = 15.0,
    adjust: Annotated[Number, "[0, 1]"] = 0.0,
) -> Float[Array, "b c"]:
  """Key point sensitive logits with a radius and a margin on the angle as well.

  logit_ij = s_i (r_j phi(r^_j theta_ij + m^_j [j = y_i]) - m_j [j = y_i]) with r, m, m' and s_i as in `kps`
  r^_j = (m'_j / max_k m'_k)^angle_power; m^_j = max_angle m'_j / max_k m'_k
  phi(t) = cos t up to pi and -2 - cos t beyond, so that it never rises

  With `angle_power` = `max_angle` = 0 this is `kps`.

  Args:
    cosines: cosines between features and class vectors, in [-1, 1], [b, c].
    labels: class indices in [0, c), [b].
    class_counts: training images n of each class, positive, in any order, [c]; a traced 0 counts as the rarest.
    max_angle: the angle added for the rarest class, in [0, pi].
    angle_power: >= 0; large values shrink the angles to frequent classes.
    max_margin: the margin on the cosine for the rarest class, >= 0.
    base: > 1.
    scale: s_base > 0.
    adjust: in [0, 1]: 0 before GA begins and 1 after.

  Returns:
    Logits for a cross entropy, [b, c], float32 or better. Predictions use the raw cosines.

  Raises:
    ConfigError: a hyper-parameter outside its range.
    DataError: counts that are not one positive number per class, or labels outside [0, c).

  References:
    Li et al., `Key Point Sensitive Loss for Long-Tailed Visual Recognition
    <https://doi.org/10.1109/TPAMI.2022.3196044>`_, 2022: the thesis's equation 3.20. It names r^ and m^ but gives
    neither values nor a rule, and no experiment uses them. The definitions here are ours.

  >>> kps_angular(jnp.zeros((1, 2)), jnp.array([1]), jnp.array([50, 1]), max_angle=0.5, scale=1.0).round(4).tolist()
  [[1.414199948310852, -0.47939997911453247]]
  """
  cosines = at_least_float32(cosines)
  radii, rarity = radii_and_rarity(positive_counts(class_counts, cosines), base)
  relative, margins = rarity / rarity.max(), label_margins(rarity, max_margin)
  own = class_indices(labels, cosines)
  added = only_at_label(max_angle * relative[own], labels, cosines)
  angles = relative**angle_power * jnp.arctan2(_sine(cosines), cosines) + added
  moved = jnp.cos(angles)
  logits = radii * jnp.where(angles > jnp.pi, -2 - moved, moved) - only_at_label(margins[own], labels, cosines)
  scales = scale * (1 + adjust * (rarity - 1))[own]
  return scales[..., None] * logits


@has(needs_angles=True)
@ranged
def gcl_angular(
    cosines: Float[Array, "b c"],
    labels: Int[Array, "b"],
    class_counts: Real[Array, "c"],
    *,
    key: jax.Array | None = None,
    noise: Float[Array, "b c"] | None = None,
    scale: Annotated[Number, "(0, inf)"] = 30.0,
    margin: Annotated[Number, "[0, 1.5707963267948966]"] = 0.0,
    noise_scale: Annotated[Number, "[0, 1]"] = 0.1,
    cloud_size: str = "log",
) -> Float[Array, "b c"]:
  """Gaussian clouds on the angle: adds a random angle to each, on average a larger one for rare classes.

  logit_ij = s cos(theta_ij + t_ij) with t_ij = (pi / 2) a delta_j |clip(eps_ij, -1, 1)| + m [j = y_i]
  and s (cos_ij - sin t_ij) where theta + t >= pi; delta and eps as in `gcl`, sin(theta) as in `arcface`

  Args:
    cosines: cosines between features and class vectors, in [-1, 1], [b, c].
    labels: class indices in [0, c), [b].
    class_counts: training images n of each class, positive, in any order, [c]; a traced 0 counts as the rarest.
    key: for drawing eps, a new one for each element. Give `key` or `noise`.
    noise: eps itself, before the clip and the absolute value, [b, c].
    scale: s > 0.
    margin: m in [0, pi / 2], added to the label's angle.
    noise_scale: a in [0, 1]; the paper's eps_0.
    cloud_size: as in `gcl`.

  Returns:
    Logits for a cross entropy or `focal`, [b, c], float32 or better. Predictions use the raw cosines.

  Raises:
    ConfigError: both or neither of `key` and `noise`, an unknown `cloud_size`, or scale, margin or noise_scale outside
      its range.
    DataError: counts that are not one positive number per class, or labels outside [0, c).

  References:
    Li et al., `Adjusting Logit in Gaussian Form for Long-Tailed Visual Recognition
    <https://arxiv.org/abs/2305.10648>`_, 2024; `GCLAngLoss` of Keke921/GCLLoss, where m = 0.5.

  >>> gcl_angular(jnp.zeros((1, 2)), jnp.array([0]), jnp.array([100, 1]), noise=jnp.ones((1, 2))).round(2).tolist()
  [[0.0, -4.690000057220459]]
  """
  cosines = at_least_float32(cosines)
  cloud = clouds("gcl_angular", cosines, class_counts, key, noise, noise_scale, cloud_size)
  angles = (jnp.pi / 2) * cloud + only_at_label(margin, labels, cosines)
  return computed_once(scale * _moved(cosines, angles))


@jax.custom_jvp
def _moved(cosines, angles):
  """Returns cos(theta + t), or cos(theta) - sin(t) where theta + t >= pi."""
  sin_t, cos_t = _sine_and_cosine(angles)
  return jnp.where(cosines > -cos_t, cosines * cos_t - _sine(cosines) * sin_t, cosines - sin_t)


# The derivative is that of autodiff, but computed from the arguments: the backward pass stores no further [b c] array.
@_moved.defjvp
def _moved_jvp(primals, tangents):
  (cosines, angles), (d_cosines, d_angles) = primals, tangents
  sin_t, cos_t = _sine_and_cosine(angles)
  sine, turned = _sine(cosines), cosines > -cos_t
  by_cosine = jnp.where(turned, cos_t + jnp.where(1 - cosines**2 > 1e-7, cosines / sine, 0.0) * sin_t, 1.0)
  by_angle = -jnp.where(turned, cosines * sin_t + sine * cos_t, cos_t)
  return _moved(cosines, angles), by_cosine * d_cosines + by_angle * d_angles


def _sine_and_cosine(angles):
  """Returns (sin t, cos t) of angles t in [0, pi] from Taylor series at t / 2; XLA does not vectorise its own on CPUs.

  The omitted terms are below the rounding error: term k is at most (pi/2)^2 / (2k (2k + 1)) of term k - 1.
  """
  half, terms = angles / 2, 12 if angles.dtype == jnp.float64 else 7
  square, sine, cosine = half**2, 1.0, 1.0
  for k in range(terms, 0, -1):
    sine = 1 - square / (2 * k * (2 * k + 1)) * sine
    cosine = 1 - square / (2 * k * (2 * k - 1)) * cosine
  sine = half * sine
  return 2 * sine * cosine, 1 - 2 * sine**2


def _sine(cosines):
  """Returns sin(theta), with a finite derivative even at theta = 0."""
  return jnp.sqrt(jnp.maximum(1 - cosines**2, 1e-7))
