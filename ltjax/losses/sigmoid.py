"""Losses of one-against-all logits: one sigmoid per class, summed over the classes, one loss per example out."""

from typing import Annotated

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Real

from ltjax.losses.arguments import Number, at_least_float32, class_prior, computed_once, is_label, ranged

__all__ = ["class_balanced_focal", "sigmoid_equalization"]


@ranged
def class_balanced_focal(
    logits: Float[Array, "b c"],
    labels: Int[Array, "b"],
    *,
    gamma: Annotated[Number, "[0, inf)"] = 1.0,
) -> Float[Array, "b"]:
  """Focal loss in its sigmoid form, summed over the classes; weight it with `effective_number`.

  loss_i = sum_c (1 - q_ic)^gamma (-log q_ic) with q_ic = sigmoid(z_ic) at the label and sigmoid(-z_ic) elsewhere

  Args:
    logits: z, [b, c].
    labels: class indices in [0, c), [b].
    gamma: focusing parameter, >= 0; 0 is the sum of binary cross entropies.

  Returns:
    One loss per example, [b], float32 or better. Cui et al. reduce with `mean(weights[labels] * losses)`, where weights
    are `effective_number(class_counts, beta=0.9999)`.

  Raises:
    ConfigError: gamma below 0.
    DataError: labels outside [0, c).

  References:
    Cui et al., `Class-Balanced Loss Based on Effective Number of Samples <https://arxiv.org/abs/1901.05555>`_, 2019,
    the focal loss without its weight; `focal_loss` of richardaecn/class-balanced-loss. There the bias of the last layer
    starts at -log(C - 1) and has no weight decay.

  >>> class_balanced_focal(jnp.zeros((1, 2)), jnp.array([0])).tolist()
  [0.6931471824645996]
  """
  logits = at_least_float32(logits)
  surely = jnp.where(is_label(labels, logits), logits, -logits)
  # -log q and -log(1 - q) from their common term, without cancellation.
  shared = jnp.log1p(jnp.exp(-jnp.abs(surely)))
  loss, miss = jnp.maximum(-surely, 0) + shared, jnp.maximum(surely, 0) + shared
  return jnp.sum(jnp.exp(-gamma * miss) * loss, axis=-1)


@ranged
def sigmoid_equalization(
    logits: Float[Array, "b c"],
    labels: Int[Array, "b"],
    class_counts: Real[Array, "c"],
    *,
    threshold: Annotated[Number, "[0, 1]"] = 0.00177,
) -> Float[Array, "b"]:
  """Sigmoid equalisation loss: examples of other classes do not push rare classes down.

  loss_i = sum_c w_ic BCE(z_ic, [c = y_i]) with w_ic = 0 if n_c / N < threshold and c is not y_i, else 1

  Args:
    logits: z, [b, c].
    labels: class indices in [0, c), [b].
    class_counts: training images n of each class, positive, in any order, [c]; a traced 0 has the prior 0.
    threshold: a class is rare if its fraction of the training images is below this, in [0, 1].

  Returns:
    One loss per example, [b], float32 or better.

  Raises:
    ConfigError: threshold outside [0, 1].
    DataError: counts that are not one positive number per class, or labels outside [0, c).

  References:
    Tan et al., `Equalization Loss for Long-Tailed Object Recognition <https://arxiv.org/abs/2003.05176>`_, 2020,
    the sigmoid form with E(r) = 1, since classification has no background; `EQL` of tztztztztz/eqlv2.

  >>> sigmoid_equalization(jnp.zeros((1, 2)), jnp.array([0]), jnp.array([999, 1]), threshold=0.1).tolist()
  [0.6931471824645996]
  """
  logits = at_least_float32(logits)
  label = is_label(labels, logits)
  frequent = computed_once(class_prior(class_counts, logits) >= threshold)
  surely = jnp.where(label, logits, -logits)
  loss = jnp.maximum(-surely, 0) + jnp.log1p(jnp.exp(-jnp.abs(surely)))
  return jnp.sum(jnp.where(label | frequent, loss, 0.0), axis=-1)
