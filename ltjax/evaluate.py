"""Evaluation: every image exactly once, whatever the batch size and the number of devices."""

import functools
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from ltjax.augment.images import normalize
from ltjax.data import resident
from ltjax.data.files import Files
from ltjax.data.pipeline import CentralCrops, Pipeline
from ltjax.distributed import sharding
from ltjax.step import make_eval_step


class Evaluator:
  """Counts predictions of a model on a test set, which lives on the devices or comes from a `stream`."""

  def __init__(self, model, data, num_classes: int, *, batch_size: int, mesh, stream: Pipeline | None = None):
    self._data, self._size, self._stream = data, stream.size if stream else len(data["labels"]), stream
    self._batch_size, self._mesh = _shared(min(batch_size, self._size), mesh), mesh
    self._rows = sharding.local_rows(mesh, self._batch_size)
    self._zeros = np.zeros((num_classes, num_classes), np.int32)
    step = make_eval_step(model, resident.received if stream else resident.gather)
    self._step = jax.jit(step, donate_argnums=4, out_shardings=sharding.replicated(mesh))

  def __call__(self, state, stops: Callable[[jax.Array], bool] = lambda counted: False) -> np.ndarray | None:
    """int64 [c, c] confusion matrix of `state`: rows are true classes, columns predictions.

    None where `stops(counted)`, asked after a batch with what the device has counted by then, says that the run stops.
    """
    variables = dict(params=state.params, batch_stats=state.batch_stats)
    confusion = sharding.replicate(self._zeros, self._mesh)
    for number, (indices, valid) in enumerate(_batches(self._size, self._batch_size)):
      if number and stops(confusion):
        return None
      batch = self._stream.batch(number) if self._stream else indices[self._rows]
      batch, valid = sharding.place((batch, valid[self._rows]), self._mesh)
      confusion = self._step(variables, self._data, batch, valid, confusion)
    confusion = np.asarray(jax.device_get(confusion), np.int64)
    assert confusion.sum() == self._size, (confusion.sum(), self._size)
    return confusion


class Extractor:
  """What a trained model makes of images, in evaluation mode and without augmentation."""

  def __init__(self, model, variables: dict, *, mean, std, batch_size: int, mesh, size: int = 0):
    """`size` is the side of the squares that are cut from photographs."""
    self._batch_size, self._mesh, self._size = _shared(batch_size, mesh), mesh, size
    self._rows = sharding.local_rows(mesh, self._batch_size)

    def forward(variables, images):
      logits, features = model.apply(variables, normalize(images, jnp.float32(mean), jnp.float32(std)), train=False)
      return dict(features=features, logits=logits)

    self._forward = functools.partial(jax.jit(forward, out_shardings=sharding.replicated(mesh)), variables)

  def __call__(self, images: np.ndarray | Files, *wanted: str, places: np.ndarray | None = None) -> dict[
      str, np.ndarray]:
    """{"features": [n d], "logits": [n c]} of images, or what of it is `wanted`, on the host.

    Images are uint8 [n h w c] or `Files`, of which only those at `places` are looked at if given.
    """
    parts, places = [], np.arange(len(images)) if places is None else places
    stream = None if isinstance(images, np.ndarray) else _in_order(images, places, self._batch_size, self._mesh,
                                                                   self._size)
    for number, (indices, valid) in enumerate(_batches(len(places), self._batch_size)):
      # Whole batches, also of a small set: all sets then share one compiled function.
      batch = stream.batch(number)["images"] if stream else images[places[indices[self._rows]]]
      found = self._forward(sharding.place(batch, self._mesh))
      parts.append({key: jax.device_get(found[key])[valid] for key in wanted})
    return {key: np.concatenate([part[key] for part in parts]) for key in wanted}


def stream(images: np.ndarray | Files, labels: np.ndarray, *, batch_size: int, mesh, size: int) -> Pipeline:
  """The batches of an `Evaluator` with the same `batch_size` over images that are not on the devices.

  `size` is the side of the squares that are cut from photographs.
  """
  return _in_order(images, np.arange(len(labels)), _shared(min(batch_size, len(labels)), mesh), mesh, size, labels)


def _in_order(images, places, batch_size: int, mesh, size: int, labels=None) -> Pipeline:
  crop = None if isinstance(images, np.ndarray) else CentralCrops(size)
  labels = np.zeros(len(images), np.int32) if labels is None else labels
  return Pipeline(images, labels, lambda number: places[_batch(len(places), batch_size, number)],
                  math.ceil(len(places) / batch_size), crop=crop, rows=sharding.local_rows(mesh, batch_size))


def pixels(images: np.ndarray | Files, places: np.ndarray, size: int) -> np.ndarray:
  """uint8 [n h w c]: the images at `places`, photographs as squares of `size` like those that a model is tested on."""
  if isinstance(images, np.ndarray):
    return images[places]
  return Pipeline(images, np.zeros(len(images)), lambda _: places, 1, crop=CentralCrops(size)).batch(0)["images"]


def _shared(batch_size: int, mesh) -> int:
  """`batch_size`, rounded up to what the devices can share."""
  return math.ceil(batch_size / mesh.devices.size) * mesh.devices.size


def _batches(size: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """(indices int32 [b], valid bool [b]) of batches over `size` examples in order."""
  for number in range(math.ceil(size / batch_size)):
    yield _batch(size, batch_size, number), number * batch_size + np.arange(batch_size) < size


def _batch(size: int, batch_size: int, number: int) -> np.ndarray:
  # The last batch is filled up with copies of the last example that are not counted.
  return np.minimum(number * batch_size + np.arange(batch_size), size - 1).astype(np.int32)
