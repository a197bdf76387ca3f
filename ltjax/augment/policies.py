"""AutoAugment and RandAugment: which primitives, how often and how strong. On the device, each example for itself."""

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from ltjax.augment import primitives
from ltjax.errors import ConfigError

# The 25 sub-policies found on CIFAR-10: (primitive, probability, magnitude of 10) twice.
CIFAR10 = (
    (("invert", 0.1, 7), ("contrast", 0.2, 6)), (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)), (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.5, 8), ("equalize", 0.9, 2)), (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)), (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 5), ("equalize", 0.5, 1)), (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate_x", 0.5, 8)), (("equalize", 0.3, 7), ("autocontrast", 0.4, 8)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)), (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 3)), (("equalize", 0.2, 0), ("autocontrast", 0.6, 0)),
    (("equalize", 0.2, 8), ("equalize", 0.6, 4)), (("color", 0.9, 9), ("equalize", 0.6, 6)),
    (("autocontrast", 0.8, 4), ("solarize", 0.2, 8)), (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("autocontrast", 0.9, 3)), (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.9, 2), ("solarize", 0.8, 3)), (("equalize", 0.8, 8), ("invert", 0.1, 3)),
    (("translate_y", 0.7, 9), ("autocontrast", 0.9, 1)))
POLICIES = dict(cifar10=CIFAR10)
# The 14 primitives that RandAugment draws from.
_DRAWN = tuple(name for name in primitives.NAMES if name != "invert")


def levels(bins: int, height: int, width: int) -> np.ndarray:
  """[primitives bins]: the level of every primitive at every magnitude, without its sign.

  Shear up to 0.3, translation by whole pixels up to 150/331 of the side, rotation up to 30 degrees, factors up to
  1 + 0.9, posterize from 8 bits to 4, solarize from 255 down to 0.

  References:
    Cubuk et al., `AutoAugment <https://arxiv.org/abs/1805.09501>`_, 2019, table 6, in the form of torchvision.
  """
  up = np.linspace(0, 1, bins)
  tops = dict(shear_x=0.3, shear_y=0.3, rotate=30.0, brightness=0.9, color=0.9, contrast=0.9, sharpness=0.9)
  rows = {name: top * up for name, top in tops.items()}
  rows |= dict(translate_x=np.floor(150 / 331 * width * up), translate_y=np.floor(150 / 331 * height * up))
  rows |= dict(posterize=8 - np.round(np.arange(bins) / ((bins - 1) / 4)), solarize=255 * (1 - up))
  return np.stack([rows.get(name, np.zeros(bins)) for name in primitives.NAMES]).astype(np.float32)


def _signed(kind, level, key):
  """Levels with a random sign where the primitive has one; factors are 1 +- level."""
  signs = jnp.where(jax.random.bernoulli(key, 0.5, level.shape), -1.0, 1.0)
  moves = (kind >= primitives.KIND["shear_x"]) & (kind <= primitives.KIND["rotate"])
  blends = (kind >= primitives.KIND["brightness"]) & (kind <= primitives.KIND["sharpness"])
  return jnp.where(moves, signs * level, jnp.where(blends, 1 + signs * level, level))


def rand_augment(
    images: UInt8[Array, "b h w c"], key: jax.Array, *, num_ops: Annotated[int, "[1, inf)"] = 2,
    magnitude: Annotated[int, "[0, 30]"] = 9,
) -> UInt8[Array, "b h w c"]:
  """Applies `num_ops` primitives, drawn uniformly from 14, to each image, all at one magnitude of 30.

  References:
    Cubuk et al., `RandAugment <https://arxiv.org/abs/1909.13719>`_, 2020; the levels are those of `levels`.
  """
  table = jnp.asarray(levels(31, *images.shape[1:3])[:, magnitude])
  choices = jnp.array([primitives.KIND[name] for name in _DRAWN])
  for turn in range(num_ops):
    key_kind, key_sign = jax.random.split(jax.random.fold_in(key, turn))
    kind = choices[jax.random.randint(key_kind, (len(images),), 0, len(choices))]
    images = primitives.apply(images, kind, _signed(kind, table[kind], key_sign))
  return images


def auto_augment(images: UInt8[Array, "b h w c"], key: jax.Array, *, policy: str = "cifar10") -> UInt8[
    Array, "b h w c"]:
  """Applies one of 25 learned pairs of primitives to each image, each of the two with its own probability.

  References:
    Cubuk et al., `AutoAugment <https://arxiv.org/abs/1805.09501>`_, 2019, table 7: the policy found on CIFAR-10, which
    is used for CIFAR-100 too.
  """
  if policy not in POLICIES:
    raise ConfigError(f"auto_augment: policy must be one of {', '.join(POLICIES)}, got {policy!r}")
  pairs, table = POLICIES[policy], levels(10, *images.shape[1:3])
  kinds = np.array([[primitives.KIND[name] for name, _, _ in pair] for pair in pairs])
  chances = np.array([[chance for _, chance, _ in pair] for pair in pairs], np.float32)
  bins = np.array([[magnitude for _, _, magnitude in pair] for pair in pairs])
  chosen = jax.random.randint(jax.random.fold_in(key, 2), (len(images),), 0, len(pairs))
  for turn in range(2):
    key_use, key_sign = jax.random.split(jax.random.fold_in(key, turn))
    used = jax.random.uniform(key_use, (len(images),)) < jnp.asarray(chances)[chosen, turn]
    kind = jnp.where(used, jnp.asarray(kinds)[chosen, turn], primitives.KIND["identity"])
    level = jnp.asarray(table[kinds, bins])[chosen, turn]
    images = primitives.apply(images, kind, _signed(kind, level, key_sign))
  return images
