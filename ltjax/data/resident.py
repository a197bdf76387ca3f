"""The resident data path: the whole uint8 set lives on the device, batches are gathered and augmented inside jit."""

import jax
import jax.numpy as jnp
import numpy as np

from ltjax.augment import images as augment
from ltjax.errors import ConfigError
from ltjax.models.resnet_cifar import Branches


def make_load(*, crop_padding: int, flip: bool, mixup: float, branches: bool = False):
  """load(data, indices, key, scalars) -> (images float [b h w c], ((labels [b], share), ...)), to be called inside jit.

  `data` holds `images` uint8 [n h w c], `labels` int [n], `mean` and `std` [c]. The shares of the pairs sum to 1.
  With `branches`, indices are [b 2] and images are `Branches`: each column is augmented by itself, and the first has
  the share `scalars["share"]`.
  """

  def load(data, indices, key, scalars):
    del scalars
    key_crop, key_flip, key_mixup = jax.random.split(key, 3)
    images, labels = data["images"][indices], data["labels"][indices]
    if crop_padding:
      images = augment.random_crop(images, key_crop, padding=crop_padding)
    if flip:
      images = augment.random_flip(images, key_flip)
    images = augment.normalize(images, data["mean"], data["std"])
    if not mixup:
      return images, ((labels, jnp.float32(1.0)),)
    share, order = augment.draw_mixup(key_mixup, len(indices), alpha=mixup)
    return augment.mixup(images, labels, share, order)

  def load_branches(data, indices, key, scalars):
    keys, share = jax.random.split(key), scalars["share"]
    (images, ((labels, _),)), (others, ((other_labels, _),)) = (
        load(data, indices[:, column], keys[column], scalars) for column in (0, 1))
    return Branches(images, others, share), ((labels, share), (other_labels, 1 - share))

  if branches and mixup:
    raise ConfigError("mixup does not go with branches, which are two batches already; write mixup=0.0")
  return load_branches if branches else load


def arrays(dataset, split: str) -> dict[str, np.ndarray]:
  """The arrays of `split` ("train" or "test") that `load` and the evaluation gather from."""
  images, labels = getattr(dataset, split)
  return dict(images=images, labels=labels.astype(np.int32), mean=np.float32(dataset.mean), std=np.float32(dataset.std))
