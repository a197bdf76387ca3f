"""Backbone and head, joined by global average pooling."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["Classifier"]


class Classifier(nn.Module):
  """An image classifier: logits = head(mean over h, w of backbone(images)).

  Its parameters have exactly two top keys, `backbone` and `head`.

  Args:
    backbone: module, `(images [b h w c], train) -> feature maps [b h' w' d]`.
    head: module, `(features [b d], train) -> logits [b c]`.
  """
  backbone: nn.Module
  head: nn.Module

  def __call__(
      self, images: Float[Array, "b h w ch"], *, train: bool) -> tuple[Float[Array, "b c"], Float[Array, "b d"]]:
    """Returns (logits [b c], features [b d]), both float32 whatever the backbone's precision (float64 for float64).

    Args:
      images: [b h w ch], normalised, or what else the backbone takes.
      train: the mode of the backbone's BatchNorm and of the head; True needs `mutable=["batch_stats"]`.
    """
    maps = self.backbone(images, train=train)
    features = jnp.mean(maps, axis=(1, 2), dtype=jnp.promote_types(maps.dtype, jnp.float32))
    return self.head(features, train=train), features
