"""Where photographs are cut, on the host: sizes in, boxes out. Pure functions of their draws, for whole batches."""

import numpy as np
from jaxtyping import Float, Int

from ltjax.errors import ConfigError

ATTEMPTS = 10
DRAWS = 2 * ATTEMPTS + 2  # the numbers that a random crop takes
MARGIN = 24  # pixels by which an image exceeds the squares of `five`
CORNERS = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [0.5, 0.5]])  # where they are, (vertical, horizontal) in [0, 1]


def random_resized(sizes: Int[np.ndarray, "b 2"], draws: Float[np.ndarray, "b d"], *, area=(0.08, 1.0),
                   ratio=(3 / 4, 4 / 3), final_area=None, progress=0.0, xp=np) -> Int[np.ndarray, "b 4"]:
  """Boxes (top, left, height, width) of a uniform share of the area, a log-uniform ratio and a uniform corner.

  The first of ten attempts that fits is taken; where none does, the largest centred box whose ratio is allowed.

  Args:
    sizes: (height, width) of the images.
    draws: U[0, 1), `DRAWS` an image.
    area: range of the share of the area.
    ratio: range of width / height.
    final_area: the least share at the end of the stage, to which it rises linearly; None leaves it where it is.
    progress: part of the stage that is over, in [0, 1].
    xp: numpy, or jax.numpy inside jit.

  References:
    Szegedy et al., `Going Deeper with Convolutions <https://arxiv.org/abs/1409.4842>`_, 2015; torchvision's
    `RandomResizedCrop`, with the ten attempts, which draws the same distribution from another generator.

  >>> random_resized(np.array([[100, 100]]), np.zeros((1, DRAWS)), area=(0.25, 1.0), ratio=(1.0, 1.0)).tolist()
  [[0, 0, 50, 50]]
  """
  least = area[0] if final_area is None else area[0] + progress * (final_area - area[0])
  boxes, found = random_boxes(sizes, draws, area=area, ratio=ratio, least=least, xp=xp)
  # Where nothing fits, only one side is too long for the ratio, and it is cut.
  largest = xp.minimum(sizes, xp.rint(sizes[:, ::-1] * xp.asarray((1 / ratio[0], ratio[1]))).astype(sizes.dtype))
  largest = xp.maximum(largest, 1)
  central = xp.concatenate(((sizes - largest) // 2, largest), axis=1)
  return xp.where(found[:, None], boxes, central)


def random_boxes(sizes, draws, *, area, ratio, least=None, xp=np):
  """(boxes [b 4], whether one of the ten attempts fits [b]); the arguments are those of `random_resized`.

  `least` replaces the lower end of `area`.
  """
  for name, limits in dict(area=area, ratio=ratio).items():
    if len(limits) != 2 or not 0 < limits[0] <= limits[1]:
      raise ConfigError(f"{name} must be two positive numbers, the smaller first, got {tuple(limits)!r}")
  shares, ratios, places = draws[:, :ATTEMPTS], draws[:, ATTEMPTS:2 * ATTEMPTS], draws[:, 2 * ATTEMPTS:]
  least = area[0] if least is None else least
  areas = sizes.prod(axis=1, keepdims=True) * (least + (area[1] - least) * shares)
  ratios = xp.exp(np.log(ratio[0]) + np.log(ratio[1] / ratio[0]) * ratios)
  boxes = xp.rint(xp.sqrt(xp.stack((areas / ratios, areas * ratios), axis=-1))).astype(sizes.dtype)  # [b attempts 2]
  fits = ((boxes > 0) & (boxes <= sizes[:, None])).all(axis=-1)
  chosen = boxes[xp.arange(len(boxes)), fits.argmax(axis=1)]
  corners = (places * (sizes - chosen + 1)).astype(sizes.dtype)
  return xp.concatenate((corners, chosen), axis=1), fits.any(axis=1)


def central(sizes: Int[np.ndarray, "b 2"], size: int) -> tuple[Float[np.ndarray, "b 2"], Int[np.ndarray, "b 2"]]:
  """(scales, corners) of the test image: its shorter side becomes 8/7 of `size`, and a centred square is cut out.

  That is torchvision's `Resize(256)` and `CenterCrop(224)` for a size of 224, rounding included.

  Returns:
    The factor on height and width that resizes the whole image, and (top, left) of the square in what it becomes.

  >>> scales, corners = central(np.array([[512, 1024]]), 224)
  >>> scales.tolist(), corners.tolist()
  ([[0.5, 0.5]], [[16, 144]])
  """
  resized = _shorter_side(sizes, size * 8 // 7)
  return resized / sizes, np.rint((resized - size) / 2).astype(np.int64)


def five(sizes: Int[np.ndarray, "b 2"], size: int, views: Int[np.ndarray, "b"]) -> tuple[
    Float[np.ndarray, "b 2"], Int[np.ndarray, "b 2"]]:
  """`central` for an ensemble over crops: the shorter side becomes `size` + `MARGIN`, and `views` choose the square.

  That is torchvision's `Resize` and `FiveCrop`: 0 to 3 are the corners, 4 is the centre.

  >>> five(np.array([[496, 496]]), 224, np.array([4]))[1].tolist()
  [[12, 12]]
  """
  resized = _shorter_side(sizes, size + MARGIN)
  corners = CORNERS[views] * (resized - size)
  return resized / sizes, np.rint(corners).astype(np.int64)


def _shorter_side(sizes, side: int):
  """`sizes` after a resize that brings the shorter side to `side`."""
  shorter = sizes.min(axis=1, keepdims=True)
  return np.where(sizes == shorter, side, side * sizes // shorter)
