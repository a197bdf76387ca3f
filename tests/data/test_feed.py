"""A batch of either data path inside the compiled step: augmented, normalised, mixed, or of two branches."""

import functools

import jax
import numpy as np
import pytest

from ltjax import augment
from ltjax.augment import batches, compose
from ltjax.augment.images import normalize, random_crop, random_flip
from ltjax.config.bind import Call
from ltjax.data import feed, pipeline, sources
from tests import tiny

KEY = jax.random.key(5)
MEAN, STD = np.array([0.2, 0.5, 0.7], np.float32), np.array([0.1, 0.3, 0.9], np.float32)
INDICES = np.array([7, 7, 0, 49, 13, 2], np.int32)
CROP, FLIP = ("random_crop", dict(padding=2)), ("flip", {})
TWO_BRANCHES = Call(batches.two_branches, {}, dict(share=None))


def data(count=50, height=4, width=5):
  """Random images without a black pixel; the label of an example is its index, which identifies it."""
  images = np.random.default_rng(0).integers(1, 256, (count, height, width, 3), dtype=np.uint8)
  return dict(images=images, labels=np.arange(count, dtype=np.int32), mean=MEAN, std=STD, class_counts=np.ones(count))


def augmentation(*operations):
  """An `Augmentation` of (name, options) pairs."""
  parts = [(name, getattr(augment, name), functools.partial(getattr(augment, name), **options))
           for name, options in operations]
  return feed.Augmentation(0, None, compose.compose(parts), feed.plain)


def load(arrays, indices, *operations, key=KEY, read=feed.gather, join=None, share=None):
  """A batch as the step of a stage loads it, compiled, with no array baked in."""
  transform = feed.make_transform(read, augmentation(*operations), (join,) if join else (), join)
  scalars = dict(transforms=(dict(share=np.float32(share)),) if join else ())
  return jax.tree.map(np.asarray, jax.jit(transform)(arrays, indices, key, scalars))


def loading_key(key=KEY):
  """The key of a batch's augmentation, from that of the step."""
  return jax.random.fold_in(key, 0)


