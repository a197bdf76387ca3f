"""Adjustments of logits by class frequency: logits in, adjusted logits out; a loss follows."""

from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Real

from ltjax.errors import ConfigError
from ltjax.losses.arguments import (
  Number,
  at_least_float32,
  class_indices,
  class_prior,
  computed_once,
  is_label,
  positive_counts,
  ranged,
  seen_or_one,
)
from ltjax.losses.cross_entropy import at_label, log_normalizer
from ltjax.losses.traits import has, stateful

__all__ = ["fbl", "logit_adjustment", "seesaw", "softmax_equalization"]

# Finite, so that sums and gradients stay finite, and 0 in every softmax.
_OUT_OF_THE_SOFTMAX = -1e30


@ranged
def logit_adjustment(
    logits: Float[Array, "b c"],
    labels: Int[Array, "b"],
    class_counts: Real[Array, "c"],
    *,
    tau: Annotated[Number, "[0, inf)"] = 1.0,
    epsilon: Annotated[float, "[0, inf)"] = 1e-12,
) -> Float[Array, "b c"]:
  """Logit adjustment by the training prior; with tau = 1 the balanced softmax.

  logit_ij = z_ij + log(pi_j^tau + epsilon) with pi = n / N

  Args:
    logits: z, [b, c].
    labels: not used.
    class_counts: training images n of each class, positive, in any order, [c]; a traced 0 has the prior 0.
    tau: >= 0.
    epsilon: >= 0. The released code uses 1e-12, LADE's PriorCE 1e-9; 0 is the equation of the paper.

  Returns:
    Logits for a cross entropy, [b, c], float32 or better. Predictions use the raw z.

  Raises:
    ConfigError: tau or epsilon outside its range.
    DataError: counts that are not one positive number per class.

  References:
    Menon et al., `Long-tail learning via logit adjustment <https://arxiv.org/abs/2007.07314>`_, 2021, the loss. Ren
    et al., `Balanced Meta-Softmax <https://arxiv.org/abs/2007.10740>`_, 2020, add log n instead, which adds the same
    constant to every logit. For a trained model use `ltjax.posthoc.adjust_logits`.

  >>> logit_adjustment(jnp.zeros((1, 2)), jnp.array([0]), jnp.array([3, 1])).round(4).tolist()
  [[-0.28769999742507935, -1.386299967765808]]
  """
  del labels
  logits = at_least_float32(logits)
  return logits + computed_once(log_power(class_prior(class_counts, logits), tau, epsilon))


def log_power(prior: Float[Array, "c"], tau: Number, epsilon: float) -> Float[Array, "c"]:
  """Returns log(prior^tau + epsilon), also where prior^tau underflows."""
  # A prior of 0, which only traced counts can give, must stay finite with epsilon = 0, and be 1 with tau = 0.
  log_pi = jnp.log(jnp.where(prior == 0, 1e-30, prior))
  return jnp.logaddexp(tau * log_pi, jnp.log(jnp.asarray(epsilon, prior.dtype)))


@ranged
def fbl(
    logits: Float[Array, "b c"],
    labels: Int[Array, "b"],
    class_counts: Real[Array, "c"],
    *,
    features: Float[Array, "b d"],
    alpha: Annotated[Number, "[0, inf)"],
    normalize: bool = True,
) -> Float[Array, "b c"]:
  """Feature-balanced logits: subtracts more from the logits of rare classes and of short features.

  logit_ij = z_ij - alpha lambda_j / |f_i| with lambda_j = log n_max - log n_j, divided by its maximum if `normalize`

  The gradient flows through |f| too, which makes the features of rare classes grow.

  Args:
    logits: z of a linear classifier, [b, c].
    labels: not used.
    class_counts: training images n of each class, positive, in any order, [c]; a traced 0 counts as the rarest.
    features: f, the classifier's input, [b, d]. |f| is sqrt(sum f^2 + 1e-24), so that f = 0 has a gradient.
    alpha: >= 0; a schedule in the paper. The released code uses `parabolic` with end=60 (CIFAR) or 150, shorten=10.
    normalize: divide lambda by its maximum, as the released code does; the paper does not.

  Returns:
    Logits for a cross entropy, [b, c], float32 or better. Predictions use the raw z.

  Raises:
    ConfigError: alpha below 0.
    DataError: counts that are not one positive number per class.

  References:
    Li et al., `Feature-Balanced Loss for Long-Tailed Visual Recognition <https://arxiv.org/abs/2305.10772>`_, 2022,
    equations 5 to 8; `FeaBalLoss` of juyongjiang/FBL.

  >>> fbl(jnp.zeros((1, 2)), jnp.array([0]), jnp.array([9, 1]), features=jnp.array([[3.0, 4.0]]), alpha=10.0).tolist()
  [[0.0, -2.0]]
  """
  del labels
  logits = at_least_float32(logits)
  counts = positive_counts(class_counts, logits)
  stimulus = jnp.log(counts.max() / counts)
  if normalize:
    stimulus = stimulus / jnp.where(stimulus.max() > 0, stimulus.max(), 1.0)
  norm = jnp.sqrt(jnp.sum(at_least_float32(features) ** 2, axis=-1, keepdims=True) + 1e-24)
  return logits - computed_once(alpha / norm) * computed_once(stimulus)


