"""How examples reach the devices, on either data path: indices or images on the host, a `Batch` inside jit."""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ltjax.augment.batches import Batch, Term
from ltjax.augment.images import normalize, resize
from ltjax.data.order import Order
from ltjax.data.pipeline import CentralCrops, Pipeline, RandomCrops
from ltjax.distributed import sharding

# The numbers under which transforms fold their draws into the key of a step; others use a hash of their name.
_STREAMS = dict(generate_features=2)


class Augmentation(NamedTuple):
  """The augmentation of a stage.

  Args:
    size: the side of the images that the network sees; 0 where they keep theirs.
    boxes: the random boxes of files, (sizes [b 2], draws [b d]) -> [b 4]; None for arrays.
    apply: (images, key, labels, mean, std) -> (normalised images, ((labels, weight), ...)).
    evaluate: (images, mean, std) -> normalised images of the same size, without randomness.
  """

  size: int
  boxes: Callable | None
  apply: Callable
  evaluate: Callable


def gather(data, batch):
  """(images uint8 [b h w c], labels int [b]) of a batch of the resident path: indices into what `data` holds."""
  return data["images"][batch], data["labels"][batch]


def received(data, batch):
  """(images, labels) of a batch that comes with its images, as `Pipeline.batch` makes it."""
  del data
  return batch["images"], batch["labels"]


def reader(streamed: bool) -> Callable:
  """What reads a batch inside jit."""
  return received if streamed else gather


def arrays(dataset, split: str) -> dict[str, np.ndarray]:
  """The arrays of `split` ("train", "test" or "held_out") that `gather` indexes."""
  images, labels = getattr(dataset, split)
  return dict(images=images, labels=labels.astype(np.int32), **statistics(dataset))


def constants(dataset, streamed: bool) -> dict[str, np.ndarray]:
  """The arrays of a stage's training data that live on the devices."""
  return statistics(dataset) if streamed else arrays(dataset, "train")


def statistics(dataset) -> dict[str, np.ndarray]:
  """The mean and standard deviation that images are normalised with."""
  return dict(mean=np.float32(dataset.mean), std=np.float32(dataset.std))


def make(dataset, order: Order, augmentation: Augmentation, mesh, *, streamed: bool, seed: int,
         stage: str) -> Callable[[int], Any]:
  """batch(step) -> this process's rows of a batch of `stage`, on the host; reads no image yet.

  `streamed` batches come from tf.data, others are resident.
  """
  rows = sharding.local_rows(mesh, order.batch_size)
  if not streamed:
    return lambda step: order.batch(step)[rows]
  (images, labels), crop = dataset.train, None
  if not isinstance(images, np.ndarray):
    crop = RandomCrops(augmentation.size, seed, stage, order.batch(0).size, augmentation.boxes)
  return Pipeline(images, labels, order.batch, order.steps, crop=crop, rows=rows).batch


def test_crop(images, size: int) -> CentralCrops | None:
  """The crop of test images: none for arrays."""
  return None if isinstance(images, np.ndarray) else CentralCrops(size)


def make_transform(read: Callable, augmentation: Augmentation, calls, join=None) -> Callable:
  """transform(data, batch, key, scalars) -> `Batch`, to be called inside jit.

  Args:
    read: (data, batch) -> (uint8 images, labels); `data` also has "mean", "std" and "class_counts".
    augmentation: of the images.
    calls: the stage's transforms, each a `config.bind.Call`.
    join: the transform among them that joins several streams, if any. A batch then is [b streams].
  """

  def load(data, batch, key) -> Batch:
    images, labels = read(data, batch)
    images, pairs = augmentation.apply(images, key, labels, data["mean"], data["std"])
    return Batch(images, tuple(Term(labels, weight) for labels, weight in pairs))

  def transform(data, batch, key, scalars) -> Batch:
    key_load = jax.random.fold_in(key, 0)
    if join is None:
      found = load(data, batch, key_load)
    else:
      found = tuple(load(data, jax.tree.map(lambda column, number=number: column[:, number], batch),
                         jax.random.fold_in(key_load, number)) for number in range(join.function.streams))
    for call, scheduled in zip(calls, scalars["transforms"], strict=True):
      if scheduled is not None:
        number = _STREAMS.get(call.name, zlib.crc32(call.name.encode()))
        given = dict(num_classes=len(data["class_counts"])) if "num_classes" in call.arguments else {}
        found = call(found, jax.random.fold_in(key, number), **given, **scheduled)
    return found

  return transform


def evaluation_images(read: Callable, augmentation: Augmentation) -> Callable:
  """images_of(data, batch) -> (normalised images, labels), to be called inside jit."""

  def images_of(data, batch):
    images, labels = read(data, batch)
    return augmentation.evaluate(images, data["mean"], data["std"]), labels

  return images_of


def plain(images, mean, std):
  """The evaluation of images that need no resizing."""
  return normalize(images, jnp.float32(mean), jnp.float32(std))


def resized(images, mean, std, *, size: int):
  """The evaluation of arrays that the augmentation brings to `size`."""
  return normalize(resize(images, size=size), jnp.float32(mean), jnp.float32(std))
