"""The operations of an augmentation list: their effect on real images, and the distributions of their draws."""

import colorsys
import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from ltjax import augment
from ltjax.augment import crops, images
from ltjax.errors import ConfigError
from tests.processes import flags

ROOT = pathlib.Path(__file__).parents[2]
KEY = jax.random.key(3)
PICTURE = load_sample_images().images[1]
PIXELS = np.stack([PICTURE[y:y + 12, x:x + 10] for y in (40, 150, 260, 330) for x in (50, 160, 300, 480)])
NORMALIZED = (PIXELS / 255 - 0.5).astype(np.float32)
LABELS = jnp.arange(16)
# name -> (images, hyper-parameters)
ALL = dict(
  auto_augment=(PIXELS, {}), cutmix=(NORMALIZED, {}), cutout=(NORMALIZED, dict(size=4)), flip=(PIXELS, {}),
  jitter=(PIXELS, dict(strengths=(0.4, 0.4, 0.4, 0.1))), mixup=(NORMALIZED, dict(alpha=1.0, per_sample=True)),
  rand_augment=(PIXELS, dict(num_ops=1)), random_crop=(PIXELS, dict(padding=2)),
  random_erasing=(NORMALIZED, dict(probability=0.9, fill="noise")), random_resized_crop=(PIXELS, dict(size=16)))


def bound(name):
  """(images, the operation as a function of images and a key)."""
  given, options = ALL[name]
  operation = functools.partial(getattr(augment, name), **options)
  mixes = name in ("cutmix", "mixup")
  return given, (lambda batch, key: operation(batch, key, LABELS)) if mixes else operation


@functools.cache
def compiled(name):
  """The compiled operation."""
  return jax.jit(bound(name)[1])


def check_spread(values, low, high):
  """Kolmogorov-Smirnov against the uniform distribution; one sample in a thousand exceeds, and the key is fixed."""
  uniform = np.sort((np.asarray(values) - low) / (high - low))
  assert np.abs(uniform - np.linspace(0, 1, len(uniform))).max() < 1.95 / np.sqrt(len(uniform))


def boxes_of(changed):
  """[b 4] (top, left, height, width) of the changed pixels; each image must have one full box or none (zeros)."""
  found = np.zeros((len(changed), 4), int)
  for index, mask in enumerate(np.asarray(changed)):
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows):
      found[index] = rows[0], columns[0], rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
      assert mask.sum() == found[index, 2] * found[index, 3]
  return found


# -- all of them ------------------------------------------------------------------------------------------------------


def test_every_operation_is_here():
  assert sorted((*ALL, "central_crop")) == sorted(augment.__all__)  # which draws nothing and cuts files alone


@pytest.mark.parametrize("name", ALL)
def test_an_operation_is_a_function_of_its_key(name):
  first, again, other = (compiled(name)(ALL[name][0], jax.random.key(seed)) for seed in (1, 1, 2))
  jax.tree.map(np.testing.assert_array_equal, first, again)
  assert any((np.asarray(a) != np.asarray(b)).any() for a, b in zip(*map(jax.tree.leaves, (first, other)), strict=True))


# Eager policies and Beta draws take too long for a test: each primitive is compiled by itself.
@pytest.mark.parametrize("name", [name for name in ALL if name not in (
    "auto_augment", "cutmix", "mixup", "rand_augment")])
def test_the_compiled_operation_is_the_eager_one(name):
  given, operation = bound(name)
  found, wanted = compiled(name)(given, KEY), operation(given, KEY)
  assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
  # Compiled code may fuse a product and a sum, so a value on the edge between two integers may fall to either side.
  tolerance = dict(random_resized_crop=1, jitter=1e-3).get(name, 0 if found.dtype == np.uint8 else 1e-5)
  np.testing.assert_allclose(np.float32(found), np.float32(wanted), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("cutmix", "mixup")])
def test_draws_depend_on_the_key_and_the_index_not_on_the_image(name):
  given = ALL[name][0]
  order = np.roll(np.arange(len(given)), 1)
  order[5] = 5  # only the image of this index stays
  found, moved = (np.asarray(compiled(name)(batch, KEY)) for batch in (given, given[order]))
  np.testing.assert_array_equal(found[5], moved[5])


