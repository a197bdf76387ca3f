"""Evaluation: every image exactly once, whatever the batch size and the number of devices."""

import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from ltjax import sharding
from ltjax.augment.images import normalize
from ltjax.step import make_eval_step


class Evaluator:
  """Counts predictions of a model on a test set that lives on the devices."""

  def __init__(self, model, data, num_classes: int, *, batch_size: int, mesh):
    self._data, self._size = data, len(data["labels"])
    self._batch_size = _shared(min(batch_size, self._size), mesh)
    self._split, self._replicated = sharding.split(mesh), sharding.replicated(mesh)
    self._zeros = np.zeros((num_classes, num_classes), np.int32)
    self._step = jax.jit(make_eval_step(model), donate_argnums=4, out_shardings=self._replicated)

  def __call__(self, state) -> np.ndarray:
    """int64 [c, c] confusion matrix of `state`: rows are true classes, columns predictions."""
    variables = dict(params=state.params, batch_stats=state.batch_stats)
    confusion = jax.device_put(self._zeros, self._replicated)
    for batch in _batches(self._size, self._batch_size):
      confusion = self._step(variables, self._data, *jax.device_put(batch, self._split), confusion)
    confusion = np.asarray(jax.device_get(confusion), np.int64)
    assert confusion.sum() == self._size, (confusion.sum(), self._size)
    return confusion


class Extractor:
  """What a trained model makes of images, in evaluation mode and without augmentation."""

  def __init__(self, model, variables: dict, *, mean, std, batch_size: int, mesh):
    self._batch_size, self._split = _shared(batch_size, mesh), sharding.split(mesh)

    def forward(variables, images):
      logits, features = model.apply(variables, normalize(images, jnp.float32(mean), jnp.float32(std)), train=False)
      return dict(features=features, logits=logits)

    self._forward = functools.partial(jax.jit(forward, out_shardings=sharding.replicated(mesh)), variables)

  def __call__(self, images: np.ndarray, *wanted: str) -> dict[str, np.ndarray]:
    """{"features": [n d], "logits": [n c]} of images uint8 [n h w c], or what of it is `wanted`, on the host."""
    parts = []
    for indices, valid in _batches(len(images), self._batch_size):
      # Whole batches, also of a small set: all sets then share one compiled function.
      found = self._forward(jax.device_put(images[indices], self._split))
      parts.append({key: jax.device_get(found[key])[valid] for key in wanted})
    return {key: np.concatenate([part[key] for part in parts]) for key in wanted}


def _shared(batch_size: int, mesh) -> int:
  """`batch_size`, rounded up to what the devices can share."""
  return math.ceil(batch_size / mesh.devices.size) * mesh.devices.size


def _batches(size: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """(indices int32 [b], valid bool [b]) of batches over `size` examples in order."""
  for start in range(0, size, batch_size):
    places = np.arange(start, start + batch_size)
    # The last batch is filled up with copies of the last example that are not counted.
    yield np.minimum(places, size - 1).astype(np.int32), places < size
