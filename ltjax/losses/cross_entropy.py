"""Cross entropy and the losses that reshape it: logits and labels in, one loss per example out."""

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ltjax.losses.arguments import Number, at_least_float32, class_indices, computed_once, probabilities, ranged

__all__ = ["cross_entropy", "focal"]


@ranged
def cross_entropy(
    logits: Float[Array, "b c"],
    labels: Int[Array, "b"] | Float[Array, "b c"],
    *,
    label_smoothing: Annotated[Number, "[0, 1]"] = 0.0,
) -> Float[Array, "b"]:
  """Softmax cross entropy.

  loss_i = -sum_c t'_ic log softmax(z_i)_c with t' = (1 - e) t + e / C

  A logit of -inf excludes its class from the softmax.

  Args:
    logits: z, [b, c].
    labels: class indices in [0, c), or target probabilities t that sum to 1, [b, c].
    label_smoothing: e in [0, 1].

  Returns:
    One loss per example, [b], float32 or better.

  Raises:
    ConfigError: label_smoothing outside [0, 1].
    DataError: labels outside [0, c), or probabilities that do not sum to 1.

  References:
    Szegedy et al., `Rethinking the Inception Architecture <https://arxiv.org/abs/1512.00567>`_, 2016, for the
    smoothing. The values are those of `torch.nn.functional.cross_entropy(reduction="none")`.

  >>> cross_entropy(jnp.array([[0.0, 0.0], [200.0, 0.0]]), jnp.array([0, 1])).tolist()
  [0.6931471824645996, 200.0]
  """
  logits = at_least_float32(logits)
  most, log_sum = log_normalizer(logits)
  if np.ndim(labels) == logits.ndim:
    t = probabilities(labels, logits)
    shifted = logits - most[..., None]
    # 0 log 0 = 0: an excluded class (logit -inf) without a target must not produce a NaN.
    possible = jnp.where((t == 0) & jnp.isneginf(shifted), 0.0, shifted)
    target = log_sum * jnp.sum(t, axis=-1) - jnp.sum(t * possible, axis=-1)
  else:
    target = computed_once(most - at_label(logits, class_indices(labels, logits))) + log_sum
  smooth = jnp.where(label_smoothing == 0, 0.0,
                     label_smoothing * (log_sum - jnp.mean(logits - most[..., None], axis=-1)))
  return (1 - label_smoothing) * target + smooth


def log_normalizer(logits: Float[Array, "b c"], axis: int = -1) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
  """Returns (max z, log sum exp(z - max z)); z minus both, in this order, is the log softmax."""
  # The backward pass stores nothing of the size of z: XLA recomputes it from z.
  most = jax.lax.stop_gradient(jnp.max(logits, axis=axis))
  return most, jnp.log(jnp.sum(jnp.exp(logits - jnp.expand_dims(most, axis)), axis=axis))


@jax.custom_jvp
def at_label(x: Float[Array, "b c"], labels: Int[Array, "b"]) -> Float[Array, "b"]:
  """Returns each row's entry at its label, NaN for a label outside [0, c)."""
  return jnp.take_along_axis(x, labels[..., None], axis=-1)[..., 0]


# The transpose of this form is a mask, which XLA fuses into the rest of the gradient. The transpose of a gather is a
# scatter into an array of the size of x.
@at_label.defjvp
def _at_label_jvp(primals, tangents):
  (x, labels), (dx, _) = primals, tangents
  here = labels[..., None] == jnp.arange(x.shape[-1])
  return at_label(x, labels), jnp.sum(jnp.where(here, dx, 0), axis=-1)


@ranged
def focal(
    logits: Float[Array, "b c"],
    labels: Int[Array, "b"],
    *,
    gamma: Annotated[Number, "[0, inf)"] = 1.0,
    detach: bool = False,
) -> Float[Array, "b"]:
  """Focal loss in its softmax form.

  loss_i = (1 - p_i)^gamma l_i with l_i the cross entropy of example i and p_i = exp(-l_i)

  Args:
    logits: z, [b, c].
    labels: class indices in [0, c), [b].
    gamma: focusing parameter, >= 0; 0 is cross entropy.
    detach: stop the gradient through the modulator (1 - p)^gamma. The GCL, KPS and FBL codes do; the LDAM-DRW code
      does not.

  Returns:
    One loss per example, [b], float32 or better.

  Raises:
    ConfigError: gamma below 0.
    DataError: labels outside [0, c).

  References:
    Lin et al., `Focal Loss for Dense Object Detection <https://arxiv.org/abs/1708.02002>`_, 2017, on the softmax
    probability of the label. With class weights w, the released codes compute p = exp(-w l), so that the weight enters
    the modulator, and divide by the batch size; here a weight multiplies the result (`weighted_mean`).

  >>> focal(jnp.zeros((1, 2)), jnp.array([0]), gamma=2.0).tolist()
  [0.1732867956161499]
  """
  loss = cross_entropy(logits, labels)
  miss = -jnp.expm1(-loss)
  # The power has no finite derivative at 0 for gamma < 1, and confident examples are exactly there.
  positive = miss > 0
  modulator = jnp.where(positive, jnp.where(positive, miss, 1.0) ** gamma, jnp.where(jnp.equal(gamma, 0), 1.0, 0.0))
  return (jax.lax.stop_gradient(modulator) if detach else modulator) * loss
