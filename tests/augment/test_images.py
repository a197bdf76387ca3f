import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from ltjax import losses
from ltjax.augment import images
from tests import goldens

KEY = jax.random.key(11)


def numbered(count, height, width, channels=1):
  """Images in which every pixel tells its image and its position; no pixel is black."""
  places = np.arange(1, height * width * channels + 1, dtype=np.uint8).reshape(1, height, width, channels)
  return np.repeat(places, count, axis=0)


def windows(image, padding):
  """Every crop of the image framed by black: [(2 padding + 1)^2, h, w, c], row by row of corners."""
  h, w, _ = image.shape
  framed = np.zeros((h + 2 * padding, w + 2 * padding, image.shape[2]), image.dtype)
  framed[padding : padding + h, padding : padding + w] = image
  return np.stack([framed[i : i + h, j : j + w] for i, j in itertools.product(range(2 * padding + 1), repeat=2)])


def which(found, choices):
  """The index of the choice that each of `found` equals; every one must equal exactly one."""
  equal = (np.asarray(found)[:, None] == choices[None]).all(axis=(2, 3, 4))
  assert (equal.sum(axis=1) == 1).all()
  return equal.argmax(axis=1)


def check_uniform(outcomes, kinds):
  """A chi-square that one sample in 30,000 exceeds; the key is fixed, so it never flickers."""
  expected = len(outcomes) / kinds
  counts = np.bincount(outcomes, minlength=kinds)
  assert len(counts) == kinds
  freedom = kinds - 1
  assert ((counts - expected) ** 2 / expected).sum() < freedom + 4 * np.sqrt(2 * freedom) + 10


@goldens.parametrize("mixup")
def test_golden_mixup(case, hyper, inputs, outputs):
  with jax.enable_x64(True):
    mixed, pairs = images.mixup(jnp.asarray(inputs["x"]), jnp.asarray(inputs["labels"]), jnp.asarray(hyper["lam"]),
                                jnp.asarray(inputs["perm"]))

    def objective(logits):
      return sum(share * losses.mean(losses.cross_entropy(logits, labels)) for labels, share in pairs)

    loss, slope = jax.value_and_grad(objective)(jnp.asarray(inputs["logits"]))
  np.testing.assert_allclose(mixed, outputs["mixed_x"], rtol=1e-9)
  np.testing.assert_allclose(loss, outputs["loss"], rtol=1e-9)
  np.testing.assert_allclose(slope, outputs["grad_logits"], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_mixup_at_its_ends_is_one_of_the_two_images(share):
  data, labels, order = np.random.default_rng(0).normal(size=(4, 2, 2, 1)), np.arange(4), np.array([2, 0, 3, 1])
  mixed, ((first, one), (second, other)) = images.mixup(jnp.float32(data), labels, jnp.float32(share), order)
  np.testing.assert_array_equal(mixed, np.float32(data if share else data[order]))
  assert (first.tolist(), second.tolist()) == ([0, 1, 2, 3], [2, 0, 3, 1])
  assert (float(one), float(other)) == (share, 1 - share)


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_every_crop_is_a_window_of_the_image_in_a_black_frame(padding):
  batch = np.random.default_rng(0).integers(1, 256, (40, 6, 5, 3), dtype=np.uint8)
  crops = images.random_crop(batch, KEY, padding=padding)
  assert (crops.shape, crops.dtype) == (batch.shape, np.uint8)
  places = [int(which(crop[None], windows(image, padding))[0]) for crop, image in zip(crops, batch, strict=True)]
  assert len(set(places)) > 1 or padding == 0


def test_the_corners_are_uniform_and_their_own_for_every_image():
  crops = images.random_crop(numbered(5000, 3, 3), KEY, padding=2)
  check_uniform(which(crops, windows(numbered(1, 3, 3)[0], 2)), 25)


def test_flips_are_left_right_and_half_of_them():
  batch = numbered(4000, 3, 2, channels=2)
  choices = np.stack([batch[0], batch[0][:, ::-1]])
  flipped = images.random_flip(batch, KEY)
  assert flipped.dtype == np.uint8
  check_uniform(which(flipped, choices), 2)


def test_normalize():
  batch = np.random.default_rng(0).integers(0, 256, (4, 3, 2, 3), dtype=np.uint8)
  mean, std = np.array([0.1, 0.5, 0.7], np.float32), np.array([0.2, 0.3, 0.9], np.float32)
  found = images.normalize(batch, mean, std)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, (batch / 255 - mean) / std, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(images.normalize(np.zeros_like(batch), mean, std)[0, 0, 0], -mean / std, rtol=1e-6)


@pytest.fixture(scope="module")
def draws():
  """draw_mixup of 4,000 keys and a batch of three, by alpha."""
  draw = jax.jit(jax.vmap(lambda key, alpha: images.draw_mixup(key, 3, alpha=alpha), in_axes=(0, None)))
  return {alpha: jax.tree.map(np.asarray, draw(jax.random.split(KEY, 4000), alpha)) for alpha in (0.2, 1.0, 4.0)}


def test_mixup_weights_are_uniform_for_alpha_one(draws):
  shares = np.sort(draws[1.0][0])
  assert shares[0] >= 0 and shares[-1] <= 1
  assert np.abs(shares - np.linspace(0, 1, len(shares))).max() < 1.95 / np.sqrt(len(shares))  # Kolmogorov-Smirnov


@pytest.mark.parametrize("alpha", [0.2, 4.0])
def test_mixup_weights_have_the_variance_of_a_symmetric_beta(draws, alpha):
  shares = draws[alpha][0]
  assert shares.mean() == pytest.approx(0.5, abs=0.03)
  assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_mixup_orders_are_uniform_permutations(draws):
  permutations = np.array(list(itertools.permutations(range(3))))
  check_uniform(which(draws[1.0][1][:, :, None, None], permutations[:, :, None, None]), 6)


FUNCTIONS = {
  "random_crop": lambda batch, key: images.random_crop(batch, key, padding=2),
  "random_flip": images.random_flip,
  "draw_mixup": lambda batch, key: images.draw_mixup(key, len(batch), alpha=1.0),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_draw_is_a_function_of_its_key_only(name):
  function, batch = FUNCTIONS[name], numbered(64, 4, 4)
  first = jax.tree.map(np.asarray, function(batch, KEY))
  function(batch, jax.random.key(0))
  jax.tree.map(np.testing.assert_array_equal, function(batch, KEY), first)
  jax.tree.map(np.testing.assert_array_equal, jax.jit(function)(batch, KEY), first)
  other = function(batch, jax.random.key(12))
  assert not all(jax.tree.leaves(jax.tree.map(np.array_equal, other, first)))
  if name != "draw_mixup":  # the choice does not look at the pixels
    np.testing.assert_array_equal(function(batch + np.uint8(100), KEY), np.where(first > 0, first + 100, first))


def test_compiled_normalize_and_mixup_are_the_eager_ones():
  batch = np.random.default_rng(0).integers(0, 256, (8, 3, 3, 2), dtype=np.uint8)
  mean, std, order = np.float32([0.4, 0.5]), np.float32([0.2, 0.3]), np.arange(8)[::-1]
  eager = images.normalize(batch, mean, std)
  np.testing.assert_allclose(jax.jit(images.normalize)(batch, mean, std), eager, rtol=1e-6, atol=1e-6)
  share = jnp.float32(0.3)
  compiled = jax.jit(images.mixup)(eager, np.arange(8), share, order)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), compiled,
               images.mixup(eager, np.arange(8), share, order))