def test_without_augmentation_a_batch_is_the_normalised_examples():
  arrays = data()
  images, (term,) = load(arrays, INDICES)
  assert (images.dtype, term.labels.dtype) == (np.float32, np.int32)
  np.testing.assert_allclose(images, (arrays["images"][INDICES] / 255 - MEAN) / STD, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(term.labels, INDICES)
  assert term.weight == 1.0 and term.observed and term.valid is None


def test_crops_see_a_black_frame_and_no_other_image():
  arrays, padding = data(), 2
  images, _ = load(arrays, np.arange(50, dtype=np.int32), CROP)
  pixels = (images * STD + MEAN) * 255
  framed = np.pad(arrays["images"], ((0, 0), (padding, padding), (padding, padding), (0, 0)))
  shifted = 0
  for found, frame in zip(pixels, framed, strict=True):
    corners = [(i, j) for i in range(5) for j in range(5) if np.allclose(frame[i : i + 4, j : j + 5], found, atol=0.01)]
    assert len(corners) == 1
    shifted += corners != [(padding, padding)]
  assert shifted > 30
  black = np.round(pixels) == 0  # the images themselves have no black pixel
  np.testing.assert_allclose(images[black], np.broadcast_to(-MEAN / STD, images.shape)[black], rtol=1e-4)


def test_corner_and_flip_are_independent():
  one = np.arange(1, 10, dtype=np.uint8).reshape(1, 3, 3, 1)
  arrays = dict(images=one, labels=np.zeros(1, np.int32), mean=np.zeros(1, np.float32), std=np.ones(1, np.float32))
  images, _ = load(arrays, np.zeros(3600, np.int32), ("random_crop", dict(padding=1)), FLIP)
  framed = np.pad(one[0, :, :, 0], 1)
  windows = [framed[i : i + 3, j : j + 3] for i in range(3) for j in range(3)]
  choices = np.stack([*windows, *(window[:, ::-1] for window in windows)])
  equal = (np.round(images[:, None, :, :, 0] * 255) == choices).all(axis=(2, 3))
  assert (equal.sum(axis=1) == 1).all()
  counts = np.bincount(equal.argmax(axis=1), minlength=18)
  assert ((counts - 200) ** 2 / 200).sum() < 17 + 4 * np.sqrt(34)


def test_crop_flip_and_normalisation_come_in_this_order():
  arrays = data()
  images, _ = load(arrays, INDICES, CROP, FLIP)
  key_crop, key_flip = (jax.random.fold_in(loading_key(), stream) for stream in (0, 1))
  cropped = random_crop(arrays["images"][INDICES], key_crop, padding=2)
  np.testing.assert_allclose(images, normalize(random_flip(cropped, key_flip), MEAN, STD), rtol=1e-5, atol=1e-6)


def test_jitter_comes_before_normalisation():
  images = np.random.default_rng(0).integers(0, 256, (8, 6, 6, 3), dtype=np.uint8)
  arrays = dict(images=images, labels=np.arange(8), mean=np.float32([0.5] * 3), std=np.float32([0.25] * 3))
  plain, jittered = (load(arrays, np.arange(8), *operations).inputs
                     for operations in ((), (("jitter", dict(strengths=(0.4, 0.4, 0.4))),)))
  np.testing.assert_allclose(plain, (images / 255 - 0.5) / 0.25, atol=1e-5)
  assert (np.abs(jittered - plain).max(axis=(1, 2, 3)) > 0.1).all()
  assert np.abs(jittered).max() <= 2 + 1e-5


@pytest.mark.parametrize("operation", [CROP, FLIP], ids=lambda operation: operation[0])
def test_a_batch_is_a_function_of_its_key(operation):
  arrays, indices = data(), np.arange(20, dtype=np.int32)
  first, again, other = (load(arrays, indices, operation, key=jax.random.key(seed)).inputs for seed in (1, 1, 2))
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()


def test_mixup_mixes_the_batch_that_the_same_key_gives_without_it():
  arrays, indices = data(), np.arange(40, dtype=np.int32)[::-1].copy()
  plain, _ = load(arrays, indices, CROP, FLIP)
  images, (own, others) = load(arrays, indices, CROP, FLIP, ("mixup", dict(alpha=1.0)))
  assert 0.01 < own.weight < 0.99 and own.weight + others.weight == pytest.approx(1, abs=1e-7)
  np.testing.assert_array_equal(own.labels, indices)
  assert (others.labels != own.labels).any() and sorted(others.labels) == sorted(own.labels)
  order = [indices.tolist().index(label) for label in others.labels]
  np.testing.assert_allclose(images, own.weight * plain + others.weight * plain[order], rtol=1e-4, atol=1e-4)


def test_mixup_weights_sum_to_one_and_move_with_the_key():
  images, labels = (jax.numpy.asarray(array) for array in (data()["images"][INDICES], INDICES))
  apply = augmentation(("mixup", dict(alpha=0.5))).apply
  _, ((_, weight), (_, rest)) = jax.jit(jax.vmap(lambda key: apply(images, key, labels, MEAN, STD)))(
      jax.random.split(KEY, 200))
  np.testing.assert_allclose(weight + rest, 1, atol=1e-6)
  assert len(np.unique(weight)) > 190
  assert (weight >= 0).all() and (rest >= 0).all()


# -- two branches -----------------------------------------------------------------------------------------------------


def test_two_branches_are_augmented_independently():
  columns = np.stack([INDICES, INDICES], axis=1)
  images, (own, other) = load(data(), columns, CROP, FLIP, join=TWO_BRANCHES, share=0.75)
  assert (float(own.weight), float(other.weight), float(images.share)) == (0.75, 0.25, 0.75)
  np.testing.assert_array_equal(own.labels, INDICES)
  np.testing.assert_array_equal(other.labels, INDICES)
  assert (images.conventional != images.rebalancing).any()
  apply = jax.jit(augmentation(CROP, FLIP).apply)
  for number, half in enumerate(images[:2]):
    key = jax.random.fold_in(loading_key(), number)
    np.testing.assert_array_equal(half, apply(data()["images"][INDICES], key, INDICES, MEAN, STD)[0])


def test_two_branches_keep_their_columns_apart():
  columns = np.stack([INDICES, INDICES[::-1]], axis=1)
  images, (own, other) = load(data(), columns, join=TWO_BRANCHES, share=1)
  np.testing.assert_array_equal(own.labels, INDICES)
  np.testing.assert_array_equal(other.labels, INDICES[::-1])
  np.testing.assert_array_equal(images.conventional[::-1], images.rebalancing)


# -- the two data paths -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("operations", "join"), [
    ((CROP, FLIP, ("mixup", dict(alpha=1.0))), None), ((CROP, FLIP), None), ((CROP, FLIP), TWO_BRANCHES)])
