"""Evaluation: every image exactly once, whatever the batch size and the number of devices."""

import functools
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from ltjax.data import feed, tally
from ltjax.data.files import Files
from ltjax.data.pipeline import CentralCrops, Pipeline
from ltjax.distributed import sharding


def make_eval_step(model, images_of):
  """eval_step(variables, data, batch, valid [b], counts) -> counts plus the valid examples, see `tally.add`.

  `images_of(data, batch)` gives normalised images and labels.
  """

  def eval_step(variables, data, batch, valid, counts):
    images, labels = images_of(data, batch)
    logits, _ = model.apply(variables, images, train=False)
    return tally.add(counts, labels, jnp.argmax(logits, axis=-1), valid)

  return eval_step


def compiled_step(model, augmentation: feed.Augmentation, mesh, *, streamed: bool) -> Callable:
  """The evaluation step on `mesh`, to be compiled when it is first called; it takes the memory of its counts."""
  step = make_eval_step(model, feed.evaluation_images(feed.reader(streamed), augmentation))
  return jax.jit(step, donate_argnums=4, out_shardings=sharding.replicated(mesh))


def shared_batch(batch_size: int, mesh) -> int:
  """`batch_size`, rounded up to a multiple of the devices."""
  return math.ceil(batch_size / mesh.devices.size) * mesh.devices.size


class Evaluator:
  """Counts a model's predictions on a split of a data set, which is on the devices or comes from tf.data."""

  def __init__(self, model, dataset, split: str, augmentation: feed.Augmentation, *, batch_size: int, mesh,
               streamed: bool):
    """`split` is "test" or "held_out"."""
    images, labels = getattr(dataset, split)
    self._size, self._stream, self._mesh = len(labels), None, mesh
    self._batch_size = shared_batch(min(batch_size, self._size), mesh)
    self._rows = sharding.local_rows(mesh, self._batch_size)
    if streamed:
      self._stream = _in_order(images, np.arange(self._size), self._batch_size, mesh, augmentation.size, labels)
    constants = feed.statistics(dataset) if streamed else feed.arrays(dataset, split)
    self._data = sharding.replicate(constants, mesh)
    self._zeros = tally.zeros(len(dataset.class_counts))
    self._step = compiled_step(model, augmentation, mesh, streamed=streamed)

  def __call__(self, variables: dict, stops: Callable[[jax.Array], bool] = lambda counted: False) -> (
      np.ndarray | tally.Tally | None):
    """int64 [c, c] confusion matrix of {"params", "batch_stats"}: rows are true classes, columns predictions.

    Above `tally.LARGEST_MATRIX` classes it is a `Tally`. Returns None as soon as `stops(counted)` is true; it is called
    between batches with the device's counts so far.
    """
    counts = sharding.replicate(self._zeros, self._mesh)
    for number, (indices, valid) in enumerate(_batches(self._size, self._batch_size)):
      if number and stops(jax.tree.leaves(counts)[0]):
        return None
      batch = self._stream.batch(number) if self._stream else indices[self._rows]
      batch, valid = sharding.place((batch, valid[self._rows]), self._mesh)
      counts = self._step(variables, self._data, batch, valid, counts)
    counts = jax.tree.map(lambda leaf: np.asarray(leaf, np.int64), jax.device_get(counts))
    counted = tally.by_class(counts).total.sum()
    assert counted == self._size, (counted, self._size)
    return counts


class Extractor:
  """A trained model's features and logits of images, in evaluation mode and without augmentation."""

  def __init__(self, model, variables: dict, augmentation: feed.Augmentation, *, mean, std, batch_size: int, mesh):
    self._batch_size, self._mesh, self._size = shared_batch(batch_size, mesh), mesh, augmentation.size
    self._rows = sharding.local_rows(mesh, self._batch_size)

    def forward(variables, images):
      logits, features = model.apply(variables, augmentation.evaluate(images, jnp.float32(mean), jnp.float32(std)),
                                     train=False)
      return dict(features=features, logits=logits)

    self._forward = functools.partial(jax.jit(forward, out_shardings=sharding.replicated(mesh)), variables)

  def __call__(self, images: np.ndarray | Files, *wanted: str, places: np.ndarray | None = None) -> dict[
      str, np.ndarray]:
    """{"features": [n d], "logits": [n c]} of images, on the host; only the `wanted` ones of the two.

    Images are uint8 [n h w c] or `Files`; `places` are the indices of the images to use, all by default.
    """
    parts, places = [], np.arange(len(images)) if places is None else places
    stream = None if isinstance(images, np.ndarray) else _in_order(images, places, self._batch_size, self._mesh,
                                                                   self._size)
    for number, (indices, valid) in enumerate(_batches(len(places), self._batch_size)):
      # Even a small set gets complete batches, so that all sets use one compiled function.
      batch = stream.batch(number)["images"] if stream else images[places[indices[self._rows]]]
      found = self._forward(sharding.place(batch, self._mesh))
      parts.append({key: jax.device_get(found[key])[valid] for key in wanted})
    return {key: np.concatenate([part[key] for part in parts]) for key in wanted}


def _in_order(images, places, batch_size: int, mesh, size: int, labels=None) -> Pipeline:
  crop = None if isinstance(images, np.ndarray) else CentralCrops(size)
  labels = np.zeros(len(images), np.int32) if labels is None else labels
  return Pipeline(images, labels, lambda number: places[_batch(len(places), batch_size, number)],
                  math.ceil(len(places) / batch_size), crop=crop, rows=sharding.local_rows(mesh, batch_size))


def pixels(images: np.ndarray | Files, places: np.ndarray, size: int) -> np.ndarray:
  """uint8 [n h w c]: the images with indices `places`; files are cropped as for a test."""
  if isinstance(images, np.ndarray):
    return images[places]
  return Pipeline(images, np.zeros(len(images)), lambda _: places, 1, crop=CentralCrops(size)).batch(0)["images"]


def _batches(size: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """(indices int32 [b], valid bool [b]) of batches over `size` examples in order."""
  for number in range(math.ceil(size / batch_size)):
    yield _batch(size, batch_size, number), number * batch_size + np.arange(batch_size) < size


def _batch(size: int, batch_size: int, number: int) -> np.ndarray:
  # Copies of the last example fill the last batch; they are not counted.
  return np.minimum(number * batch_size + np.arange(batch_size), size - 1).astype(np.int32)