SPREAD = [name for name in ALL if name != "auto_augment"]  # its primitives are those of rand_augment


def differences() -> dict:
  """Of every operation the largest difference between a batch on one device and one spread over all devices."""
  mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  spread, found = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")), {}
  for name in SPREAD:
    one, many = (jax.tree.leaves(compiled(name)(jax.device_put(ALL[name][0], where), KEY))
                 for where in (jax.devices()[0], spread))
    found[name] = max(float(np.abs(np.float32(a) - np.float32(b)).max()) for a, b in zip(one, many, strict=True))
  return dict(devices=jax.device_count(), differences=found)


def test_operations_give_the_same_on_one_device_and_on_four():
  # The number of devices is fixed when JAX starts.
  environment = dict(os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS=flags(devices=4))
  run = subprocess.run([sys.executable, "-m", "tests.augment.test_operations"], cwd=ROOT, env=environment,
                       capture_output=True, text=True)
  assert run.returncode == 0, run.stderr
  found = json.loads(run.stdout.splitlines()[-1])
  assert found["devices"] == 4 and sorted(found["differences"]) == sorted(SPREAD)
  for name, difference in found["differences"].items():
    assert difference <= (1e-3 if name == "jitter" else 1e-5), name


# -- the operations of before -----------------------------------------------------------------------------------------


def test_flip_jitter_and_mixup_are_their_two_pieces():
  np.testing.assert_array_equal(augment.flip(PIXELS, KEY), images.random_flip(PIXELS, KEY))
  strengths = (0.4, 0.3, 0.2)
  np.testing.assert_array_equal(augment.jitter(PIXELS, KEY, strengths=strengths),
                                images.jitter(PIXELS, *images.draw_jitter(KEY, 16, strengths=strengths)))
  jax.tree.map(np.testing.assert_array_equal, augment.mixup(NORMALIZED, KEY, LABELS, alpha=1.0),
               images.mixup(NORMALIZED, LABELS, *images.draw_mixup(KEY, 16, alpha=1.0)))


# -- hue --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [-0.5, -0.13, 0.0, 0.2, 1 / 3])
def test_the_hue_turns_as_in_the_standard_library(shift):
  found = images.shift_hue(jnp.float32(PIXELS), jnp.full(16, shift))
  flat = [colorsys.rgb_to_hsv(*pixel) for pixel in (PIXELS.reshape(-1, 3) / 255).tolist()]
  wanted = [colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value) for hue, saturation, value in flat]
  np.testing.assert_allclose(found, 255 * np.reshape(wanted, PIXELS.shape), atol=1e-3)


def test_greys_have_no_hue():
  grey = jnp.broadcast_to(jnp.arange(256.0).reshape(1, 16, 16, 1), (1, 16, 16, 3))
  np.testing.assert_array_equal(images.shift_hue(grey, jnp.float32([0.3])), grey)


def test_a_hue_leaves_the_draws_of_the_others_and_comes_in_any_order():
  three, order = (np.asarray(part) for part in images.draw_jitter(KEY, 3000, strengths=(0.4, 0.3, 0.2)))
  four, longer = (np.asarray(part) for part in images.draw_jitter(KEY, 3000, strengths=(0.4, 0.3, 0.2, 0.1)))
  np.testing.assert_array_equal(four[:, :3], three)
  np.testing.assert_array_equal(longer[longer != 3].reshape(-1, 3), order)
  check_spread(four[:, 3], -0.1, 0.1)
  counts = np.bincount((longer == 3).argmax(axis=1), minlength=4)
  assert np.abs(counts - 750).max() < 4 * np.sqrt(3000 * 3 / 16)


def test_jitter_of_only_the_hue_is_the_shift():
  strengths = (0.0, 0.0, 0.0, 0.5)
  shift = images.draw_jitter(KEY, 16, strengths=strengths)[0][:, 3]
  np.testing.assert_allclose(augment.jitter(PIXELS, KEY, strengths=strengths),
                             images.shift_hue(jnp.float32(PIXELS), shift), atol=1e-2)


