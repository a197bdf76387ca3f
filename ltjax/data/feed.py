"""How examples reach the devices, on either data path: indices or images on the host, a `Batch` inside jit."""

import inspect
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ltjax.augment import compose
from ltjax.augment.batches import Batch, Term
from ltjax.augment.crops import CORNERS, MARGIN
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
    boxes: the random boxes of files, (sizes [b 2], draws [b d]) -> [b 4]; None for those of a test, and for arrays.
    apply: (images, key, labels, mean, std) -> (normalised images, ((labels, weight), ...)).
    evaluate: (images, mean, std) -> normalised images, without randomness: [b h w c], or five crops [b 5 h w c].
    interpolation: of files, "bilinear" or "bicubic".
    crops: of a test image: "center", "five", or "" for the one in the middle of a file and arrays as they are.
    resized: the side that arrays are brought to inside jit; 0 where they keep theirs, and for files.
  """

  size: int
  boxes: Callable | None
  apply: Callable
  evaluate: Callable
  interpolation: str = "bilinear"
  crops: str = ""
  resized: int = 0

  @property
  def one_view(self) -> "Augmentation":
    """The same with one crop of a test image in the place of five."""
    if self.crops != "five":
      return self
    return self._replace(crops="center", evaluate=evaluation(self.resized, "center", self.interpolation))


class Rows(struct.PyTreeNode):
  """Arrays of equal shape, each held as a row.

  A TPU would otherwise lay out all images [n h w c] anew in each call before it gathers a batch of them.

  Attributes:
    values: [n k].
    shape: of each array; its size is k.
  """

  values: Any
  shape: tuple[int, ...] = struct.field(pytree_node=False)

  def __getitem__(self, indices):
    """The arrays at `indices`, in their shape."""
    return self.values[indices].reshape(*indices.shape, *self.shape)


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
  return dict(images=Rows(images.reshape(len(images), -1), images.shape[1:]), labels=labels.astype(np.int32),
              **statistics(dataset))


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
    crop, boxes = CentralCrops(augmentation.size), augmentation.boxes
    if boxes:
      moves = "progress" in inspect.signature(boxes).parameters
      crop = RandomCrops(augmentation.size, seed, stage, order.batch(0).size, boxes, steps=order.steps if moves else 0)
  return Pipeline(images, labels, order.batch, order.steps, crop=crop, rows=rows,
                  interpolation=augmentation.interpolation).batch


def make_transform(read: Callable, augmentation: Augmentation, calls, join=None, steps: int = 0) -> Callable:
  """transform(data, batch, key, scalars) -> `Batch`, to be called inside jit.

  Args:
    read: (data, batch) -> (uint8 images, labels); `data` also has "mean", "std" and "class_counts".
    augmentation: of the images.
    calls: the stage's transforms, each a `config.bind.Call`.
    join: the transform among them that joins several streams, if any. A batch then is [b streams].
    steps: of the stage, for augmentation that changes in its course; 0 for its start.
  """

  def load(data, batch, key, **progress) -> Batch:
    images, labels = read(data, batch)
    images, pairs = augmentation.apply(images, key, labels, data["mean"], data["std"], **progress)
    return Batch(images, tuple(Term(labels, weight) for labels, weight in pairs))

  def transform(data, batch, key, scalars) -> Batch:
    key_load, progress = jax.random.fold_in(key, 0), dict(progress=scalars["step"] / max(steps - 1, 1)) if steps else {}
    if join is None:
      found = load(data, batch, key_load, **progress)
    else:
      found = tuple(load(data, jax.tree.map(lambda column, number=number: column[:, number], batch),
                         jax.random.fold_in(key_load, number), **progress)
                    for number in range(len(join.function.draws)))
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


def of_features(operations=()) -> Augmentation:
  """The augmentation of features [b v ...]: one of the augmented views of each example, if any; then mixup, if any."""
  mix = compose.compose(operations, normalize=lambda features, mean, std: features)

  def apply(features, key, labels, mean, std, progress=0.0):
    views = features.shape[1]
    chosen = features[:, 0]
    if views > 1:
      view = jax.random.randint(compose.stream(key, "view"), (len(features),), 1, views)
      chosen = features[jnp.arange(len(features)), view]
    return mix(chosen.astype(jnp.float32), key, labels, mean, std, progress)

  return Augmentation(0, None, apply, lambda features, mean, std: features[:, 0].astype(jnp.float32))


def plain(images, mean, std):
  """The evaluation of images that need no resizing."""
  return normalize(images, jnp.float32(mean), jnp.float32(std))


def evaluation(size: int, crops: str, interpolation: str) -> Callable:
  """The evaluation of arrays that the augmentation brings to `size`, with such `crops`; `plain` for a size of 0."""
  if not size:
    return plain
  side = {"": size, "center": size * 8 // 7, "five": size + MARGIN}[crops]
  places = dict(five=CORNERS).get(crops, CORNERS[-1:]) * (side - size)

  def evaluate(images, mean, std):
    images = resize(images, size=side, interpolation=interpolation)
    views = [images[:, top:top + size, left:left + size] for top, left in np.rint(places).astype(int)]
    images = jnp.stack(views, axis=1) if crops == "five" else views[0]
    return normalize(images, jnp.float32(mean), jnp.float32(std))

  return evaluate
