"""LADE: losses in which the examples of a batch meet; logits and labels in, one value per example out."""

from typing import Annotated

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Real

from ltjax.losses.adjustment import logit_adjustment
from ltjax.losses.arguments import Number, at_least_float32, class_indices, positive_counts, ranged
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
  """LADE's estimate of the label distribution that a batch's logits imply, to be made free of the training one.

  mean_i loss_i = -sum_c pi_c (a_c - r_c - remine r_c^2)
  a_c = mean of z_ic over the batch's examples of class c, 0 without any
  r_c = log mean_i exp(z_ic - log(pi_c + 1e-9) + log(1 / C + 1e-9)) over the whole batch
  loss_i = -B pi_y z_iy / (B_y + 1e-8) + sum_c pi_c (r_c + remine r_c^2) with B_y the batch's examples of class y

  The second part belongs to the batch and stands in full at every example, so only `mean` gives the loss of the paper;
  weights that differ between examples have no meaning here.

  Args:
    logits: z, [b, c].
    labels: class indices in [0, c), [b].
    class_counts: training images n of each class, positive, in any order, [c]; pi = n / N.
    remine: strength of the regulariser, >= 0.

  Returns:
    One value per example, [b], float32 or better. It may be negative.

  Raises:
    ConfigError: remine below 0.
    DataError: counts that are not one positive number a class, or labels outside [0, c).

  References:
    Hong et al., `Disentangling Label Distribution for Long-tailed Visual Recognition
    <https://arxiv.org/abs/2012.00321>`_, 2021; `LADELoss` of hyperconnect/LADE, to which 1e-8 and 1e-9 belong.

  >>> lade(jnp.zeros((2, 2)), jnp.array([0, 1]), jnp.array([1, 1])).tolist()
  [0.0, 0.0]
  """
  logits = at_least_float32(logits)
  counts = positive_counts(class_counts, logits)
  labels = class_indices(labels, logits)
  batch, classes = logits.shape
  prior = counts / counts.sum()
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
  """The loss that LADE trains with: cross entropy under the training prior, and `lade`.

  loss_i = CE(z_i + log(pi + 1e-9), y_i) + weight lade_i

  Args:
    logits: z, [b, c].
    labels: class indices in [0, c), [b].
    class_counts: training images n of each class, positive, in any order, [c]; pi = n / N.
    weight: of the second part, >= 0; 0 is PriorCE, a balanced softmax.
    remine: strength of LADE's regulariser, >= 0.

  Returns:
    One value per example, [b], float32 or better. Reduce with `mean`; see `lade`. Predictions for test data with
    another prior use z plus its logarithm, so the raw z for a balanced test set.

  Raises:
    ConfigError: weight or remine below 0.
    DataError: counts that are not one positive number a class, or labels outside [0, c).

  References:
    Hong et al., `Disentangling Label Distribution for Long-tailed Visual Recognition
    <https://arxiv.org/abs/2012.00321>`_, 2021; `PriorCELoss` and `LADELoss` of hyperconnect/LADE.

  >>> prior_lade(jnp.zeros((2, 2)), jnp.array([0, 1]), jnp.array([1, 1])).tolist()
  [0.6931471824645996, 0.6931471824645996]
  """
  under_prior = cross_entropy(logit_adjustment(logits, labels, class_counts, epsilon=1e-9), labels)
  return under_prior + weight * lade(logits, labels, class_counts, remine=remine)
