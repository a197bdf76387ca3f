"""The resident data path, where the whole uint8 set lives on the device, and what both paths do inside jit."""

import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ltjax.augment import images as augment
from ltjax.errors import ConfigError
from ltjax.models.resnet_cifar import Branches


def gather(data, batch):
  """(images uint8 [b h w c], labels int [b]) of a batch of the resident path: indices into what `data` holds."""
  return data["images"][batch], data["labels"][batch]


def received(data, batch):
  """(images, labels) of a batch that comes with its images, as `Pipeline.batch` makes it."""
  del data
  return batch["images"], batch["labels"]


def make_load(*, flip: bool, mixup: float, crop_padding: int = 0, jitter: Sequence[float] | int = 0,
              branches: bool = False, read=gather):
  """load(data, batch, key, scalars) -> (images float [b h w c], ((labels [b], share), ...)), to be called inside jit.

  `data` holds `mean` and `std` [c]; `read(data, batch)` gives images uint8 [b h w c] and labels int [b]. The shares of
  the pairs sum to 1. With `branches`, a batch is [b 2] and images are `Branches`: each column is augmented by itself,
  and the first has the share `scalars["share"]`.
  """

  def load(data, batch, key, scalars):
    del scalars
    key_crop, key_flip, key_mixup = jax.random.split(key, 3)
    images, labels = read(data, batch)
    if crop_padding:
      images = augment.random_crop(images, key_crop, padding=crop_padding)
    if flip:
      images = augment.random_flip(images, key_flip)
    if jitter:
      drawn = augment.draw_jitter(jax.random.fold_in(key, 3), len(images), strengths=jitter)
      images = augment.jitter(images, *drawn)
    images = augment.normalize(images, data["mean"], data["std"])
    if not mixup:
      return images, ((labels, jnp.float32(1.0)),)
    share, order = augment.draw_mixup(key_mixup, len(labels), alpha=mixup)
    return augment.mixup(images, labels, share, order)

  def load_branches(data, batch, key, scalars):
    keys, share = jax.random.split(key), scalars["share"]
    columns = [jax.tree.map(operator.itemgetter((slice(None), column)), batch) for column in (0, 1)]
    (images, ((labels, _),)), (others, ((other_labels, _),)) = (
        load(data, column, key, scalars) for column, key in zip(columns, keys, strict=True))
    return Branches(images, others, share), ((labels, share), (other_labels, 1 - share))

  if branches and mixup:
    raise ConfigError("mixup does not go with branches, which are two batches already; write mixup=0.0")
  return load_branches if branches else load


def arrays(dataset, split: str) -> dict[str, np.ndarray]:
  """The arrays of `split` ("train" or "test") that `load` and the evaluation gather from."""
  images, labels = getattr(dataset, split)
  return dict(images=images, labels=labels.astype(np.int32), **constants(dataset))


def constants(dataset) -> dict[str, np.ndarray]:
  """What images are normalised with."""
  return dict(mean=np.float32(dataset.mean), std=np.float32(dataset.std))
