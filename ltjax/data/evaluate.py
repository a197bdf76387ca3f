"""Evaluation: every image exactly once, whatever the batch size and the number of devices."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ltjax.augment.crops import CORNERS
from ltjax.data import feed, tally
from ltjax.data.files import Files
from ltjax.data.pipeline import CentralCrops, FiveCrops, Pipeline
from ltjax.distributed import sharding


def make_eval_step(model, images_of):
  """eval_step(variables, data, batch, valid [b], counts) -> (counts plus the valid examples, feature norms [b]).

  `images_of(data, batch)` gives normalised images and labels; `tally.add` says what is counted.
  """

  def eval_step(variables, data, batch, valid, counts):
    images, labels = images_of(data, batch)
    found = outputs(model, variables, images)
    labels = labels if labels.ndim == 1 else labels[:, 0]  # files come with a label for each view
    norms = jnp.linalg.norm(found["features"].astype(jnp.float32), axis=-1)
    return tally.add(counts, labels, jnp.argmax(found["logits"], axis=-1), valid), norms

  return eval_step


def outputs(model, variables: dict, images: jax.Array, maps: bool = False) -> dict[str, jax.Array]:
  """A model's "features" [b d], "logits" [b c] and, if asked for, "maps" [b h w d] of normalised images.

  Of several views of each image, [b v h w c], it gives the means.
  """
  shape = images.shape
  if images.ndim == 5:
    images = images.reshape(-1, *shape[2:])
  logits, features = model.apply(variables, images, train=False)
  found = dict(features=features, logits=logits)
  if maps:
    found["maps"] = model.apply(variables, images, method="maps")
  if len(shape) == 5:
    found = {name: jnp.mean(array.reshape(*shape[:2], *array.shape[1:]), axis=1) for name, array in found.items()}
  return found


def compiled_step(model, augmentation: feed.Augmentation, mesh, *, streamed: bool) -> Callable:
  """The evaluation step on `mesh`, to be compiled when it is first called; it takes the memory of its counts."""
  step = make_eval_step(model, feed.evaluation_images(feed.reader(streamed), augmentation))
  return jax.jit(step, donate_argnums=4, out_shardings=sharding.replicated(mesh))


def shared_batch(batch_size: int, mesh) -> int:
  """`batch_size`, rounded up to a multiple of the devices."""
  return math.ceil(batch_size / mesh.devices.size) * mesh.devices.size


class Evaluation(NamedTuple):
  """What a model does on a split.

  Attributes:
    counts: int32 [c, c] confusion matrix: rows are true classes, columns predictions. Above `tally.LARGEST_MATRIX`
      classes it is a `Tally`.
    feature_norms: mean length of each class' features before the head, float64 [c], NaN without images.
  """

  counts: np.ndarray | tally.Tally
  feature_norms: np.ndarray

  def group_norms(self, class_counts: np.ndarray) -> dict[str, float | None]:
    """The mean feature norm of the many-, medium- and few-shot classes; None where a group has no images."""
    return tally.group_means(self.feature_norms, class_counts)


class Evaluator:
  """Counts a model's predictions on a split of a data set, which is on the devices or comes from tf.data."""

  def __init__(self, model, dataset, split: str, augmentation: feed.Augmentation, *, batch_size: int, mesh,
               streamed: bool):
    """`split` is "test" or "held_out"."""
    images, labels = getattr(dataset, split)
    self._labels, self._size, self._stream, self._mesh = labels, len(labels), None, mesh
    self._batch_size = shared_batch(min(batch_size, self._size), mesh)
    self._rows = sharding.local_rows(mesh, self._batch_size)
    if streamed:
      self._stream = _in_order(images, np.arange(self._size), self._batch_size, mesh, augmentation, labels)
    constants = feed.statistics(dataset) if streamed else feed.arrays(dataset, split)
    self._data = sharding.replicate(constants, mesh)
    self._zeros = tally.zeros(len(dataset.class_counts))
    self._step = compiled_step(model, augmentation, mesh, streamed=streamed)

  def __call__(self, variables: dict, stops: Callable[[jax.Array], bool] = lambda counted: False) -> (
      np.ndarray | tally.Tally | None):
    """The counts of `measure` alone."""
    found = self.measure(variables, stops)
    return found and found.counts

  def measure(self, variables: dict, stops: Callable[[jax.Array], bool]) -> Evaluation | None:
    """The `Evaluation` of {"params", "batch_stats"}.

    Returns None as soon as `stops(counted)` is true; it is called between batches with the device's counts so far.
    """
    counts, norms = sharding.replicate(self._zeros, self._mesh), []
    for number, (indices, valid) in enumerate(_batches(self._size, self._batch_size)):
      if number and stops(jax.tree.leaves(counts)[0]):
        return None
      batch = self._stream.batch(number) if self._stream else indices[self._rows]
      batch, valid = sharding.place((batch, valid[self._rows]), self._mesh)
      counts, lengths = self._step(variables, self._data, batch, valid, counts)
      norms.append(lengths)
    counts, norms = jax.tree.map(np.asarray, jax.device_get((counts, norms)))
    total = tally.by_class(counts).total
    assert total.sum() == self._size, (total.sum(), self._size)
    # The host adds, in one order: whatever the number of devices, and the same every time.
    return Evaluation(counts, tally.class_means(np.concatenate(norms)[:self._size], self._labels, len(total)))


