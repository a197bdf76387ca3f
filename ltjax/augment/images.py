"""Image augmentation inside jit: uint8 batches in, normalised float batches out. Pure functions of their key."""

from collections.abc import Callable, Sequence
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Real, UInt8

METHODS = dict(bilinear="linear", bicubic="cubic")  # the names of interpolations in jax.image


def random_crop(images: UInt8[Array, "b h w c"], key: jax.Array, *,
                padding: Annotated[int, "[0, inf)"]) -> UInt8[Array, "b h w c"]:
  """A crop of the original size at a uniform place of the image framed by `padding` black pixels.

  The frame is zero before normalisation, as in every CIFAR-LT code base (torchvision `RandomCrop(32, padding=4)`).
  """
  b, h, w, c = images.shape
  corners = jax.random.randint(key, (b, 2), 0, 2 * padding + 1)
  framed = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
  return jax.vmap(lambda image, corner: jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (h, w, c)))(
      framed, corners)


def random_flip(images: UInt8[Array, "b h w c"], key: jax.Array) -> UInt8[Array, "b h w c"]:
  """A left-right flip of each image with probability 1/2."""
  flipped = jax.random.bernoulli(key, 0.5, (len(images), 1, 1, 1))
  return jnp.where(flipped, images[:, :, ::-1], images)


def draw_jitter(key: jax.Array, batch_size: int, *, strengths: Sequence[float]) -> tuple[
    Float[Array, "b n"], Int[Array, "b n"]]:
  """Factors of brightness, contrast and saturation, uniform in 1 +- strength, and a random order of the three.

  A fourth strength adds the shift of the hue, uniform in +- strength, at a uniform place of the order. The draws of
  the three stay as they are without it.
  """
  key_factors, key_order = jax.random.split(key)
  spread = jax.random.uniform(key_factors, (batch_size, 3), minval=-1.0, maxval=1.0)
  factors, ranks = 1 + spread * jnp.float32(strengths[:3]), jax.random.uniform(key_order, (batch_size, 3))
  if len(strengths) == 4:
    key_shift, key_rank = jax.random.split(jax.random.fold_in(key, 2))
    shift = strengths[3] * jax.random.uniform(key_shift, (batch_size, 1), minval=-1.0, maxval=1.0)
    factors = jnp.concatenate((factors, shift), axis=1)
    ranks = jnp.concatenate((ranks, jax.random.uniform(key_rank, (batch_size, 1))), axis=1)
  return factors, jnp.argsort(ranks, axis=1)


def jitter(images: UInt8[Array, "b h w 3"], factors: Float[Array, "b n"], order: Int[Array, "b n"]) -> Float[
    Array, "b h w 3"]:
  """factor * image + (1 - factor) * other, clipped to [0, 255], three times: for each entry of `order`.

  The other image is black for 0 (brightness), the mean of the image's grey for 1 (contrast), its grey for 2
  (saturation). An entry 3 shifts the hue by its factor instead. That is torchvision's `ColorJitter` without the
  rounding after each.
  """
  images, hue = images.astype(jnp.float32), order.shape[1] == 4
  for turn in range(order.shape[1]):
    kind = order[:, turn]
    grey = images @ jnp.float32([0.299, 0.587, 0.114])
    other = jnp.choose(kind[:, None, None], [jnp.zeros_like(grey), jnp.broadcast_to(
        grey.mean(axis=(1, 2), keepdims=True), grey.shape), grey], mode="clip")[..., None]
    factor = jnp.take_along_axis(factors, kind[:, None], axis=1)[..., None, None]
    blended = jnp.clip(factor * images + (1 - factor) * other, 0, 255)
    images = jnp.where((kind == 3)[:, None, None, None], shift_hue(images, factors[:, 3]), blended) if hue else blended
  return images


def shift_hue(images: Float[Array, "b h w 3"], shift: Float[Array, "b"]) -> Float[Array, "b h w 3"]:
  """Turns the hue by `shift` of the colour circle; value and saturation (of HSV) stay.

  With hue h in [0, 6), value v and chroma c the channels are v - c clip(min(k, 4 - k), 0, 1), k = (h + n) mod 6 with
  n = 5, 3, 1 for red, green and blue (Smith, `Color Gamut Transform Pairs`, SIGGRAPH 1978, in one formula).
  """
  red, green, blue = jnp.moveaxis(images, -1, 0)
  value = images.max(axis=-1)
  chroma = value - images.min(axis=-1)
  safe = jnp.where(chroma > 0, chroma, 1)  # a grey has no hue, and its chroma of 0 leaves every channel at the value
  # Not `value == red`: a compiler may compute a channel twice, for the maximum and for the comparison, with unlike
  # rounding. Then none is the maximum, and the hue is another; between two largest channels it makes no difference.
  hue = jnp.where((red >= green) & (red >= blue), (green - blue) / safe,
                  jnp.where(green >= blue, 2 + (blue - red) / safe, 4 + (red - green) / safe))
  k = jnp.mod((hue + 6 * shift[:, None, None])[..., None] + jnp.float32([5, 3, 1]), 6)
  return value[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)


def normalize(images: Real[Array, "b h w c"], mean: Float[Array, "c"], std: Float[Array, "c"]) -> Float[
    Array, "b h w c"]:
  """(image / 255 - mean) / std in float32."""
  return (images.astype(jnp.float32) / 255 - mean) / std


def draw_mixup(key: jax.Array, batch_size: int, *, alpha: float) -> tuple[Float[Array, ""], Int[Array, "b"]]:
  """One lambda ~ Beta(alpha, alpha) and one permutation for the whole batch (Zhang et al., mixup, 2018)."""
  key_share, key_order = jax.random.split(key)
  return jax.random.beta(key_share, alpha, alpha), jax.random.permutation(key_order, batch_size)


def mixup(images: Float[Array, "b h w c"], labels: Int[Array, "b"], share: Float[Array, ""], order: Int[Array, "b"],
          partners: Callable | None = None) -> tuple[Float[Array, "b h w c"], tuple]:
  """lambda x + (1 - lambda) x[order], with the two (labels, share) pairs whose criteria the step adds up.

  The criterion is called once a pair, as the released codes do, so a random criterion draws fresh noise for each.
  `partners(order)` gives x[order] where they come from elsewhere.
  """
  mixed = share * images + (1 - share) * (partners or images.__getitem__)(order)
  return mixed, ((labels, share), (labels[order], 1 - share))


def resize(images: UInt8[Array, "b h w c"], *, size: int, interpolation: str = "bilinear") -> Float[
    Array, "b size size c"]:
  """Squares of `size`, for tests: antialiased where it shrinks, rounded to whole values of [0, 255].

  Bicubic is Pillow's, to a level: rows first, rounded and clipped in between, as a cubic overshoots at edges.
  """
  b, h, _, c = images.shape
  shapes = [(b, size, size, c)] if interpolation == "bilinear" else [(b, h, size, c), (b, size, size, c)]
  images = images.astype(jnp.float32)
  for shape in shapes:
    images = jnp.clip(jnp.round(jax.image.resize(images, shape, METHODS[interpolation])), 0, 255)
  return images
