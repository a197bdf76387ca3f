"""Evaluation: every image exactly once, whatever the batch size and the number of devices.

First the trained model itself, then `config.posthoc`: what is done to it without training. Hyper-parameters are chosen
on held-out training images, never on the test set.
"""

import difflib
import functools
import inspect
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ltjax import build, metrics, posthoc, sharding
from ltjax.augment.images import normalize
from ltjax.data import resident
from ltjax.data.files import Files
from ltjax.data.pipeline import CentralCrops, Pipeline
from ltjax.errors import ConfigError, nearest
from ltjax.step import make_eval_step

# The names of config.posthoc, each with the function that has its hyper-parameters.
METHODS = dict(tau_normalize=posthoc.tau_normalize, nearest_class_mean=posthoc.nearest_class_mean,
               logit_adjustment=posthoc.adjust_logits)
_GIVEN = ("center",)  # an array, which no config can hold


class Evaluator:
  """Counts predictions of a model on a test set, which lives on the devices or comes from a `stream`."""

  def __init__(self, model, data, num_classes: int, *, batch_size: int, mesh, stream: Pipeline | None = None):
    self._data, self._size, self._stream = data, stream.size if stream else len(data["labels"]), stream
    self._batch_size, self._mesh = _shared(min(batch_size, self._size), mesh), mesh
    self._rows = sharding.local_rows(mesh, self._batch_size)
    self._zeros = np.zeros((num_classes, num_classes), np.int32)
    step = make_eval_step(model, resident.received if stream else resident.gather)
    self._step = jax.jit(step, donate_argnums=4, out_shardings=sharding.replicated(mesh))

  def __call__(self, state) -> np.ndarray:
    """int64 [c, c] confusion matrix of `state`: rows are true classes, columns predictions."""
    variables = dict(params=state.params, batch_stats=state.batch_stats)
    confusion = sharding.replicate(self._zeros, self._mesh)
    for number, (indices, valid) in enumerate(_batches(self._size, self._batch_size)):
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

  def __call__(self, images: np.ndarray | Files, *wanted: str) -> dict[str, np.ndarray]:
    """{"features": [n d], "logits": [n c]} of images uint8 [n h w c], or what of it is `wanted`, on the host."""
    parts, labels = [], np.zeros(len(images), np.int32)
    stream = None if isinstance(images, np.ndarray) else _in_order(images, labels, self._batch_size, self._mesh,
                                                                   self._size)
    for number, (indices, valid) in enumerate(_batches(len(images), self._batch_size)):
      # Whole batches, also of a small set: all sets then share one compiled function.
      batch = stream.batch(number)["images"] if stream else images[indices[self._rows]]
      found = self._forward(sharding.place(batch, self._mesh))
      parts.append({key: jax.device_get(found[key])[valid] for key in wanted})
    return {key: np.concatenate([part[key] for part in parts]) for key in wanted}


def stream(images: np.ndarray | Files, labels: np.ndarray, *, batch_size: int, mesh, size: int) -> Pipeline:
  """The batches of an `Evaluator` with the same `batch_size` over images that are not on the devices.

  `size` is the side of the squares that are cut from photographs.
  """
  return _in_order(images, labels, _shared(min(batch_size, len(labels)), mesh), mesh, size)


def _in_order(images, labels, batch_size: int, mesh, size: int) -> Pipeline:
  crop = None if isinstance(images, np.ndarray) else CentralCrops(size)
  return Pipeline(images, labels, lambda number: _batch(len(labels), batch_size, number),
                  math.ceil(len(labels) / batch_size), crop=crop, rows=sharding.local_rows(mesh, batch_size))


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


class Posthoc(NamedTuple):
  """A checked block of config.posthoc: a method, the stage whose model it changes, what it may be called with."""

  name: str
  stage: str
  candidates: tuple[dict[str, Any], ...]  # all hyper-parameters, the defaults too; one dict where nothing is chosen
  choices: tuple[str, ...]  # the hyper-parameters that are chosen among the candidates


def posthoc_blocks(config) -> tuple[Posthoc, ...]:
  """The blocks of config.posthoc; raises a `ConfigError` for the first that could not run."""
  if not isinstance(config.posthoc, tuple | list):
    raise ConfigError("posthoc: expected a tuple of dict(name=..., hyper-parameters), "
                      f"got {build.show(config.posthoc)}")
  return tuple(_posthoc_block(config, block, f"posthoc[{place}]") for place, block in enumerate(config.posthoc))