def test_both_paths_load_the_same_batch(operations, join):
  arrays = data()
  indices = np.random.default_rng(1).integers(0, 50, (8, 2) if join else (8,)).astype(np.int32)
  batch = pipeline.Pipeline(arrays["images"], arrays["labels"], lambda step: indices, 1).batch(0)
  constants = {key: arrays[key] for key in ("mean", "std", "class_counts")}
  loaded = [load(held, given, *operations, read=read, join=join, share=0.3)
            for read, held, given in ((feed.gather, arrays, indices), (feed.received, constants, batch))]
  tiny.assert_trees_equal(*loaded)


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_resident_arrays_are_those_of_the_split(split):
  dataset = sources.digits(imbalance=10.0, profile="exponential", subset_seed=0)
  images, labels = getattr(dataset, split)
  arrays = feed.arrays(dataset, split)
  assert sorted(arrays) == ["images", "labels", "mean", "std"]
  assert (arrays["images"].values.dtype, arrays["labels"].dtype) == (np.uint8, np.int32)
  np.testing.assert_array_equal(arrays["images"][np.arange(len(images))], images)
  np.testing.assert_array_equal(arrays["images"][np.array([[1, 0], [2, 2]])], images[[[1, 0], [2, 2]]])
  np.testing.assert_array_equal(arrays["labels"], labels)
  assert arrays["mean"].dtype == arrays["std"].dtype == np.float32
  np.testing.assert_allclose(arrays["mean"], dataset.mean)
  np.testing.assert_allclose(arrays["std"], dataset.std)
  assert len(arrays["labels"]) == (400 if split == "test" else dataset.class_counts.sum())


def test_evaluation_is_without_randomness():
  arrays = data()
  images_of = jax.jit(feed.evaluation_images(feed.gather, augmentation(CROP, FLIP)))
  images, labels = images_of(arrays, INDICES)
  np.testing.assert_array_equal(labels, INDICES)
  np.testing.assert_allclose(images, (arrays["images"][INDICES] / 255 - MEAN) / STD, rtol=1e-5, atol=1e-6)


def test_evaluation_resizes_arrays_to_the_training_size():
  found = feed.evaluation(8, "", "bilinear")(data()["images"][:2], MEAN, STD)
  assert found.shape == (2, 8, 8, 3) and found.dtype == np.float32


def test_evaluation_crops_arrays_at_the_centre_or_five_times():
  images = data()["images"][:2]
  central, five = (feed.evaluation(7, crops, "bicubic")(images, MEAN, STD) for crops in ("center", "five"))
  resized = {side: feed.evaluation(side, "", "bicubic")(images, MEAN, STD) for side in (8, 31)}
  np.testing.assert_array_equal(central, resized[8][:, :7, :7])  # half a pixel rounds to the even one
  assert five.shape == (2, 5, 7, 7, 3)
  for view, (top, left) in enumerate(((0, 0), (0, 24), (24, 0), (24, 24), (12, 12))):
    np.testing.assert_array_equal(five[:, view], resized[31][:, top:top + 7, left:left + 7])
