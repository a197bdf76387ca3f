"""The backbone of features that another network has computed before."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["Identity"]


class Identity(nn.Module):
  """Passes features, or feature maps, through: `dataset=dict(name="features", ...)` has them instead of images.

  It has no parameters.
  """

  takes_features = True  # the data hold what a backbone would give, not images

  @nn.compact
  def __call__(self, images: Float[Array, "b *d"], *, train: bool) -> Float[Array, "b *d"]:
    """Returns `images`, [b d] or maps [b h w d], as they are."""
    del train
    return jnp.asarray(images)