def _posthoc_block(config, block, where: str) -> Posthoc:
  block = block.to_dict() if isinstance(block, ConfigDict) else block
  if not isinstance(block, Mapping):
    build.bind(block, METHODS, where)  # raises
  values, stage = dict(block), config.stages[-1]
  if "stage" in values:
    stage = values.pop("stage")
    if stage not in config.stages:
      raise ConfigError(f"{where}.stage: there is no stage {stage!r}{nearest(str(stage), config.stages)}; "
                        f"there are {', '.join(config.stages)}")
  for key in difflib.get_close_matches("stage", map(str, values), n=1, cutoff=0.7):
    raise ConfigError(f"{where}.{key}: not a key here (did you mean 'stage'?)")
  lists = {key: value for key, value in values.items() if key != "name" and isinstance(value, tuple | list)}
  for key, value in lists.items():
    if not value:
      raise ConfigError(f"{where}.{key}: expected a value or a tuple of candidates, got none")
  calls = [build.bind(values | dict(zip(lists, combination, strict=True)), METHODS, where, given=_GIVEN,
                      may_change=False) for combination in itertools.product(*lists.values())]
  parameters = inspect.signature(calls[0].function).parameters.values()
  defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in _GIVEN}
  found = Posthoc(values["name"], stage, tuple(defaults | call.constants for call in calls), tuple(lists))
  for candidate in found.candidates:
    build.named(where, _trace, found.name, candidate)
  if lists and not config.dataset.get("holdout", 0):
    raise ConfigError(f"{where}.{next(iter(lists))}: candidates are chosen on held-out training images, but "
                      "dataset.holdout is 0; set --config.dataset.holdout=0.1, or give one value")
  if found.name == "tau_normalize":
    _check_kernel(config, stage, where)
  return found


def _trace(name: str, candidate: dict) -> None:
  """Calls a method on shapes: what only the functions know, such as the range of a number."""
  array, labels = jax.ShapeDtypeStruct((2, 2), "float32"), jax.ShapeDtypeStruct((2,), "int32")

  def call(array, labels):
    return _logits(name, candidate, lambda split, key: array, array, labels, jnp.ones(2))

  jax.eval_shape(call, array, labels)


def _check_kernel(config, stage: str, where: str) -> None:
  """Raises unless the head's logits are features @ kernel + bias up to the lengths that the method changes."""
  model = build.model(config, 2, stage)
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
  head = shapes["params"].get("head", {})
  if not {"kernel"} <= set(head) <= {"kernel", "bias"} or "head" in shapes.get("batch_stats", {}):
    raise ConfigError(f"{where}: tau_normalize needs a head with a kernel and at most a bias, but "
                      f"{(config[stage].head or config.head).name!r} has {', '.join(head) or 'nothing'}; "
                      f"use a Linear head, or name a stage that has one with stage=...")


def run_posthoc(config, dataset, variables: Mapping[str, dict]) -> list[dict]:
  """What `results.json` holds of config.posthoc: every method's hyper-parameters, choice and test accuracies.

  Args:
    config: the whole config, checked.
    dataset: a `sources.Dataset`.
    variables: {"params", "batch_stats"} of every stage that a block names.
  """
  counts, mesh = dataset.class_counts, sharding.data_mesh()

  @functools.cache
  def extractor(stage):
    return Extractor(build.model(config, len(counts), stage), variables[stage], mean=dataset.mean, std=dataset.std,
                     batch_size=config.eval_batch_size, mesh=mesh, size=config.augment.get("size", 0))

  @functools.cache
  def outputs(stage, split, key):
    return extractor(stage)(getattr(dataset, split)[0], key)[key]

  def confusion(block, candidate, split):
    logits = _logits(
        block.name, candidate, lambda of, key: outputs(block.stage, split if of == "these" else of, key),
        variables[block.stage]["params"].get("head", {}).get("kernel"), dataset.train[1], counts)
    return metrics.confusion_matrix(getattr(dataset, split)[1], np.argmax(logits, axis=-1), len(counts))

  found = []
  for block in posthoc_blocks(config):
    chosen, selection = block.candidates[0], None
    if block.choices:
      chosen, selection = _choose(block, functools.partial(confusion, block, split="held_out"))
    tested = confusion(block, chosen, "test")
    found.append(dict(name=block.name, stage=block.stage, hyper_parameters=chosen, selection=selection,
                      test=metrics.group_accuracy(tested, counts),
                      per_class=metrics.per_class_accuracy(tested).tolist()))
  return found


def _choose(block: Posthoc, held_out_confusion) -> tuple[dict, dict]:
  """(best candidate, record of the choice): the highest mean class accuracy, the first where several have it."""
  confusions = [held_out_confusion(candidate) for candidate in block.candidates]
  tried = confusions[0].sum(axis=1)
  scores = [float(metrics.per_class_accuracy(confusion)[tried > 0].mean()) for confusion in confusions]
  candidates = [{key: candidate[key] for key in block.choices} | dict(balanced_accuracy=score)
                for candidate, score in zip(block.candidates, scores, strict=True)]
  return block.candidates[int(np.argmax(scores))], dict(
      chosen_on="held-out training images", images=int(tried.sum()), classes=int((tried > 0).sum()),
      candidates=candidates)


def _logits(name: str, hyper_parameters: dict, outputs, kernel, train_labels, class_counts):
  """The logits [n c] of method `name`.

  `outputs("these", key)` are the features or logits of the images to predict, `outputs("train", key)` those of the
  training images; the other arguments are what else a trained model knows.
  """
  if name == "tau_normalize":
    kernel = posthoc.tau_normalize(kernel, **hyper_parameters)
    return jnp.matmul(outputs("these", "features"), kernel, precision=jax.lax.Precision.HIGHEST)
  if name == "nearest_class_mean":
    means = posthoc.nearest_class_mean(outputs("train", "features"), train_labels, len(class_counts),
                                       **hyper_parameters)
    return posthoc.nearest_mean_logits(outputs("these", "features"), means, **hyper_parameters)
  return posthoc.adjust_logits(outputs("these", "logits"), class_counts, **hyper_parameters)
