"""`config.posthoc`: what is done to a trained model without training, and how its hyper-parameters are chosen.

They are chosen on held-out training images, never on the test set.
"""

import difflib
import functools
import inspect
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ltjax import evaluate, metrics, posthoc
from ltjax.config import bind as build
from ltjax.data import sources
from ltjax.distributed import sharding
from ltjax.errors import ConfigError, nearest

# The names of config.posthoc, each with the function that has its hyper-parameters.
METHODS = dict(tau_normalize=posthoc.tau_normalize, nearest_class_mean=posthoc.nearest_class_mean,
               logit_adjustment=posthoc.adjust_logits)
_GIVEN = ("center",)  # an array, which no config can hold


class Block(NamedTuple):
  """A checked block of config.posthoc: a method, the stage whose model it changes, what it may be called with."""

  name: str
  stage: str
  candidates: tuple[dict[str, Any], ...]  # all hyper-parameters, the defaults too; one dict where nothing is chosen
  choices: tuple[str, ...]  # the hyper-parameters that are chosen among the candidates


def blocks(config) -> tuple[Block, ...]:
  """The blocks of config.posthoc; raises a `ConfigError` for the first that could not run."""
  if not isinstance(config.posthoc, tuple | list):
    raise ConfigError("posthoc: expected a tuple of dict(name=..., hyper-parameters), "
                      f"got {build.show(config.posthoc)}")
  return tuple(_block(config, block, f"posthoc[{place}]") for place, block in enumerate(config.posthoc))


def _block(config, block, where: str) -> Block:
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
  found = Block(values["name"], stage, tuple(defaults | call.constants for call in calls), tuple(lists))
  for candidate in found.candidates:
    build.named(where, _trace, found.name, candidate)
  if lists and config.dataset.name in build.public(sources) and not config.dataset.holdout:
    raise _nothing_held_out(f"{where}.{next(iter(lists))}")
  if found.name == "tau_normalize":
    _check_kernel(config, stage, where)
  return found


def check_held_out(config, dataset) -> None:
  """Raises where something is to be chosen but the data set holds nothing out, which of photographs its files say."""
  for place, block in enumerate(blocks(config)):
    if block.choices and dataset.held_out is None:
      raise _nothing_held_out(f"posthoc[{place}].{block.choices[0]}")


def _nothing_held_out(where: str) -> ConfigError:
  return ConfigError(f"{where}: candidates are chosen on held-out training images, but dataset.holdout is 0; "
                     "set --config.dataset.holdout=0.1, or give one value")


def _trace(name: str, candidate: dict) -> None:
  """Calls a method on shapes: what only the functions know, such as the range of a number."""
  array, labels = jax.ShapeDtypeStruct((2, 2), "float32"), jax.ShapeDtypeStruct((2,), "int32")

  def call(array, labels):
    return _logits(name, candidate, lambda split, key: array, array, labels, jnp.ones(2))

  jax.eval_shape(call, array, labels)


def _check_kernel(config, stage: str, where: str) -> None:
  """Raises unless the head's logits are features @ kernel + bias up to the lengths that the method changes."""
  model = build.model(config, None, stage)
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
  head = shapes["params"].get("head", {})
  if not {"kernel"} <= set(head) <= {"kernel", "bias"} or "head" in shapes.get("batch_stats", {}):
    raise ConfigError(f"{where}: tau_normalize needs a head with a kernel and at most a bias, but "
                      f"{(config[stage].head or config.head).name!r} has {', '.join(head) or 'nothing'}; "
                      f"use a Linear head, or name a stage that has one with stage=...")


def run(config, dataset, variables: Mapping[str, dict]) -> list[dict]:
  """What `results.json` holds of config.posthoc: every method's hyper-parameters, choice and test accuracies.

  Args:
    config: the whole config, checked.
    dataset: a `sources.Dataset`.
    variables: {"params", "batch_stats"} of every stage that a block names.
  """
  counts, mesh = dataset.class_counts, sharding.data_mesh()

  @functools.cache
  def extractor(stage):
    return evaluate.Extractor(build.model(config, counts, stage), variables[stage], mean=dataset.mean,
                              std=dataset.std, batch_size=config.eval_batch_size, mesh=mesh,
                              size=config.augment.get("size", 0))

  @functools.cache
  def outputs(stage, split, key):
    return extractor(stage)(getattr(dataset, split)[0], key)[key]

  def confusion(block, candidate, split):
    logits = _logits(
        block.name, candidate, lambda of, key: outputs(block.stage, split if of == "these" else of, key),
        # On the host: what follows the devices' part is small, and each process does it by itself.
        jax.device_get(variables[block.stage]["params"].get("head", {}).get("kernel")), dataset.train[1], counts)
    return metrics.confusion_matrix(getattr(dataset, split)[1], np.argmax(logits, axis=-1), len(counts))

  found = []
  for block in blocks(config):
    chosen, selection = block.candidates[0], None
    if block.choices:
      chosen, selection = _choose(block, functools.partial(confusion, block, split="held_out"))
    tested = confusion(block, chosen, "test")
    found.append(dict(name=block.name, stage=block.stage, hyper_parameters=chosen, selection=selection,
                      test=metrics.group_accuracy(tested, counts),
                      per_class=metrics.per_class_accuracy(tested).tolist()))
  return found


def _choose(block: Block, held_out_confusion) -> tuple[dict, dict]:
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