JITTERED = np.random.default_rng(3).integers(0, 256, (6, 9, 7, 3), dtype=np.uint8)


def enhanced(pixels, factors, order):
  """Pillow's three enhancers in `order`."""
  image, kinds = Image.fromarray(pixels), (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
  for kind in order:
    image = kinds[kind](image).enhance(factors[kind])
  return np.asarray(image)


def test_jitter_is_what_pillow_does():
  orders = np.array(list(itertools.permutations(range(3))))
  factors = np.random.default_rng(4).uniform(0.6, 1.4, (6, 3)).astype(np.float32)
  found = np.asarray(images.jitter(JITTERED, factors, orders))
  expected = [enhanced(*each) for each in zip(JITTERED, factors.tolist(), orders.tolist(), strict=True)]
  assert found.min() >= 0 and found.max() <= 255
  # It truncates after each of the three operations, and the next two may enlarge the error.
  assert np.abs(found - expected).max() < 4
  assert np.abs(found - expected).mean() < 1.5 < 10 < np.abs(found - JITTERED).mean()


def test_jitter_by_factors_of_one_changes_nothing():
  np.testing.assert_allclose(images.jitter(JITTERED, np.ones((6, 3), np.float32), np.tile([2, 0, 1], (6, 1))), JITTERED,
                             atol=1e-3)


def test_factors_are_uniform_around_one_and_orders_are_permutations():
  factors, order = images.draw_jitter(KEY, 5000, strengths=(0.4, 0.1, 0.0))
  spread = (np.asarray(factors) - 1) / np.float32([0.4, 0.1, 1])
  for values in spread.T[:2]:
    uniform = np.sort((values + 1) / 2)
    assert np.abs(uniform - np.linspace(0, 1, len(uniform))).max() < 1.95 / np.sqrt(len(uniform))
  assert (spread[:, 2] == 0).all()
  permutations = np.array(list(itertools.permutations(range(3))))
  check_uniform(which(np.asarray(order)[:, :, None, None], permutations[:, :, None, None]), 6)
