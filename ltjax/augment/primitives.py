"""The primitives of AutoAugment and RandAugment on uint8 batches, one primitive and level an example.

Every example of a batch has a primitive of its own, so each family is computed once for the complete batch and the
others take part with parameters that change nothing: one gather for all geometry, one look-up for all functions of a
pixel's value, one blend each for colour and sharpness. The integer arithmetic is Pillow's.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

NAMES = ("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast",
         "sharpness", "posterize", "solarize", "autocontrast", "equalize", "invert")
KIND = {name: number for number, name in enumerate(NAMES)}


def apply(images: UInt8[Array, "b h w c"], kind: Int[Array, "b"], level: Float[Array, "b"]) -> UInt8[Array, "b h w c"]:
  """Applies primitive `NAMES[kind]` at `level` to each image.

  Args:
    images: c is 1 or 3.
    kind: numbers in `NAMES`.
    level: shear as the tangent, translation in pixels, rotation in degrees counter-clockwise, the factor of brightness,
      color, contrast and sharpness (1 changes nothing), the bits that posterize leaves, the threshold of solarize.
  """
  images = _geometry(images, kind, level)
  images = jnp.take_along_axis(_tables(images, kind, level)[:, None, None], images[..., None].astype(jnp.int32),
                               axis=-1)[..., 0]
  images = _blend(_grey(images), images, jnp.where(kind == KIND["color"], level, 1))
  return _blend(_smooth(images), images, jnp.where(kind == KIND["sharpness"], level, 1))


def _geometry(images, kind, level):
  """Nearest neighbours of an affine map, black outside: pixel centres at halves, as Pillow's transform."""
  b, h, w, _ = images.shape
  angle = jnp.where(kind == KIND["rotate"], -jnp.deg2rad(level), 0)
  cos, sin, ones = jnp.cos(angle), jnp.sin(angle), jnp.ones(b)

  def of(name):
    return jnp.where(kind == KIND[name], level, 0)

  # Input x = a x' + b y' + c; a rotation is about the centre, a shear about the corner.
  x0, y0 = w / 2, h / 2
  a, b_, d, e = cos * ones, sin + of("shear_x"), -sin + of("shear_y"), cos * ones
  rows = ((a, b_, x0 - cos * x0 - sin * y0 + of("translate_x")), (d, e, y0 + sin * x0 - cos * y0 + of("translate_y")))
  columns, lines = jnp.arange(w), jnp.arange(h)[:, None]
  x, y = (_fixed(one) * columns + _fixed(other) * lines + _fixed(offset + (one + other) / 2) >> 16
          for one, other, offset in rows)
  inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
  index = jnp.clip(y, 0, h - 1) * w + jnp.clip(x, 0, w - 1)
  moved = jnp.take_along_axis(images.reshape(b, h * w, -1), index.reshape(b, -1, 1), axis=1).reshape(images.shape)
  return jnp.where(inside[..., None], moved, 0)


def _fixed(number):
  """[b 1 1]: a number of 16 bits before and 16 after the point, as Pillow computes coordinates with."""
  return jnp.floor(number * 65536 + 0.5).astype(jnp.int32)[:, None, None]


def _tables(images, kind, level) -> UInt8[Array, "b c 256"]:
  """What becomes of each value of each channel."""
  b, h, w, c = images.shape
  values = jnp.arange(256)
  level = level[:, None, None]
  flat = images.reshape(b, h * w, c)
  counts = jnp.zeros((b, c, 256), jnp.int32).at[jnp.arange(b)[:, None, None], jnp.arange(c), flat].add(1)
  mean = jnp.floor(jnp.mean(_grey(images)[..., 0].astype(jnp.float32), axis=(1, 2)) + 0.5)[:, None, None]
  kept = 2 ** (8 - jnp.clip(level, 0, 8).astype(jnp.int32))
  found = dict(
      brightness=_mix(0.0, values, level), contrast=_mix(mean, values, level),
      posterize=jnp.where(kept > 255, 0, values // kept * kept),
      solarize=jnp.where(values < level, values, 255 - values),
      autocontrast=_stretched(counts), equalize=_equalized(counts), invert=255 - values)
  table = jnp.broadcast_to(values, (b, c, 256))
  for name, one in found.items():
    table = jnp.where((kind == KIND[name])[:, None, None], one, table)
  return table.astype(jnp.uint8)


def _stretched(counts):
  """Autocontrast without cut-off: the least value becomes 0, the largest 255.

  In integers, so exact. Pillow's doubles miss some exact values and so come out one lower at a few of them.
  """
  there, values = counts > 0, np.arange(256, dtype=np.int32)
  low = jnp.argmax(there, axis=-1, keepdims=True)
  high = 255 - jnp.argmax(there[..., ::-1], axis=-1, keepdims=True)
  return jnp.where(high > low, jnp.clip((values - low) * 255 // jnp.maximum(high - low, 1), 0, 255), values)


def _equalized(counts):
  """Histogram equalisation of every channel."""
  there, values = counts > 0, np.arange(256, dtype=np.int32)
  last = 255 - jnp.argmax(there[..., ::-1], axis=-1, keepdims=True)
  total = jnp.sum(counts, axis=-1, keepdims=True)
  step = (total - jnp.take_along_axis(counts, last, axis=-1)) // 255
  before = jnp.cumsum(counts, axis=-1) - counts
  found = jnp.minimum((step // 2 + before) // jnp.maximum(step, 1), 255)
  return jnp.where((step > 0) & (jnp.sum(there, axis=-1, keepdims=True) > 1), found, values)


def _mix(degenerate, values, factor):
  """degenerate + factor (value - degenerate), truncated and clipped, as Pillow's Image.blend."""
  return jnp.clip(jnp.trunc(degenerate + factor * (values - degenerate)), 0, 255)


def _blend(degenerate, images, factor):
  factor, images = factor[:, None, None, None], images.astype(jnp.float32)
  return _mix(degenerate.astype(jnp.float32), images, factor).astype(jnp.uint8)


def _grey(images):
  """The luma of ITU-R 601 in Pillow's fixed-point arithmetic."""
  if images.shape[-1] == 1:
    return images
  red, green, blue = jnp.moveaxis(images.astype(jnp.int32), -1, 0)
  return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).astype(jnp.uint8)[..., None]


def _smooth(images):
  """Pillow's SMOOTH filter: 5/13 of a pixel and 1/13 of each neighbour; the border stays as it is."""
  h, w = images.shape[1:3]
  wide = images.astype(jnp.int32)
  total = 4 * wide[:, 1:-1, 1:-1]
  for y in range(3):
    for x in range(3):
      total = total + wide[:, y:h - 2 + y, x:w - 2 + x]
  return images.at[:, 1:-1, 1:-1].set(((2 * total + 13) // 26).astype(jnp.uint8))