@has(drops_columns=True)
@ranged
def softmax_equalization(
    logits: Float[Array, "b c"],
    labels: Int[Array, "b"],
    class_counts: Real[Array, "c"],
    *,
    key: jax.Array | None = None,
    mask: Bool[Array, "b c"] | None = None,
    threshold: Annotated[Number, "[0, 1]"] = 0.005,
    keep: Annotated[Number, "[0, 1]"] = 0.9,
) -> Float[Array, "b c"]:
  """Softmax equalisation: drops rare classes at random from the softmax of the examples of other classes.

  softmax(logit_i)_j = exp(z_ij) / sum_k w_ik exp(z_ik) for every j with w_ij = 1
  w_ik = 1 - beta_ik [n_k / N < threshold] [k != y_i] with beta ~ Bernoulli(keep)

  Args:
    logits: z, [b, c].
    labels: class indices in [0, c), [b].
    class_counts: training images n of each class, positive, in any order, [c]; a traced 0 has the prior 0.
    key: for drawing beta, a new one for each element. Give `key` or `mask`.
    mask: beta itself, [b, c].
    threshold: a class is rare if its fraction of the training images is below this, in [0, 1].
    keep: the probability of dropping a rare class, in [0, 1]; the paper's gamma.

  Returns:
    Logits for a cross entropy without label smoothing, [b, c], float32 or better: z, and -1e30 where w is 0.

  Raises:
    ConfigError: both or neither of `key` and `mask`, or threshold or keep outside [0, 1].
    DataError: counts that are not one positive number per class, or labels outside [0, c).

  References:
    Tan et al., `Equalization Loss for Long-Tailed Object Recognition <https://arxiv.org/abs/2003.05176>`_, 2020,
    the softmax form. Its authors published no code; the defaults are those of `SEQL` of BagofTricks-LT.

  >>> softmax_equalization(jnp.zeros((1, 3)), jnp.array([2]), jnp.array([998, 1, 1]), mask=jnp.ones((1, 3))).tolist()
  [[0.0, -1.0000000150474662e+30, 0.0]]
  """
  if (key is None) == (mask is None):
    raise ConfigError(f"softmax_equalization draws its mask from `key` or takes it as `mask`: give exactly one of "
                      f"them, got {'neither' if key is None else 'both'}.")
  logits = at_least_float32(logits)
  prior = class_prior(class_counts, logits)
  if mask is None:
    mask = jax.random.bernoulli(key, keep, logits.shape)
  rare = computed_once(prior < threshold)
  # The gradient of a sum needs no mask: it is zero where the softmax is.
  return logits + jnp.where(jnp.asarray(mask, bool) & rare & ~is_label(labels, logits), _OUT_OF_THE_SOFTMAX, 0)


def _count(seen, logits, labels, weight):
  """Adds the labels of a batch to the examples of each class drawn so far, with the weight that mixup gives them."""
  del logits
  return seen.at[labels].add(weight)


@stateful("seen_counts", init=jnp.zeros, update=_count)
@ranged
def seesaw(
    logits: Float[Array, "b c"],
    labels: Int[Array, "b"],
    seen_counts: Real[Array, "c"],
    *,
    p: Annotated[Number, "[0, inf)"] = 0.8,
    q: Annotated[Number, "[0, inf)"] = 2.0,
) -> Float[Array, "b c"]:
  """Seesaw logits: push a class down less if it is rarer than the label, and more if it is confused with the label.

  logit_ij = z_ij + p min(0, log N_j - log N_y) + q max(0, log s_ij - log max(s_iy, 0.01)), z_iy unchanged,
  with s = softmax(z), constant for the gradient: the logarithms of the mitigation and the compensation factor

  Args:
    logits: z, [b, c].
    labels: class indices in [0, c), [b].
    seen_counts: N, the images of each class drawn so far, this batch included, [c]; 0 counts as 1.
    p: strength of the mitigation, >= 0.
    q: strength of the compensation, >= 0.

  Returns:
    Logits for a cross entropy, [b, c], float32 or better. Predictions use the raw z.

  Raises:
    ConfigError: p or q below 0.
    DataError: seen_counts that are not one number per class, zero or positive, or labels outside [0, c).

  References:
    Wang et al., `Seesaw Loss for Long-Tailed Instance Segmentation <https://arxiv.org/abs/2008.10032>`_, 2021;
    `SeesawLoss` of open-mmlab/mmpretrain.

  >>> seesaw(jnp.zeros((1, 2)), jnp.array([0]), jnp.array([100, 1])).round(4).tolist()
  [[0.0, -3.6840999126434326]]
  """
  logits = at_least_float32(logits)
  log_seen = computed_once(jnp.log(seen_or_one(seen_counts, logits)))
  labels = class_indices(labels, logits)
  constant = jax.lax.stop_gradient(logits)
  most, log_sum = log_normalizer(constant)
  least = most + log_sum + jnp.log(jnp.asarray(0.01, logits.dtype))
  floor = computed_once(jnp.maximum(at_label(constant, labels), least))
  mitigation = jnp.minimum(log_seen - computed_once(log_seen[labels])[..., None], 0)
  return logits + p * mitigation + q * jnp.maximum(constant - floor[..., None], 0)
