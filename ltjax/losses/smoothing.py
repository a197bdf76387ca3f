"""Smoothed targets whose strength depends on the class: logits and labels in, one loss per example out."""

from typing import Annotated

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Real

from ltjax.errors import ConfigError
from ltjax.losses.arguments import Number, at_least_float32, class_indices, computed_once, positive_counts, ranged
from ltjax.losses.cross_entropy import at_label, log_normalizer

__all__ = ["label_aware_smoothing"]

# Each rises from 0 at the tail (u = 0) to 1 at the head (u = 1).
_SHAPES = {
  "concave": lambda u, power: jnp.sin(u * (jnp.pi / 2)),
  "linear": lambda u, power: u,
  "convex": lambda u, power: 1 - jnp.cos(u * (jnp.pi / 2)),
  "exp": lambda u, power: u**power,
}


@ranged
def label_aware_smoothing(
    logits: Float[Array, "b c"],
    labels: Int[Array, "b"],
    class_counts: Real[Array, "c"],
    *,
    head: Annotated[Number, "[0, 1]"],
    tail: Annotated[Number, "[0, 1]"],
    shape: str = "concave",
    power: Annotated[float, "(0, inf)"] = 2.0,
) -> Float[Array, "b"]:
  """Cross entropy that smooths frequent labels more than rare ones.

  loss_i = (1 - e_y) (-log p_iy) + e_y mean_c(-log p_ic)
  e_y = tail + (head - tail) g(u_y) with u = (n - n_min) / (n_max - n_min) and g by `shape`:
  concave: sin(pi u / 2); linear: u; convex: 1 + sin(3 pi / 2 + pi u / 2); exp: u^power

  Args:
    logits: z, [b, c].
    labels: class indices in [0, c), [b].
    class_counts: training images n of each class, positive, in any order, [c]; a traced 0 counts as the rarest.
    head: smoothing of the most frequent class, in [0, 1]; of every class if all counts are equal.
    tail: smoothing of the rarest class, in [0, 1].
    shape: "concave", "linear", "convex" or "exp".
    power: the exponent of shape "exp", > 0.

  Returns:
    One loss per example, [b], float32 or better.

  Raises:
    ConfigError: head, tail or power outside its range, or an unknown shape.
    DataError: counts that are not one positive number per class, or labels outside [0, c).

  References:
    Zhong et al., `Improving Calibration for Long-Tailed Recognition <https://arxiv.org/abs/2104.00466>`_ (MiSLAS),
    2021; `LabelAwareSmoothing` of dvlab-research/MiSLAS. The mean over classes includes the label. As in the released
    code, the sine of the convex shape starts at `head`. That code rounds e to float32 and returns NaN for equal counts.

  >>> label_aware_smoothing(jnp.array([[2.0, 0.0]]), jnp.array([0]), jnp.array([9, 1]), head=0.5, tail=0.0).tolist()
  [0.6269280314445496]
  """
  if shape not in _SHAPES:
    raise ConfigError(f"label_aware_smoothing: shape must be one of {', '.join(_SHAPES)}, got {shape!r}.")
  logits = at_least_float32(logits)
  most, log_sum = log_normalizer(logits)
  counts = positive_counts(class_counts, logits)
  labels = class_indices(labels, logits)
  n_min, n_max = counts.min(), counts.max()
  u = jnp.where(n_max > n_min, (counts - n_min) / jnp.where(n_max > n_min, n_max - n_min, 1.0), 1.0)
  smoothing = computed_once((tail + (head - tail) * _SHAPES[shape](u, power))[labels])
  target = at_label(logits, labels) - most
  mean = jnp.mean(logits, axis=-1) - most
  return log_sum - (1 - smoothing) * target - smoothing * mean