# -- erasing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4, 5])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_cutout_zeroes_a_square_with_a_uniform_centre_cut_off_at_the_border(size, kind):
  h, w, count = 9, 7, 4000
  found = augment.cutout(jnp.ones((count, h, w, 2), kind), KEY, size=size)
  assert found.dtype == kind and set(np.unique(found)) == {0, 1}
  boxes = boxes_of(np.asarray(found)[..., 0] == 0)
  np.testing.assert_array_equal(found[..., 0], found[..., 1])
  wanted = {}
  for y in range(h):
    for x in range(w):
      top, left = max(y - size // 2, 0), max(x - size // 2, 0)
      box = top, left, min(y - size // 2 + size, h) - top, min(x - size // 2 + size, w) - left
      wanted[box] = wanted.get(box, 0) + count / (h * w)
  drawn, counts = np.unique(boxes, axis=0, return_counts=True)
  assert {tuple(box) for box in drawn.tolist()} == set(wanted)
  expected = np.array([wanted[tuple(box)] for box in drawn.tolist()])
  freedom = len(expected) - 1
  assert ((counts - expected) ** 2 / expected).sum() < freedom + 4 * np.sqrt(2 * freedom) + 10


@pytest.fixture(scope="module")
def erased():
  """Boxes of 4,000 erased images of 100 x 100."""
  found = jax.jit(functools.partial(augment.random_erasing, probability=0.7))(jnp.ones((4000, 100, 100, 1)), KEY)
  return boxes_of(np.asarray(found)[..., 0] == 0)


def test_random_erasing_changes_the_given_fraction_of_the_images(erased):
  there = erased[:, 2] > 0
  assert abs(there.mean() - 0.7) < 4 * np.sqrt(0.7 * 0.3 / len(erased))


def test_erased_boxes_have_their_distribution(erased):
  top, left, height, width = erased[erased[:, 2] > 0].T
  # Boxes of up to 0.3 of the area always fit, so only larger areas are less frequent.
  shares, ratios = height * width / 1e4, width / height
  assert 0.019 < shares.min() < 0.03 and 0.3 < shares.max() < 0.34
  assert 0.27 < ratios.min() < 0.35 and 2.9 < ratios.max() < 3.6
  small = shares < 0.3
  check_spread(shares[small], 0.02, 0.3)
  check_spread(np.log(ratios[small]), np.log(0.3), np.log(3.3))
  check_spread(((top + 0.5) / (101 - height))[small], 0, 1)
  check_spread(((left + 0.5) / (101 - width))[small], 0, 1)


def test_noise_is_standard_normal_and_the_rest_stays():
  given = jnp.full((64, 20, 20, 3), 9.0)
  erase = jax.jit(augment.random_erasing, static_argnames="fill")
  noisy, black = (np.asarray(erase(given, KEY, probability=1.0, fill=fill)) for fill in ("noise", "zero"))
  np.testing.assert_array_equal(noisy != 9, black != 9)
  noise = noisy[noisy != 9]
  assert len(noise) > 5000
  assert noise.mean() == pytest.approx(0, abs=4 / np.sqrt(len(noise))) and noise.std() == pytest.approx(1, rel=0.05)
  np.testing.assert_array_equal(erase(given, KEY, probability=0.0, fill="zero"), given)


# -- mixing -----------------------------------------------------------------------------------------------------------


def numbered(count, height, width):
  """Images in which every pixel is the number of the image."""
  return jnp.broadcast_to(jnp.arange(float(count))[:, None, None, None], (count, height, width, 1))


def test_mixup_of_each_sample_has_its_own_weight():
  mixed, ((own, first), (others, second)) = compiled("mixup")(NORMALIZED, KEY)
  assert first.shape == (16,) and len(np.unique(first)) == 16
  np.testing.assert_allclose(first + second, 1, atol=1e-6)
  np.testing.assert_array_equal(own, LABELS)
  first, second = (np.asarray(weight)[:, None, None, None] for weight in (first, second))
  np.testing.assert_allclose(mixed, first * NORMALIZED + second * NORMALIZED[others], atol=1e-6)


def test_mixup_of_samples_draws_each_weight_from_the_beta_distribution():
  draw = jax.jit(functools.partial(augment.mixup, alpha=1.0, per_sample=True))
  check_spread(draw(jnp.zeros((4000, 1, 1, 1)), KEY, jnp.arange(4000))[1][0][1], 0, 1)


@pytest.mark.parametrize("per_sample", [False, True])
def test_cutmix_weights_are_the_areas_that_are_seen(per_sample):
  cut = jax.jit(functools.partial(augment.cutmix, per_sample=per_sample))
  for seed in range(5):
    mixed, ((own, first), (others, second)) = cut(numbered(40, 9, 7), jax.random.key(seed), jnp.arange(40))
    assert first.shape == ((40,) if per_sample else ())
    np.testing.assert_array_equal(own, np.arange(40))
    assert sorted(np.asarray(others).tolist()) == list(range(40))
    pasted = np.asarray(mixed)[..., 0] != np.arange(40)[:, None, None]
    np.testing.assert_array_equal(np.asarray(mixed)[..., 0], np.where(pasted, np.asarray(others)[:, None, None],
                                                                      np.arange(40)[:, None, None]))
    boxes = boxes_of(pasted)
    alone = np.asarray(others) == np.arange(40)  # an image that is mixed with itself shows no box
    areas = np.broadcast_to(second, 40)[~alone] * 63
    np.testing.assert_allclose(areas, (boxes[:, 2] * boxes[:, 3])[~alone], atol=1e-4)
    np.testing.assert_allclose(np.asarray(first) + np.asarray(second), 1, atol=1e-6)
    assert per_sample == (len(np.unique(boxes[~alone], axis=0)) > 1)


def test_the_boxes_of_cutmix_have_the_published_distribution():
  side, count = 64, 4000
  cut = jax.jit(functools.partial(augment.cutmix, per_sample=True))
  mixed, (_, (others, _)) = cut(numbered(count, side, side), KEY, jnp.arange(count))
  pasted = np.asarray(mixed)[..., 0] != np.arange(count)[:, None, None]
  boxes = boxes_of(pasted)
  generator = np.random.default_rng(0)
  wanted = []
  for _ in range(count):  # the authors' loop
    part = int(side * np.sqrt(1 - generator.beta(1, 1))) // 2
    y, x = generator.integers(side, size=2)
    wanted.append(np.prod([min(place + part, side) - max(place - part, 0) for place in (y, x)]))
  found, wanted = (np.sort(areas) for areas in (boxes[:, 2] * boxes[:, 3], np.array(wanted)))
  levels = np.linspace(0, side * side, 200)
  gap = np.abs(np.searchsorted(found, levels) - np.searchsorted(wanted, levels)).max() / count
  assert gap < 1.95 * np.sqrt(2 / count)  # Kolmogorov-Smirnov of two samples


# -- sizes ------------------------------------------------------------------------------------------------------------

SHARP = np.stack([PICTURE[y:y + 32, x:x + 32] for y in (40, 200) for x in (50, 300)])


@pytest.mark.parametrize("size", [12, 32, 64])
def test_random_resized_crops_are_those_of_pillow(size):
  found = jax.jit(functools.partial(augment.random_resized_crop, size=size))(SHARP, KEY)
  assert (found.shape, found.dtype) == ((4, size, size, 3), np.uint8)
  draws = jax.random.uniform(KEY, (4, crops.DRAWS))
  boxes = crops.random_resized(np.full((4, 2), 32), np.asarray(draws))
  wanted = [np.asarray(Image.fromarray(image).crop((left, top, left + width, top + height)).resize(
      (size, size), Image.BILINEAR)) for image, (top, left, height, width) in zip(SHARP, boxes.tolist(), strict=True)]
  inner = np.s_[:, size // 6:-(size // 6), size // 6:-(size // 6)]  # Pillow sees nothing outside the box
  differing = np.abs(np.asarray(found)[inner].astype(int) - np.stack(wanted)[inner])
  assert differing.max() <= 2


def test_boxes_of_the_device_are_those_of_the_host():
  sizes = np.repeat([[32, 32], [96, 20], [10, 90]], 500, axis=0)
  draws = np.random.default_rng(0).random((1500, crops.DRAWS)).astype(np.float32)
  host, device = crops.random_resized(sizes, draws), np.asarray(crops.random_resized(
      jnp.asarray(sizes), jnp.asarray(draws), xp=jnp))
  assert (host == device).all(axis=1).mean() > 0.999  # a size on the edge between two integers may fall to either side
  assert (device[:, :2] >= 0).all() and (device[:, :2] + device[:, 2:] <= sizes).all()


def test_a_crop_of_everything_to_the_same_size_changes_nothing():
  crop = jax.jit(functools.partial(augment.random_resized_crop, size=32, area=(1.0, 1.0), ratio=(1.0, 1.0)))
  np.testing.assert_array_equal(crop(SHARP, KEY), SHARP)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [12, 24, 32, 50, 224])
def test_resize_is_that_of_pillow(size, interpolation):
  found = images.resize(SHARP, size=size, interpolation=interpolation)
  filter = Image.Resampling[interpolation.upper()]
  wanted = np.stack([np.asarray(Image.fromarray(image).resize((size, size), filter)) for image in SHARP])
  assert found.shape == wanted.shape
  assert np.abs(np.asarray(found) - wanted).max() <= 1


def test_the_least_area_of_a_crop_can_rise():
  sizes, draws = np.full((1000, 2), 100), np.random.default_rng(0).random((1000, crops.DRAWS))
  drawn = functools.partial(crops.random_resized, sizes, draws, area=(0.1, 1.0), ratio=(1.0, 1.0), final_area=0.9)
  for progress, least in ((0.0, 0.1), (0.5, 0.5), (1.0, 0.9)):
    shares = drawn(progress=progress)[:, 2:].prod(axis=1) / 1e4
    assert least * 0.98 < shares.min() < least * 1.05 and shares.max() > 0.98
  np.testing.assert_array_equal(drawn(progress=0.0), crops.random_resized(
      sizes, draws, area=(0.1, 1.0), ratio=(1.0, 1.0)))
  whole = augment.random_resized_crop(SHARP, KEY, size=32, ratio=(1.0, 1.0), final_area=1.0, progress=jnp.float32(1))
  np.testing.assert_array_equal(whole, SHARP)


def test_a_crop_can_be_bicubic():
  crop = jax.jit(functools.partial(augment.random_resized_crop, size=50, area=(1.0, 1.0), ratio=(1.0, 1.0),
                                   interpolation="bicubic"))
  wanted = np.stack([np.asarray(Image.fromarray(image).resize((50, 50), Image.BICUBIC), int) for image in SHARP])
  assert np.abs(np.asarray(crop(SHARP, KEY)) - wanted).mean() < 0.5  # Pillow also rounds between the two directions


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options", "message"), [
    ("jitter", dict(strengths=(0.4, 0.4)), "strengths must be those of"),
    ("jitter", dict(strengths=(0.4, 1.4, 0)), r"strengths must be in \[0, 1\], got 1.4"),
    ("jitter", dict(strengths=(0.4, 0.4, 0.4, 0.6)), r"that of hue, must be in \[0, 0.5\], got 0.6"),
    ("random_erasing", dict(fill="mean"), "fill must be one of zero, noise, got 'mean'"),
    ("random_erasing", dict(area=(0.3, 0.1)), "area must be two positive numbers, the smaller first"),
    ("random_resized_crop", dict(size=8, ratio=(0.5,)), "ratio must be two positive numbers, the smaller first"),
    ("auto_augment", dict(policy="cifar"), "policy must be one of cifar10, got 'cifar'")])
def test_meaningless_values_are_refused(name, options, message):
  with pytest.raises(ConfigError, match=message):
    getattr(augment, name)(ALL[name][0], KEY, **options)


if __name__ == "__main__":
  print(json.dumps(differences()))
