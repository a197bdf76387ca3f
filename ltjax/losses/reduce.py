"""Reductions of per-example losses to the scalar that is differentiated."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ltjax.losses.arguments import at_least_float32

__all__ = ["mean", "weighted_mean"]


def mean(losses: Float[Array, "b"]) -> Float[Array, ""]:
  """The mean over the batch.

  sum_i l_i / B

  Args:
    losses: one loss per example, [b].

  Returns:
    A scalar, float32 or better.

  References:
    `torch.nn.functional.cross_entropy(reduction="mean")` without weights.

  >>> mean(jnp.array([1.0, 3.0])).tolist()
  2.0
  """
  return jnp.mean(at_least_float32(losses))


def weighted_mean(losses: Float[Array, "b"], weights: Float[Array, "b"]) -> Float[Array, ""]:
  """The mean over the batch, divided by the sum of the weights.

  sum_i w_i l_i / sum_i w_i

  Args:
    losses: one loss per example, [b].
    weights: one weight per example, not negative and not all zero, [b]: `class_weights[labels]`.

  Returns:
    A scalar, float32 or better. A common factor of all weights cancels.

  References:
    PyTorch's weighted cross entropy, which all PyTorch code of the field uses. The TensorFlow code of Cui et al.
    divides by B instead: `mean(weights * losses)`.

  >>> weighted_mean(jnp.array([1.0, 3.0]), jnp.array([3.0, 1.0])).tolist()
  1.5
  """
  weights = at_least_float32(weights)
  return jnp.sum(weights * at_least_float32(losses)) / jnp.sum(weights)
