"""Evaluation: every test image exactly once, whatever the batch size and the number of devices."""

import math

import jax
import numpy as np

from ltjax import sharding
from ltjax.step import make_eval_step


class Evaluator:
  """Counts predictions of a model on a test set that lives on the devices."""

  def __init__(self, model, data, num_classes: int, *, batch_size: int, mesh):
    self._data, self._size = data, len(data["labels"])
    devices = mesh.devices.size
    self._batch_size = math.ceil(min(batch_size, self._size) / devices) * devices
    self._split, self._replicated = sharding.split(mesh), sharding.replicated(mesh)
    self._zeros = np.zeros((num_classes, num_classes), np.int32)
    self._step = jax.jit(make_eval_step(model), donate_argnums=4, out_shardings=self._replicated)

  def __call__(self, state) -> np.ndarray:
    """int64 [c, c] confusion matrix of `state`: rows are true classes, columns predictions."""
    variables = dict(params=state.params, batch_stats=state.batch_stats)
    confusion = jax.device_put(self._zeros, self._replicated)
    for start in range(0, self._size, self._batch_size):
      places = np.arange(start, start + self._batch_size)
      # The last batch is filled up with copies of the last image that are not counted.
      indices, valid = np.minimum(places, self._size - 1).astype(np.int32), places < self._size
      confusion = self._step(variables, self._data, *jax.device_put((indices, valid), self._split), confusion)
    confusion = np.asarray(jax.device_get(confusion), np.int64)
    assert confusion.sum() == self._size, (confusion.sum(), self._size)
    return confusion
