import jax
import numpy as np
import pytest

from ltjax.augment import images as augment
from ltjax.data import resident, sources
from ltjax.errors import ConfigError

KEY = jax.random.key(5)
MEAN, STD = np.array([0.2, 0.5, 0.7], np.float32), np.array([0.1, 0.3, 0.9], np.float32)


def data(count=50, height=4, width=5):
  """Random images without a black pixel; the label of an example is its index, so that labels tell who is who."""
  images = np.random.default_rng(0).integers(1, 256, (count, height, width, 3), dtype=np.uint8)
  return dict(images=images, labels=np.arange(count, dtype=np.int32), mean=MEAN, std=STD)


def load(arrays, indices, key=KEY, *, crop_padding=0, flip=False, mixup=0.0):
  """`make_load`'s function, compiled, with no array baked in."""
  compiled = jax.jit(resident.make_load(crop_padding=crop_padding, flip=flip, mixup=mixup))
  return jax.tree.map(np.asarray, compiled(arrays, indices, key, {}))


INDICES = np.array([7, 7, 0, 49, 13, 2], np.int32)


def test_without_augmentation_a_batch_is_the_normalised_examples():
  arrays = data()
  images, ((labels, share),) = load(arrays, INDICES)
  assert (images.dtype, labels.dtype, share.dtype) == (np.float32, np.int32, np.float32)
  np.testing.assert_allclose(images, (arrays["images"][INDICES] / 255 - MEAN) / STD, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(labels, INDICES)
  assert share == 1.0


def test_crops_see_a_black_frame_and_nothing_of_another_image():
  arrays, padding = data(), 2
  indices = np.arange(50, dtype=np.int32)
  images, _ = load(arrays, indices, crop_padding=padding)
  pixels = (images * STD + MEAN) * 255
  framed = np.pad(arrays["images"], ((0, 0), (padding, padding), (padding, padding), (0, 0)))
  shifted = 0
  for found, frame in zip(pixels, framed, strict=True):
    corners = [(i, j) for i in range(5) for j in range(5) if np.allclose(frame[i : i + 4, j : j + 5], found, atol=0.01)]
    assert len(corners) == 1
    shifted += corners != [(padding, padding)]
  assert shifted > 30
  black = np.round(pixels) == 0  # images have no black pixel of their own
  np.testing.assert_allclose(images[black], np.broadcast_to(-MEAN / STD, images.shape)[black], rtol=1e-4)


def test_corner_and_flip_are_independent():
  one = np.arange(1, 10, dtype=np.uint8).reshape(1, 3, 3, 1)
  arrays = dict(images=one, labels=np.zeros(1, np.int32), mean=np.zeros(1, np.float32), std=np.ones(1, np.float32))
  images, _ = load(arrays, np.zeros(3600, np.int32), crop_padding=1, flip=True)
  framed = np.pad(one[0, :, :, 0], 1)
  windows = [framed[i : i + 3, j : j + 3] for i in range(3) for j in range(3)]
  choices = np.stack([*windows, *(window[:, ::-1] for window in windows)])
  equal = (np.round(images[:, None, :, :, 0] * 255) == choices).all(axis=(2, 3))
  assert (equal.sum(axis=1) == 1).all()
  counts = np.bincount(equal.argmax(axis=1), minlength=18)
  assert ((counts - 200) ** 2 / 200).sum() < 17 + 4 * np.sqrt(34)


def test_mixup_mixes_what_the_same_key_loads_without_it():
  augmented = dict(crop_padding=1, flip=True)
  arrays, indices = data(), np.arange(40, dtype=np.int32)[::-1].copy()
  plain, _ = load(arrays, indices, **augmented)
  images, ((labels, share), (others, rest)) = load(arrays, indices, mixup=1.0, **augmented)
  assert 0.01 < share < 0.99 and share + rest == pytest.approx(1, abs=1e-7)
  np.testing.assert_array_equal(labels, indices)
  assert (others != labels).any() and sorted(others) == sorted(labels)
  order = [indices.tolist().index(label) for label in others]
  np.testing.assert_allclose(images, share * plain + rest * plain[order], rtol=1e-4, atol=1e-4)


def test_shares_sum_to_one_and_move_with_the_key():
  arrays = data()
  compiled = jax.jit(jax.vmap(resident.make_load(crop_padding=0, flip=False, mixup=0.5), in_axes=(None, None, 0, None)))
  _, ((_, share), (_, rest)) = compiled(arrays, INDICES, jax.random.split(KEY, 200), {})
  np.testing.assert_allclose(share + rest, 1, atol=1e-6)
  assert len(np.unique(share)) > 190
  assert (share >= 0).all() and (rest >= 0).all()


@pytest.mark.parametrize("augmented", [dict(crop_padding=2), dict(flip=True)])
def test_a_batch_is_a_function_of_its_key(augmented):
  arrays, indices = data(), np.arange(20, dtype=np.int32)
  first, again, other = (load(arrays, indices, jax.random.key(seed), **augmented)[0] for seed in (1, 1, 2))
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()


def test_crop_flip_and_normalisation_come_in_this_order():
  arrays = data()
  images, _ = load(arrays, INDICES, crop_padding=2, flip=True)
  key_crop, key_flip, _ = jax.random.split(KEY, 3)
  cropped = augment.random_crop(arrays["images"][INDICES], key_crop, padding=2)
  expected = augment.normalize(augment.random_flip(cropped, key_flip), MEAN, STD)
  np.testing.assert_allclose(images, expected, rtol=1e-5, atol=1e-6)


def test_arrays_are_those_of_the_split():
  dataset = sources.digits(imbalance=10.0, profile="exponential", subset_seed=0)
  for split, (images, labels) in (("train", dataset.train), ("test", dataset.test)):
    arrays = resident.arrays(dataset, split)
    assert sorted(arrays) == ["images", "labels", "mean", "std"]
    assert (arrays["images"].dtype, arrays["labels"].dtype) == (np.uint8, np.int32)
    np.testing.assert_array_equal(arrays["images"], images)
    np.testing.assert_array_equal(arrays["labels"], labels)
    assert arrays["mean"].dtype == arrays["std"].dtype == np.float32
    np.testing.assert_allclose(arrays["mean"], dataset.mean)
    np.testing.assert_allclose(arrays["std"], dataset.std)
    assert len(arrays["labels"]) == (400 if split == "test" else dataset.class_counts.sum())


def test_branches_are_two_batches_each_augmented_by_itself():
  arrays, columns = data(), np.stack([INDICES, INDICES], axis=1)
  compiled = jax.jit(resident.make_load(crop_padding=2, flip=True, mixup=0.0, branches=True))
  images, ((labels, share), (others, rest)) = compiled(arrays, columns, KEY, dict(share=np.float32(0.75)))
  assert (float(share), float(rest), float(images.share)) == (0.75, 0.25, 0.75)
  np.testing.assert_array_equal(labels, INDICES)
  np.testing.assert_array_equal(others, INDICES)
  assert (np.asarray(images.conventional) != np.asarray(images.rebalancing)).any()
  for half, key in zip(images[:2], jax.random.split(KEY), strict=True):
    np.testing.assert_array_equal(half, load(arrays, INDICES, key, crop_padding=2, flip=True)[0])


def test_branches_keep_their_columns_apart():
  columns = np.stack([INDICES, INDICES[::-1]], axis=1)
  compiled = jax.jit(resident.make_load(crop_padding=0, flip=False, mixup=0.0, branches=True))
  images, ((labels, _), (others, _)) = compiled(data(), columns, KEY, dict(share=np.float32(1)))
  np.testing.assert_array_equal(labels, INDICES)
  np.testing.assert_array_equal(others, INDICES[::-1])
  np.testing.assert_array_equal(images.conventional[::-1], images.rebalancing)


def test_branches_do_not_go_with_mixup():
  with pytest.raises(ConfigError, match="mixup does not go with branches"):
    resident.make_load(crop_padding=0, flip=False, mixup=1.0, branches=True)
