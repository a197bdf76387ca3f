"""A list of operations as one function: their keys, where images are normalised, which orders make no sense."""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, Int, Real, UInt8
from sklearn.datasets import load_sample_images

from ltjax import augment
from ltjax.augment import compose, images
from ltjax.distributed import platforms
from ltjax.errors import ConfigError

KEY = jax.random.key(9)
PICTURE = load_sample_images().images[0]
PIXELS = np.stack([PICTURE[y:y + 8, x:x + 6] for y in (40, 150, 260) for x in (50, 160, 300, 480)])
LABELS = jnp.arange(12)
MEAN, STD = np.float32([0.4, 0.5, 0.6]), np.float32([0.2, 0.3, 0.25])
CROP, FLIP, JITTER = ("random_crop", dict(padding=1)), ("flip", {}), ("jitter", dict(strengths=(0.4, 0.3, 0.2)))
MIXUP = ("mixup", dict(alpha=0.7))


def composed(*operations):
  """The function of (name, hyper-parameters) pairs."""
  return compose.compose([(name, getattr(augment, name), functools.partial(getattr(augment, name), **options))
                          for name, options in operations])


def run(apply, key=KEY):
  return jax.jit(apply)(PIXELS, key, LABELS, MEAN, STD)


class Recorder:
  """Operations that change nothing and record their arguments."""

  def __init__(self):
    self.calls = []

  def operation(self, kind, name):
    """A (name, function, function) entry that takes images of `kind`."""
    def record(images: kind[Array, "b h w c"], key):
      self.calls.append((name, jax.random.key_data(key).tolist(), images))
      return images

    return name, record, record

  def mixing(self, name):
    def record(images: Float[Array, "b h w c"], key, labels: Int[Array, "b"]):
      self.calls.append((name, jax.random.key_data(key).tolist(), images))
      return images, ((labels, 0.25), (labels[::-1], 0.75))

    return name, record, record

  def of(self, *operations):
    """The calls of one application, eager."""
    self.calls.clear()
    compose.compose(operations)(PIXELS, KEY, LABELS, MEAN, STD)
    return list(self.calls)


# -- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_split_is_made_of_folds(count):
  """Runs that split their key draw the same because of `jax_threefry_partitionable`, the default."""
  for index, part in enumerate(jax.random.split(KEY, count)):
    np.testing.assert_array_equal(jax.random.key_data(part), jax.random.key_data(jax.random.fold_in(KEY, index)))


def test_crop_flip_jitter_and_mixup_draw_what_they_always_drew():
  def before(pixels, key, labels, mean, std):
    key_crop, key_flip, key_mixup = jax.random.split(key, 3)
    pixels = images.random_flip(images.random_crop(pixels, key_crop, padding=1), key_flip)
    drawn = images.draw_jitter(jax.random.fold_in(key, 3), len(labels), strengths=(0.4, 0.3, 0.2))
    pixels = images.jitter(pixels, *drawn)
    return images.mixup(images.normalize(pixels, mean, std), labels, *images.draw_mixup(key_mixup, len(labels),
                                                                                        alpha=0.7))

  found = run(composed(CROP, FLIP, JITTER, MIXUP))
  jax.tree.map(np.testing.assert_array_equal, found, run(before))


def test_the_key_of_an_operation_is_that_of_its_name():
  record = Recorder()
  names = ("random_crop", "flip", "mixup", "jitter", "cutout")
  calls = record.of(*(record.operation(Real, name) for name in names))
  numbers = (0, 1, 2, 3, zlib.crc32(b"cutout"))
  assert [key for _, key, _ in calls] == [jax.random.key_data(jax.random.fold_in(KEY, number)).tolist()
                                          for number in numbers]


def test_other_operations_of_the_list_change_no_key():
  record = Recorder()
  entry = {name: record.operation(Real, name) for name in ("flip", "cutout", "random_crop")}
  alone = {name: record.of(one)[0][1] for name, one in entry.items()}
  assert len(set(map(tuple, alone.values()))) == 3
  for order in (("flip", "cutout", "random_crop"), ("random_crop", "cutout", "flip")):
    assert {name: key for name, key, _ in record.of(*(entry[name] for name in order))} == alone


