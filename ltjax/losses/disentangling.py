"""LADE: losses that compare the examples of a batch; logits and labels in, one value per example out."""

from typing import Annotated

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Real

from ltjax.losses.adjustment import logit_adjustment
from ltjax.losses.arguments import Number, at_least_float32, class_indices, class_prior, ranged
from ltjax.losses.cross_entropy import at_label, cross_entropy, log_normalizer
from ltjax.losses.traits import has

__all__ = ["lade", "prior_lade"]


@has(of_batch=True)
@ranged
def lade(
    logits: Float[Array, "b c"],
    labels: Int[Array, "b"],
    class_counts: Real[Array, "c"],
    *,
    remine: Annotated[Number, "[0, inf)"] = 0.1,
) -> Float[Array, "b"]:
  """LADE's regulariser, which removes the training label distribution from the logits.

  mean_i loss_i = -sum_c pi_c (a_c - r_c - remine r_c^2) with pi = n / N
  a_c = mean of z_ic over the batch's examples of class c, 0 if there are none
  r_c = log mean_i exp(z_ic - log(pi_c + 1e-9) + log(1 / C + 1e-9)) over the complete batch
  loss_i = -B pi_y z_iy / (B_y + 1e-8) + sum_c pi_c (r_c + remine r_c^2), where B_y counts the examples of class y

  Every example carries the full second term, which belongs to the batch, so only `mean` gives the loss of the paper;
  different weights per example have no meaning here.

  Args:
    logits: z, [b, c].
    labels: class indices in [0, c), [b].
    class_counts: training images n of each class, positive, in any order, [c]; a traced 0 has the prior pi = 0.
    remine: strength of the regulariser, >= 0.

  Returns:
    One value per example, [b], float32 or better. It may be negative.

  Raises:
    ConfigError: remine below 0.
    DataError: counts that are not one positive number per class, or labels outside [0, c).

  References:
    Hong et al., `Disentangling Label Distribution for Long-tailed Visual Recognition
    <https://arxiv.org/abs/2012.00321>`_, 2021; `LADELoss` of hyperconnect/LADE, the source of 1e-8 and 1e-9.

  >>> lade(jnp.zeros((2, 2)), jnp.array([0, 1]), jnp.array([1, 1])).tolist()
  [0.0, 0.0]
  """
  logits = at_least_float32(logits)
  prior = class_prior(class_counts, logits)
  labels = class_indices(labels, logits)
  batch, classes = logits.shape
  to_uniform = jnp.log(1 / classes + 1e-9) - jnp.log(prior + 1e-9)
  most, log_sum = log_normalizer(logits, axis=0)
  r = most + log_sum + to_uniform - jnp.log(jnp.asarray(batch, logits.dtype))
  in_batch = jnp.zeros(classes, logits.dtype).at[labels].add(1)
  return jnp.sum(prior * (r + remine * r**2)) - batch * (prior / (in_batch + 1e-8))[labels] * at_label(logits, labels)


@has(of_batch=True)
@ranged
def prior_lade(
    logits: Float[Array, "b c"],
    labels: Int[Array, "b"],
    class_counts: Real[Array, "c"],
    *,
    weight: Annotated[Number, "[0, inf)"] = 0.1,
    remine: Annotated[Number, "[0, inf)"] = 0.1,
) -> Float[Array, "b"]:
  """The loss that LADE trains with: cross entropy under the training prior, plus `lade`.

  loss_i = CE(z_i + log(pi + 1e-9), y_i) + weight lade_i with pi = n / N

  Args:
    logits: z, [b, c].
    labels: class indices in [0, c), [b].
    class_counts: training images n of each class, positive, in any order, [c]; a traced 0 has the prior pi = 0.
    weight: of the second term, >= 0; 0 is PriorCE, a balanced softmax.
    remine: strength of LADE's regulariser, >= 0.

  Returns:
    One value per example, [b], float32 or better. Reduce with `mean`; see `lade`. For test data with another prior,
    predict with z plus the logarithm of that prior; for a balanced test set, with z itself.

  Raises:
    ConfigError: weight or remine below 0.
    DataError: counts that are not one positive number per class, or labels outside [0, c).

  References:
    Hong et al., `Disentangling Label Distribution for Long-tailed Visual Recognition
    <https://arxiv.org/abs/2012.00321>`_, 2021; `PriorCELoss` and `LADELoss` of hyperconnect/LADE.

  >>> prior_lade(jnp.zeros((2, 2)), jnp.array([0, 1]), jnp.array([1, 1])).tolist()
  [0.6931471824645996, 0.6931471824645996]
  """
  under_prior = cross_entropy(logit_adjustment(logits, labels, class_counts, epsilon=1e-9), labels)
  return under_prior + weight * lade(logits, labels, class_counts, remine=remine)
