"""The loss of OLTR, which keeps the centroids of classes near their features and away from the others."""

from typing import Annotated

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ltjax.errors import DataError
from ltjax.losses.arguments import Number, at_least_float32, class_indices, is_label, ranged
from ltjax.losses.cross_entropy import at_label, cross_entropy
from ltjax.losses.traits import has

__all__ = ["discriminative_centroids"]


@has(of_batch=True, takes="distances")
@ranged
def discriminative_centroids(
    logits: Float[Array, "b c"],
    labels: Int[Array, "b"],
    *,
    features: Float[Array, "b c"],
    weight: Annotated[Number, "[0, inf)"] = 0.01,
    repulsion: Annotated[Number, "[0, inf)"] = 0.01,
    margin: Annotated[Number, "[0, inf)"] = 10.0,
) -> Float[Array, "b"]:
  """Cross entropy, and a term that draws features to the centroid of their class and keeps them off the others.

  loss_i = CE(z_i, y_i) + weight (d_iy / 2 + repulsion max(0, margin - sum_j sum_{c != y_j} d_jc / (B C)))

  Every example carries the last term, which belongs to the batch; different weights per example have no meaning here.

  Args:
    logits: z, [b, c].
    labels: class indices in [0, c), [b].
    features: d, the squared distances to the centroids, [b, c], as the head `OLTR` returns them in training.
    weight: of the second term, >= 0.
    repulsion: of the distances to other centroids, >= 0.
    margin: of their mean, >= 0.

  Returns:
    One loss per example, [b], float32 or better. The gradient of the centroids is that of this loss; the released code
    divides a centroid's by 1 + the number of the batch's examples of its class.

  Raises:
    ConfigError: a number out of range.
    DataError: labels outside [0, c), or distances of another shape than the logits.

  References:
    Liu et al., `Large-Scale Long-Tailed Recognition in an Open World <https://arxiv.org/abs/1904.05160>`_, 2019,
    equation 9; `DiscCentroidsLoss` of zhmiao/OpenLongTailRecognition-OLTR, the source of the constants.

  >>> distances = jnp.array([[2.0, 30.0]])
  >>> discriminative_centroids(jnp.zeros((1, 2)), jnp.array([0]), features=distances, weight=1.0).round(4).tolist()
  [1.6930999755859375]
  """
  logits, distances = at_least_float32(logits), at_least_float32(features)
  labels = class_indices(labels, logits)
  if distances.shape != logits.shape:
    raise DataError(f"discriminative_centroids: features must be squared distances of shape {logits.shape}, got "
                    f"{distances.shape}.")
  others = jnp.mean(jnp.where(is_label(labels, logits), 0, distances))
  near = at_label(distances, labels) / 2 + repulsion * jnp.maximum(margin - others, 0)
  return cross_entropy(logits, labels) + weight * near
