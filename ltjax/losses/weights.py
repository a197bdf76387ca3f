"""Class weights from class counts, for `weighted_mean(losses, weights[labels])`."""

from typing import Annotated

import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from ltjax.losses.arguments import Number, positive_counts, ranged

__all__ = ["effective_number", "inverse_frequency"]


def _sum_to_classes(weights: Float[Array, "c"]) -> Float[Array, "c"]:
  return weights * (weights.shape[-1] / weights.sum())


@ranged
def effective_number(class_counts: Real[Array, "c"], *, beta: Annotated[Number, "[0, 1)"]) -> Float[Array, "c"]:
  """Class-balanced weights: the inverse of each class's effective number of examples.

  w_c is proportional to (1 - beta) / (1 - beta^n_c), sum_c w_c = C

  Args:
    class_counts: training images n of each class, positive, in any order, [c]; a traced 0 counts as the rarest.
    beta: in [0, 1); 0 gives ones, and the limit 1 is `inverse_frequency`. Pass a Python number if you can: a float32
      array near 1 has already lost digits of 1 - beta (a relative error of 1.7e-4 at 0.9999).

  Returns:
    Weights that sum to C, [c], float32 or better.

  Raises:
    ConfigError: beta outside [0, 1).
    DataError: a class with a count that is not positive.

  References:
    Cui et al., `Class-Balanced Loss Based on Effective Number of Samples <https://arxiv.org/abs/1901.05555>`_, 2019,
    the effective number. The authors' code forms 1 - beta^n, which cancels; here expm1 and log1p do not.

  >>> effective_number(jnp.array([10, 10]), beta=0.9999).tolist()
  [1.0, 1.0]
  """
  counts = positive_counts(class_counts)
  log_beta = jnp.log1p(jnp.asarray(beta - 1, counts.dtype))
  return _sum_to_classes(-1 / jnp.expm1(counts * log_beta))


def inverse_frequency(class_counts: Real[Array, "c"]) -> Float[Array, "c"]:
  """Weights inversely proportional to the class counts.

  w_c is proportional to 1 / n_c, sum_c w_c = C

  Args:
    class_counts: training images n of each class, positive, in any order, [c]; a traced 0 counts as the rarest.

  Returns:
    Weights that sum to C, [c], float32 or better.

  Raises:
    DataError: a class with a count that is not positive.

  References:
    Huang et al., `Learning Deep Representation for Imbalanced Classification
    <https://openaccess.thecvf.com/content_cvpr_2016/html/Huang_Learning_Deep_Representation_CVPR_2016_paper.html>`_,
    2016; the limit beta -> 1 of `effective_number`.

  >>> inverse_frequency(jnp.array([4, 4, 2])).tolist()
  [0.75, 0.75, 1.5]
  """
  return _sum_to_classes(1 / positive_counts(class_counts))
