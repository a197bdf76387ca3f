"""Supervised contrastive learning, alone and beside a classifier that learns from examples of its own."""

from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ltjax.errors import ConfigError
from ltjax.losses.arguments import Number, at_least_float32, class_indices, ranged
from ltjax.losses.cross_entropy import cross_entropy
from ltjax.losses.traits import has

__all__ = ["hybrid_contrastive", "supervised_contrastive"]


@ranged
def supervised_contrastive(features: Float[Array, "b d"], labels: Int[Array, "b"], *,
                           temperature: Annotated[Number, "(0, inf)"] = 0.1) -> Float[Array, "b"]:
  """The supervised contrastive loss: draws the examples of a class together, relative to all others of the batch.

  loss_i = -1/|P_i| sum_{j in P_i} log( exp(<v_i, v_j> / t) / sum_{k != i} exp(<v_i, v_k> / t) ), v = x / |x|
  P_i are the other examples of i's class; without any the loss is 0

  Args:
    features: x, [b, d], several views of each image among them. |x| is sqrt(sum x^2 + 1e-24).
    labels: class indices, [b].
    temperature: t > 0.

  Returns:
    One loss per example, [b], float32 or better. The authors' code multiplies by t / 0.07; this one does not.

  Raises:
    ConfigError: a temperature that is not positive.
    DataError: labels that are not one integer per row.

  References:
    Khosla et al., `Supervised Contrastive Learning <https://arxiv.org/abs/2004.11362>`_, 2020, equation 2.

  >>> supervised_contrastive(jnp.eye(3)[jnp.array([0, 0, 1])], jnp.array([0, 0, 1]), temperature=1.0).round(4).tolist()
  [0.3133000135421753, 0.3133000135421753, 0.0]
  """
  x = at_least_float32(features)
  labels = jnp.asarray(labels)
  v = x / jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-24)
  others = ~jnp.eye(len(v), dtype=bool)
  similarity = jnp.matmul(v, v.T, precision=jax.lax.Precision.HIGHEST) / temperature
  most = jax.lax.stop_gradient(jnp.max(similarity, axis=-1, keepdims=True))
  log_sum = jnp.log(jnp.sum(jnp.where(others, jnp.exp(similarity - most), 0), axis=-1, keepdims=True))
  positive = (labels[:, None] == labels[None]) & others
  total = jnp.sum(jnp.where(positive, log_sum - (similarity - most), 0), axis=-1)
  return total / jnp.maximum(jnp.sum(positive, axis=-1), 1)


@has(of_batch=True, rows_of="contrastive_views")
@ranged
def hybrid_contrastive(
    logits: Float[Array, "b c"],
    labels: Int[Array, "b"],
    *,
    features: Float[Array, "b d"],
    share: Annotated[Number, "[0, 1]"],
    temperature: Annotated[Number, "(0, inf)"] = 0.1,
) -> Float[Array, "b"]:
  """A classifier on the first third of the rows, `supervised_contrastive` on the others, which are pairs of views.

  mean_i loss_i = (1 - a) mean_{first third} CE(z_i, y_i) + a mean_{the others} SC(x_i)

  `augment.batches.contrastive_views` makes such a batch. Only `mean` over all rows gives the loss of the paper;
  different weights per example have no meaning here.

  Args:
    logits: z, [b, c]; those of the last two thirds have no effect.
    labels: class indices in [0, c), [b].
    features: x, [b, d], such as the projections of `ProjectedLinear`; those of the first third have no effect.
    share: a in [0, 1], of the contrastive part; 1 - (t / T)^2 in epoch t of T in the paper.
    temperature: as in `supervised_contrastive`.

  Returns:
    One value per example, [b], float32 or better.

  Raises:
    ConfigError: a share or temperature out of range, or rows that are no thirds.
    DataError: labels outside [0, c).

  References:
    Wang et al., `Contrastive Learning based Hybrid Networks for Long-Tailed Image Classification
    <https://arxiv.org/abs/2103.14267>`_, 2021, the network with the SC loss. No code was released.

  >>> logits, features = jnp.zeros((3, 2)), jnp.ones((3, 4))
  >>> hybrid_contrastive(logits, jnp.array([1, 0, 0]), features=features, share=0.5).round(4).tolist()
  [1.0397000312805176, 0.0, 0.0]
  """
  if len(logits) % 3:
    raise ConfigError(f"hybrid_contrastive: one third of the rows is for the classifier, but {len(logits)} rows have "
                      "no third; add dict(name='contrastive_views', sampler=...) to the transforms of the stage")
  logits, features, first = at_least_float32(logits), jnp.asarray(features), len(logits) // 3
  labels = class_indices(labels, logits)
  classified = cross_entropy(logits[:first], labels[:first])
  contrasted = supervised_contrastive(features[first:], labels[first:], temperature=temperature)
  return jnp.concatenate([3 * (1 - share) * classified, 1.5 * share * contrasted.astype(classified.dtype)])
