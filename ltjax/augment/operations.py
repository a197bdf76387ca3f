"""Operations of an augmentation list: images and a key in, images out, each example with draws of its own.

`UInt8` images are raw pixels, `Float` ones are normalised, `Real` means either. An operation with `labels` mixes the
examples of a batch and gives pairs of labels and their weights, which sum to 1. If it takes `partners`, images[order]
are `partners(order)`: made of raw pixels, which are fewer bytes where they come from another device.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Real, UInt8

from ltjax.augment import crops
from ltjax.augment import images as arithmetic
from ltjax.errors import ConfigError
from ltjax.losses.arguments import in_range

FILLS = ("zero", "noise")


def flip(images: Real[Array, "b h w c"], key: jax.Array) -> Real[Array, "b h w c"]:
  """A left-right flip of each image with probability 1/2."""
  return arithmetic.random_flip(images, key)


flip.rearranges = True  # the pixels only: the same before and after normalisation, but bytes move faster than floats


def jitter(images: UInt8[Array, "b h w 3"], key: jax.Array, *,
           strengths: Annotated[Sequence[float], "[0, 1]"]) -> Real[Array, "b h w 3"]:
  """Brightness, contrast and saturation by factors uniform in 1 +- strength, in a random order; hue if asked for.

  That is torchvision's `ColorJitter` without the rounding after each. The result is float32 in [0, 255].

  Args:
    images: raw pixels.
    key: of the draws.
    strengths: of (brightness, contrast, saturation), or of these and hue; hue is in [0, 0.5], as a part of the circle.
  """
  if len(strengths) not in (3, 4):
    raise ConfigError("jitter: strengths must be those of (brightness, contrast, saturation) or (brightness, contrast, "
                      f"saturation, hue), got {tuple(strengths)!r}")
  in_range("jitter: strengths", tuple(strengths), "[0, 1]")
  in_range("jitter: the fourth of strengths, that of hue,", tuple(strengths[3:]), "[0, 0.5]")
  return arithmetic.jitter(images, *arithmetic.draw_jitter(key, len(images), strengths=strengths))


def random_resized_crop(
    images: UInt8[Array, "b h w c"], key: jax.Array, *, size: Annotated[int, "[8, inf)"],
    area: Annotated[tuple, "(0, 1]"] = (0.08, 1.0), ratio: Annotated[tuple, "(0, inf)"] = (3 / 4, 4 / 3),
    interpolation: Literal["bilinear", "bicubic"] = "bilinear", final_area: Annotated[float | None, "(0, 1]"] = None,
    progress: float | jax.Array = 0.0,
) -> UInt8[Array, "b size size c"]:
  """A random box of each image, resized to a square: `crops.random_resized`, on the device.

  Images from files are cut on the host, before they are decoded. Resizing is antialiased; the run's `interpolation` is
  that of an operation that names none. With `final_area` the least area rises to it, as in LIFT+.
  """
  b, h, w, _ = images.shape
  draws = jax.random.uniform(key, (b, crops.DRAWS))
  boxes = crops.random_resized(jnp.broadcast_to(jnp.array([h, w]), (b, 2)), draws, area=area, ratio=ratio,
                               final_area=final_area, progress=progress, xp=jnp)

  def cut(image, box):
    scale = size / box[2:]
    moved = jax.image.scale_and_translate(image.astype(jnp.float32), (size, size, image.shape[-1]), (0, 1), scale,
                                          -box[:2] * scale, arithmetic.METHODS[interpolation])
    return jnp.clip(jnp.round(moved), 0, 255).astype(jnp.uint8)

  return jax.vmap(cut)(images, boxes.astype(jnp.float32))


random_resized_crop.boxes = crops.random_resized  # the host's part, for images from files


def central_crop(images: UInt8[Array, "b h w c"], key: jax.Array, *, size: Annotated[int, "[8, inf)"]) -> UInt8[
    Array, "b size size c"]:
  """No augmentation: the images are cut and resized as for a test, files on the host and arrays here."""
  del key
  return arithmetic.resize(images, size=size).astype(jnp.uint8)


central_crop.boxes = None  # of images from files: those of a test
central_crop.augments = False  # an image is the same in every epoch


# -- erasing ----------------------------------------------------------------------------------------------------------


def cutout(images: Real[Array, "b h w c"], key: jax.Array, *, size: Annotated[int, "[1, inf)"]) -> Real[
    Array, "b h w c"]:
  """A square of zeros whose centre is uniform over the image; the part outside the image is cut off.

  Zero is black in raw pixels and the mean colour in normalised images, as in the authors' code. That code makes the
  side of the square even; here an odd `size` stays odd.

  References:
    DeVries and Taylor, `Improved Regularization of Convolutional Neural Networks with Cutout
    <https://arxiv.org/abs/1708.04552>`_, 2017.
  """
  b, h, w, _ = images.shape
  centres = jax.random.randint(key, (b, 2), 0, jnp.array([h, w]))
  corners = jnp.maximum(centres - size // 2, 0)
  return jnp.where(_inside(h, w, corners, jnp.minimum(centres - size // 2 + size, jnp.array([h, w]))), 0, images)


def random_erasing(
    images: Float[Array, "b h w c"], key: jax.Array, *, probability: Annotated[float, "[0, 1]"] = 0.5,
    area: Annotated[tuple, "(0, 1)"] = (0.02, 1 / 3), ratio: Annotated[tuple, "(0, inf)"] = (0.3, 3.3),
    fill: str = "zero",
) -> Float[Array, "b h w c"]:
  """A random box of each normalised image becomes zeros, or normal noise, with some probability.

  An image stays as it is where none of ten drawn boxes fits. Noise is standard normal, one number per channel of a
  pixel.

  Args:
    images: normalised.
    key: of the draws.
    probability: that an image gets a box.
    area: range of the part of the image's area that the box covers, uniform.
    ratio: range of width / height, log-uniform.
    fill: "zero", which is the mean colour, or "noise".

  References:
    Zhong et al., `Random Erasing Data Augmentation <https://arxiv.org/abs/1708.04896>`_, 2020, algorithm 1. The
    log-uniform ratio, the ten attempts and the defaults are those of torchvision's `RandomErasing`; its largest area is
    0.33.
  """
  if fill not in FILLS:
    raise ConfigError(f"random_erasing: fill must be one of {', '.join(FILLS)}, got {fill!r}")
  b, h, w, _ = images.shape
  key_box, key_use, key_noise = jax.random.split(key, 3)
  draws = jax.random.uniform(key_box, (b, crops.DRAWS))
  boxes, fits = crops.random_boxes(jnp.broadcast_to(jnp.array([h, w]), (b, 2)), draws, area=area, ratio=ratio, xp=jnp)
  used = fits & (jax.random.uniform(key_use, (b,)) < probability)
  values = jax.random.normal(key_noise, images.shape, images.dtype) if fill == "noise" else 0
  erased = _inside(h, w, boxes[:, :2], boxes[:, :2] + boxes[:, 2:]) & used[:, None, None, None]
  return jnp.where(erased, values, images)


def _inside(h, w, first, last):
  """[b h w 1]: the pixels from `first` to before `last`, each [b 2] as (row, column)."""
  rows, columns = jnp.arange(h)[:, None], jnp.arange(w)
  first, last = first[:, :, None, None], last[:, :, None, None]
  return ((rows >= first[:, 0]) & (rows < last[:, 0]) & (columns >= first[:, 1]) & (columns < last[:, 1]))[..., None]


# -- mixing -----------------------------------------------------------------------------------------------------------


def mixup(images: Float[Array, "b h w c"], key: jax.Array, labels: Int[Array, "b"], *,
          alpha: Annotated[float, "(0, inf)"] = 1.0, per_sample: bool = False,
          partners: Callable | None = None) -> tuple[Float[Array, "b h w c"], tuple]:
  """lambda x + (1 - lambda) x[order] with lambda ~ Beta(alpha, alpha), one for the batch or one a sample.

  References:
    Zhang et al., `mixup <https://arxiv.org/abs/1710.09412>`_, 2018, which draws one lambda a batch.
  """
  share, order = arithmetic.draw_mixup(key, len(labels), alpha=alpha)
  if not per_sample:
    return arithmetic.mixup(images, labels, share, order, partners)
  shares = jax.random.beta(jax.random.fold_in(key, 2), alpha, alpha, (len(labels),))
  column = shares.reshape(-1, *[1] * (images.ndim - 1))
  mixed = column * images + (1 - column) * (partners or images.__getitem__)(order)
  return mixed, ((labels, shares), (labels[order], 1 - shares))


mixup.fits_features = True  # it needs no height and width


def cutmix(images: Float[Array, "b h w c"], key: jax.Array, labels: Int[Array, "b"], *,
           alpha: Annotated[float, "(0, inf)"] = 1.0, per_sample: bool = False,
           partners: Callable | None = None) -> tuple[Float[Array, "b h w c"], tuple]:
  """A box of another image is pasted in; labels are weighted by the areas that are seen.

  The box has the shape of the image, the area 1 - lambda with lambda ~ Beta(alpha, alpha) and a uniform centre; the
  part outside the image is cut off, and the weights are those of the rest.

  References:
    Yun et al., `CutMix <https://arxiv.org/abs/1905.04899>`_, 2019.
  """
  b, h, w, _ = images.shape
  count = b if per_sample else 1
  key_share, key_order, key_centre = jax.random.split(key, 3)
  side = jnp.sqrt(1 - jax.random.beta(key_share, alpha, alpha, (count,)))[:, None]
  extent = jnp.array([h, w])
  centre = jax.random.randint(key_centre, (count, 2), 0, extent)
  half = jnp.floor(side * extent / 2).astype(jnp.int32)
  first, last = jnp.clip(centre - half, 0, extent), jnp.clip(centre + half, 0, extent)
  order = jax.random.permutation(key_order, b)
  own = 1 - jnp.prod(last - first, axis=1) / (h * w)
  own = own if per_sample else own[0]
  mixed = jnp.where(_inside(h, w, first, last), (partners or images.__getitem__)(order), images)
  return mixed, ((labels, own), (labels[order], 1 - own))
