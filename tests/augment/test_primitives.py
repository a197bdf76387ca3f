"""The primitives of AutoAugment against Pillow, on crops of real images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_images

from ltjax.augment import policies, primitives

PICTURE = load_sample_images().images[0]
CROPS = np.stack([PICTURE[y:y + 32, x:x + 32] for y in range(0, 320, 80) for x in range(0, 600, 150)])
apply = jax.jit(primitives.apply)


def affine(*matrix):
  return lambda image: image.transform(image.size, Image.AFFINE, matrix)


ROWS = [
  ("identity", 0.0, lambda image: image),
  ("shear_x", 0.3, affine(1, 0.3, 0, 0, 1, 0)), ("shear_x", -0.1, affine(1, -0.1, 0, 0, 1, 0)),
  ("shear_y", 0.2, affine(1, 0, 0, 0.2, 1, 0)),
  ("translate_x", 7.0, affine(1, 0, 7, 0, 1, 0)), ("translate_y", -3.0, affine(1, 0, 0, 0, 1, -3)),
  ("rotate", 10.0, lambda image: image.rotate(10)), ("rotate", -27.3, lambda image: image.rotate(-27.3)),
  *((name, level, lambda image, kind=kind, level=level: kind(image).enhance(level)) for name, kind in dict(
      brightness=ImageEnhance.Brightness, color=ImageEnhance.Color, contrast=ImageEnhance.Contrast,
      sharpness=ImageEnhance.Sharpness).items() for level in (0.1, 0.7, 1.9)),
  *(("posterize", float(bits), lambda image, bits=bits: ImageOps.posterize(image, bits)) for bits in (4, 6, 8)),
  *(("solarize", level, lambda image, level=level: ImageOps.solarize(image, level)) for level in (0.0, 85.0, 255.0)),
  ("autocontrast", 0.0, ImageOps.autocontrast), ("equalize", 0.0, ImageOps.equalize), ("invert", 0.0, ImageOps.invert),
]


def test_every_primitive_is_compared():
  assert {name for name, _, _ in ROWS} == set(primitives.NAMES)


@pytest.mark.parametrize(("name", "level", "pillow"), ROWS, ids=[f"{name}-{level}" for name, level, _ in ROWS])
def test_a_primitive_gives_pillow_s_pixels(name, level, pillow):
  wanted = np.stack([np.asarray(pillow(Image.fromarray(crop))) for crop in CROPS])
  found = apply(CROPS, jnp.full(len(CROPS), primitives.KIND[name]), jnp.full(len(CROPS), level))
  if name == "autocontrast":  # exact here, in doubles there
    differing = np.asarray(found).astype(int) - wanted
    assert set(np.unique(differing)) <= {0, 1} and (differing != 0).mean() < 0.02
  else:
    np.testing.assert_array_equal(found, wanted)


def test_each_example_has_its_own_primitive():
  kinds = jnp.arange(len(CROPS)) % len(primitives.NAMES)
  levels = jnp.full(len(CROPS), 2.0)
  mixed = apply(CROPS, kinds, levels)
  for index, kind in enumerate(kinds):
    alone = apply(CROPS, jnp.full(len(CROPS), kind), levels)
    np.testing.assert_array_equal(mixed[index], alone[index])


def test_channels_of_one_value_stay_as_they_are():
  flat = np.full((2, 8, 8, 3), 77, np.uint8)
  for name in ("autocontrast", "equalize"):
    np.testing.assert_array_equal(apply(flat, jnp.full(2, primitives.KIND[name]), jnp.zeros(2)), flat)


def test_levels_reach_the_published_ends():
  table = dict(zip(primitives.NAMES, policies.levels(10, 32, 32), strict=True))
  for name, end in dict(shear_x=0.3, rotate=30, brightness=0.9, posterize=4, solarize=0).items():
    assert table[name][-1] == pytest.approx(end)
  assert table["translate_y"][-1] == 14 and table["posterize"][0] == 8


def test_the_policy_has_25_pairs_with_probabilities():
  assert len(policies.CIFAR10) == 25
  for name, chance, magnitude in (entry for pair in policies.CIFAR10 for entry in pair):
    assert name in primitives.KIND and 0 <= chance <= 1 and 0 <= magnitude <= 9


@pytest.mark.parametrize("policy", [policies.rand_augment, policies.auto_augment])
def test_a_policy_changes_most_images_in_different_ways_and_is_a_function_of_its_key(policy):
  same = np.repeat(CROPS[:1], 64, axis=0)
  draw = jax.jit(policy)
  first, again, other = (np.asarray(draw(same, jax.random.key(seed))) for seed in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()
  changed = (first != same).any(axis=(1, 2, 3))
  assert changed.mean() > 0.5 and len(np.unique(first.reshape(64, -1), axis=0)) > 20