def test_each_repetition_of_a_name_has_its_own_key():
  record = Recorder()
  one = record.operation(Real, "flip")
  own = jax.random.fold_in(KEY, 1)
  assert [key for _, key, _ in record.of(one, one, one)] == [
      jax.random.key_data(key).tolist() for key in (own, jax.random.fold_in(own, 1), jax.random.fold_in(own, 2))]


# -- normalisation ----------------------------------------------------------------------------------------------------


def test_without_operations_images_are_normalised():
  found, ((labels, weight),) = run(composed())
  np.testing.assert_array_equal(labels, LABELS)
  assert weight == 1
  np.testing.assert_allclose(found, (PIXELS / 255 - MEAN) / STD, atol=1e-5)


@pytest.mark.parametrize(("kinds", "raw"), [
    ((Real,), 0), ((UInt8,), 1), ((UInt8, Real), 1), ((Real, UInt8, Real), 2), ((UInt8, UInt8), 2), ((Float,), 0),
    ((Real, Float), 0), ((UInt8, Real, Float, Real), 1)])
def test_images_are_normalised_after_the_last_operation_on_pixels(kinds, raw):
  record = Recorder()
  calls = record.of(*(record.operation(kind, f"number_{index}") for index, kind in enumerate(kinds)))
  for index, (_, _, seen) in enumerate(calls):
    wanted = PIXELS if index < raw else images.normalize(PIXELS, MEAN, STD)
    assert seen.dtype == wanted.dtype
    np.testing.assert_array_equal(seen, wanted)


def test_mixing_sees_normalised_images_and_gives_the_weights():
  record = Recorder()
  mixing = record.mixing("blend")
  found, ((own, first), (others, second)) = compose.compose((record.operation(UInt8, "crop"), mixing))(
      PIXELS, KEY, LABELS, MEAN, STD)
  np.testing.assert_array_equal(found, images.normalize(PIXELS, MEAN, STD))
  np.testing.assert_array_equal(record.calls[1][2], found)
  assert (first, second) == (0.25, 0.75)
  np.testing.assert_array_equal(others, LABELS[::-1])
  np.testing.assert_array_equal(own, LABELS)


@pytest.mark.parametrize(("platform", "dtype"), [("cpu", np.float32), ("tpu", np.uint8)])
def test_partners_travel_as_bytes_and_have_the_bits_of_normalised_images(platform, dtype):
  def mixing(images: Float[Array, "b h w c"], key, labels: Int[Array, "b"], partners):
    del images, key
    return partners(labels[::-1]), ((labels, 1.0),)

  apply = compose.compose([("flip", augment.flip, augment.flip), ("blend", mixing, mixing)])
  with platforms.planned(platform):
    program, (found, _) = jax.make_jaxpr(apply)(PIXELS, KEY, LABELS, MEAN, STD), run(apply)
  taken = [equation.invars[0].aval for equation in program.eqns if equation.primitive.name == "gather"]
  assert [array.dtype for array in taken if array.ndim == 4] == [dtype]
  np.testing.assert_array_equal(found, run(composed(FLIP))[0][::-1])


@pytest.mark.parametrize(("name", "options"), [
    ("mixup", {}), ("mixup", dict(per_sample=True)), ("cutmix", {}), ("cutmix", dict(per_sample=True))])
def test_mixing_takes_the_partners_that_are_given(name, options):
  normalized, operation = images.normalize(PIXELS, MEAN, STD), getattr(augment, name)
  given = operation(normalized, KEY, LABELS, partners=lambda order: normalized[order], **options)
  jax.tree.map(np.testing.assert_array_equal, given, operation(normalized, KEY, LABELS, **options))
  black = operation(normalized, KEY, LABELS, partners=lambda order: 0 * normalized[order], **options)
  assert not np.array_equal(black[0], given[0])


def test_partners_are_those_of_the_images_that_the_operation_sees():
  def mixing(images: Float[Array, "b h w c"], key, labels: Int[Array, "b"], partners):
    del key
    return jnp.stack((images[::-1], partners(labels[::-1]))), ((labels, 1.0),)

  erasing = functools.partial(augment.random_erasing, probability=1.0)
  apply = compose.compose([("random_erasing", augment.random_erasing, erasing), ("blend", mixing, mixing)])
  with platforms.planned("tpu"):
    found, _ = run(apply)
  assert (found[0] != images.normalize(PIXELS, MEAN, STD)[::-1]).any()
  np.testing.assert_array_equal(*found)