class Extractor:
  """A trained model's features and logits of images, in evaluation mode and without augmentation."""

  def __init__(self, model, variables: dict, augmentation: feed.Augmentation, *, mean, std, batch_size: int, mesh):
    self._batch_size, self._mesh, self._augmentation = shared_batch(batch_size, mesh), mesh, augmentation
    self._rows = sharding.local_rows(mesh, self._batch_size)

    def forward(variables, images, maps):
      return outputs(model, variables, augmentation.evaluate(images, jnp.float32(mean), jnp.float32(std)), maps)

    self._forward = functools.partial(
        jax.jit(forward, static_argnums=2, out_shardings=sharding.replicated(mesh)), variables)

  def __call__(self, images: np.ndarray | Files, *wanted: str, places: np.ndarray | None = None) -> dict[
      str, np.ndarray]:
    """{"features": [n d], "logits": [n c]} of images, on the host; only the `wanted` ones of the two.

    Images are uint8 [n h w c] or `Files`; `places` are the indices of the images to use, all by default.
    """
    places = np.arange(len(images)) if places is None else places
    parts = [{key: jax.device_get(found[key])[valid] for key in wanted} for found, valid in self.stream(images, places)]
    return {key: np.concatenate([part[key] for part in parts]) for key in wanted}

  def stream(self, images: np.ndarray | Files, places: np.ndarray, *, maps: bool = False) -> Iterator[
      tuple[dict[str, jax.Array], np.ndarray]]:
    """({"features", "logits", and "maps" if asked for}, which rows count [b]) of one batch after the other."""
    stream = None if isinstance(images, np.ndarray) else _in_order(images, places, self._batch_size, self._mesh,
                                                                   self._augmentation)
    for number, (indices, valid) in enumerate(_batches(len(places), self._batch_size)):
      # Even a small set gets complete batches, so that all sets use one compiled function.
      batch = stream.batch(number)["images"] if stream else images[places[indices[self._rows]]]
      yield self._forward(sharding.place(batch, self._mesh), maps), valid


def _in_order(images, places, batch_size: int, mesh, augmentation, labels=None) -> Pipeline:
  crop, five = None, augmentation.crops == "five" and not isinstance(images, np.ndarray)
  if not isinstance(images, np.ndarray):
    crop = (FiveCrops if five else CentralCrops)(augmentation.size)
  labels = np.zeros(len(images), np.int32) if labels is None else labels

  def order(number):
    indices = places[in_order(len(places), batch_size, number)]
    return np.repeat(indices[:, None], len(CORNERS), axis=1) if five else indices

  return Pipeline(images, labels, order, math.ceil(len(places) / batch_size), crop=crop,
                  rows=sharding.local_rows(mesh, batch_size), interpolation=augmentation.interpolation)


def pixels(images: np.ndarray | Files, places: np.ndarray, augmentation: feed.Augmentation) -> np.ndarray:
  """uint8 [n h w c]: the images with indices `places`; files are cropped as for a test."""
  if isinstance(images, np.ndarray):
    return images[places]
  return Pipeline(images, np.zeros(len(images)), lambda _: places, 1, crop=CentralCrops(augmentation.size),
                  interpolation=augmentation.interpolation).batch(0)["images"]


def _batches(size: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """(indices int32 [b], valid bool [b]) of batches over `size` examples in order."""
  for number in range(math.ceil(size / batch_size)):
    yield in_order(size, batch_size, number), number * batch_size + np.arange(batch_size) < size


def in_order(size: int, batch_size: int, number: int) -> np.ndarray:
  """The indices of batch `number` of `size` examples in order, int32 [b]."""
  # Copies of the last example fill the last batch; they are not counted.
  return np.minimum(number * batch_size + np.arange(batch_size), size - 1).astype(np.int32)
