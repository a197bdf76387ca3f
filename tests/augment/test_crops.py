import numpy as np
import pytest

from ltjax.augment import crops

SIZES = np.array([[333, 500], [500, 333], [224, 224], [7, 900], [900, 7], [1, 1], [3, 2], [4000, 3000]])


def draws(count, seed=0):
  return np.random.default_rng(seed).random((count, crops.DRAWS))


def one_by_one(height, width, draw):
  """torchvision's loop, one image at a time, on the same draws."""
  for attempt in range(crops.ATTEMPTS):
    target = height * width * (0.08 + 0.92 * draw[attempt])
    ratio = np.exp(np.log(3 / 4) + (np.log(4 / 3) - np.log(3 / 4)) * draw[crops.ATTEMPTS + attempt])
    w, h = round(np.sqrt(target * ratio)), round(np.sqrt(target / ratio))
    if 0 < w <= width and 0 < h <= height:
      return int(draw[-2] * (height - h + 1)), int(draw[-1] * (width - w + 1)), h, w
  if width / height < 3 / 4:
    w, h = width, round(width / (3 / 4))
  elif width / height > 4 / 3:
    w, h = round(height * (4 / 3)), height
  else:
    w, h = width, height
  return (height - h) // 2, (width - w) // 2, h, w


def test_the_boxes_are_those_of_the_loop():
  sizes = np.repeat(SIZES, 300, axis=0)
  numbers = draws(len(sizes))
  found = crops.random_resized(sizes, numbers)
  np.testing.assert_array_equal(found, [one_by_one(*size, draw) for size, draw in zip(sizes.tolist(), numbers,
                                                                                        strict=True)])


@pytest.mark.parametrize("edge", [0.0, 1 - 2.0**-53])
def test_every_box_lies_in_its_image(edge):
  sizes = np.repeat(SIZES, 500, axis=0)
  for numbers in (draws(len(sizes), 1), np.full((len(sizes), crops.DRAWS), edge)):
    boxes = crops.random_resized(sizes, numbers)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= sizes).all()


def test_the_box_of_an_image_does_not_depend_on_the_others():
  numbers = draws(len(SIZES), 2)
  together = crops.random_resized(SIZES, numbers)
  alone = [crops.random_resized(SIZES[k : k + 1], numbers[k : k + 1])[0] for k in range(len(SIZES))]
  np.testing.assert_array_equal(together, alone)


def test_areas_ratios_and_positions_have_their_distributions():
  sizes = np.full((20_000, 2), 1000)
  # So small that every first attempt fits.
  boxes = crops.random_resized(sizes, draws(len(sizes), 3), area=(0.04, 0.25))
  shares, ratios = boxes[:, 2:].prod(axis=1) / 1e6, np.log(boxes[:, 3] / boxes[:, 2]) / np.log(4 / 3)
  places = boxes[:, :2] / (1000 - boxes[:, 2:])
  for values, low, high in ((shares, 0.04, 0.25), (ratios, -1, 1), (places[:, 0], 0, 1), (places[:, 1], 0, 1)):
    uniform = np.sort((values - low) / (high - low))
    assert np.abs(uniform - np.linspace(0, 1, len(uniform))).max() < 1.95 / np.sqrt(len(uniform))  # Kolmogorov-Smirnov


@pytest.mark.parametrize(("size", "resized", "corner"), [
    ((512, 1024), (256, 512), (16, 144)), ((375, 500), (256, 341), (16, 58)), ((500, 375), (341, 256), (58, 16)),
    ((10, 10), (256, 256), (16, 16)), ((300, 301), (256, 256), (16, 16))])
def test_the_central_square_is_torchvisions(size, resized, corner):
  scales, corners = crops.central(np.array([size]), 224)
  np.testing.assert_allclose(scales[0] * size, resized, rtol=1e-12)
  np.testing.assert_array_equal(corners[0], corner)


def test_the_central_square_of_other_sizes_leaves_the_same_margin():
  for size, side in ((64, 73), (112, 128), (448, 512)):
    scales, corners = crops.central(np.array([[99, 50]]), size)
    assert scales[0, 1] * 50 == pytest.approx(side)
    assert (corners >= 0).all()
