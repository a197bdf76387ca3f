"""Backbone and head, joined by global average pooling."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ltjax.distributed import platforms
from ltjax.models.camc import crop_windows
from ltjax.models.identity import Identity

__all__ = ["Classifier"]


class Classifier(nn.Module):
  """An image classifier: logits = head(mean over h, w of backbone(images)).

  A head with `takes_maps` gets the feature maps instead of their mean. If its `crops` is a number M (CAMC++), the maps
  are M x M pooled features, each of a crop of the image. The parameters have exactly two top keys, `backbone`
  and `head`.

  Args:
    backbone: module, `(images [b h w c], train) -> feature maps [b h' w' d]`.
    head: module, `(features [b d], train) -> logits [b c]`.
  """
  backbone: nn.Module
  head: nn.Module

  @nn.nowrap
  def on_features(self) -> "Classifier":
    """The same head on features that the backbone has already computed; the backbone's parameters stay unused."""
    return self.clone(backbone=Identity())

  def __call__(
      self, images: Float[Array, "b h w ch"], *, train: bool) -> tuple[Float[Array, "b c"], Float[Array, "b d"]]:
    """Returns (logits [b c], features [b d]), both float32 whatever the backbone's precision (float64 for float64).

    In training, the projections of a head that `projects` take the place of the features.

    Args:
      images: [b h w ch], normalised, or whatever input the backbone takes.
      train: the mode of the backbone's BatchNorm and of the head; True needs `mutable=["batch_stats"]`.
    """
    maps = self.maps(images, train=train)
    features = _pooled(maps)
    output = self.head(maps if getattr(self.head, "takes_maps", False) else features, train=train)
    return output if train and getattr(self.head, "projects", False) else (output, features)

  def maps(self, images: Float[Array, "b h w ch"], *, train: bool = False) -> Float[Array, "b h2 w2 d"]:
    """Returns the feature maps before pooling: the backbone's, or with `crops` one position per crop."""
    grid = getattr(self.head, "crops", None)
    if grid is None or self.is_initializing():  # no parameter's shape depends on the number of positions
      return self.backbone(images, train=train)
    rows, columns = (crop_windows(size, grid) for size in images.shape[1:3])
    windows = np.repeat(rows, grid, axis=0), np.tile(columns, (grid, 1, 1))

    def vector(module, carry, windows):
      row, column = windows
      crops = jnp.einsum("yi,bijc,xj->byxc", row, images, column, precision=jax.lax.Precision.HIGHEST)
      return carry, _pooled(module.backbone(crops, train=train))

    # One crop at a time bounds the memory; XLA runs convolutions inside a loop fifty times slower on a CPU.
    unroll = grid**2 if platforms.target() == "cpu" else 1
    moving = "batch_stats" if self.is_mutable_collection("batch_stats") else ()
    loop = nn.scan(vector, variable_broadcast=nn.DenyList(moving), variable_carry=moving, unroll=unroll)
    _, vectors = loop(self, (), windows)
    return vectors.reshape(grid, grid, *vectors.shape[1:]).transpose(2, 0, 1, 3)


def _pooled(maps):
  if maps.ndim == 2:  # a class token, which needs no pooling
    return maps.astype(jnp.promote_types(maps.dtype, jnp.float32))
  return jnp.mean(maps, axis=(1, 2), dtype=jnp.promote_types(maps.dtype, jnp.float32))