def test_float_pixels_are_rounded_for_the_next_operation():
  record = Recorder()

  def brighten(images: UInt8[Array, "b h w c"], key) -> Real[Array, "b h w c"]:
    del key
    return images * 1.25 - 20  # exact in floats

  (_, _, seen), = record.of(("brighten", brighten, brighten), record.operation(UInt8, "next"))
  assert seen.dtype == np.uint8
  np.testing.assert_array_equal(seen, np.clip(np.round(PIXELS * 1.25 - 20), 0, 255))
  assert (np.asarray(seen) == 255).any() and (np.asarray(seen) == 0).any()


def test_cutout_makes_black_before_an_operation_on_pixels_and_the_mean_after_it():
  black, mean = (np.asarray(run(composed(*order))[0]) for order in (
      (("cutout", dict(size=4)), ("random_crop", dict(padding=0))),
      (("random_crop", dict(padding=0)), ("cutout", dict(size=4)))))
  plain = np.asarray(run(composed())[0])
  cut = (black != plain).any(axis=-1)
  np.testing.assert_array_equal(cut, (mean != plain).any(axis=-1))
  assert 12 * 4 <= cut.sum() <= 12 * 16
  np.testing.assert_array_equal(mean[cut], 0)
  np.testing.assert_allclose(black[cut], np.broadcast_to(-MEAN / STD, black.shape)[cut], rtol=1e-5)


# -- orders -----------------------------------------------------------------------------------------------------------

ERASE, CUT, CUTMIX, AUTO, RESIZE = ("random_erasing", {}), ("cutout", dict(size=2)), ("cutmix", {}), (
    "auto_augment", {}), ("random_resized_crop", dict(size=8))


@pytest.mark.parametrize(("operations", "message"), [
    ((ERASE, CROP), "random_crop works on raw pixels and must come before random_erasing, which works on normalised"),
    ((FLIP, ERASE, CUT, JITTER), "jitter works on raw pixels and must come before random_erasing"),
    ((MIXUP, AUTO), "auto_augment works on raw pixels and must come before mixup, which works on labels beside"),
    ((MIXUP, FLIP), "flip works on single examples and must come before mixup, which mixes them"),
    ((CROP, CUTMIX, CUT), "cutout works on single examples and must come before cutmix"),
    ((CUTMIX, ERASE), "random_erasing works on normalised images and must come before cutmix"),
    ((CUTMIX, MIXUP), "mixup: the examples are mixed already; remove one of the two, cutmix or mixup"),
    ((RESIZE, FLIP, RESIZE), "random_resized_crop and random_resized_crop both give the images a size; remove one")])
def test_an_order_that_makes_no_sense_is_refused_by_both_names(operations, message):
  with pytest.raises(ConfigError) as caught:
    composed(*operations)
  assert message in str(caught.value)


def test_a_long_list_in_a_good_order_runs():
  found, pairs = run(composed(CROP, FLIP, JITTER, FLIP, CROP, CUT, ERASE, FLIP))
  assert found.shape == PIXELS.shape and found.dtype == np.float32 and len(pairs) == 1
  assert jnp.isfinite(found).all()


def test_the_annotation_declares_the_input_of_an_operation():
  levels = {name: compose.level(getattr(augment, name)) for name in augment.__all__}
  assert levels == dict(
      auto_augment=compose.PIXELS, jitter=compose.PIXELS, rand_augment=compose.PIXELS, random_crop=compose.PIXELS,
      random_resized_crop=compose.PIXELS, random_erasing=compose.NORMALIZED, cutmix=compose.MIXED, mixup=compose.MIXED,
      central_crop=compose.PIXELS, cutout=None, flip=None)


def test_annotations_in_quotes_count_and_missing_ones_mean_any_images():
  def quoted(images: "UInt8[Array, 'b h w c']", key):
    return images

  def bare(images, key):
    return images

  def unknown(images: "Missing", key):
    return images

  assert [compose.level(function) for function in (quoted, bare, unknown)] == [compose.PIXELS, None, None]
