"""Config blocks to checked callables: the only place where strings become functions.

A block is a dict with a `name` and hyper-parameters. The name is looked up among the public functions of one module and
the hyper-parameters are bound by the function's signature, so a misspelt name or argument fails here, with the list of
what exists, before any data are read.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ltjax import losses, models, schedules
from ltjax.data import samplers, sources
from ltjax.errors import ConfigError, nearest
from ltjax.models import heads
from ltjax.schedules import Clock

# Which of `losses` is what, by the submodule that defines it.
ADJUSTMENTS = (".adjustment", ".angular", ".margins")
LOSSES = (".cross_entropy", ".disentangling", ".sigmoid", ".smoothing")
WEIGHTS = (".weights",)
PRECISIONS = {"float32": jnp.float32, "bf16": jnp.bfloat16}
BATCH_NORM_MODES = ("train", "eval", "shift")


def public(module, families: tuple[str, ...] = ("",)) -> dict[str, Callable]:
  """The functions and classes that `module` exports, those defined in its submodules `families` if given."""
  found = {name: getattr(module, name) for name in module.__all__}
  return {name: value for name, value in found.items() if callable(value) and value.__module__.endswith(families)}


class Call(NamedTuple):
  """A function with its hyper-parameters: the constant ones bound, the scheduled ones kept for every step."""

  function: Callable
  constants: dict
  schedules: dict[str, Callable[[Clock], float]]

  @property
  def arguments(self) -> tuple[str, ...]:
    """The names of all parameters of the function."""
    return tuple(inspect.signature(self.function).parameters)

  def at(self, clock: Clock) -> dict[str, float]:
    """The values of the scheduled hyper-parameters at `clock`."""
    return {name: schedule(clock) for name, schedule in self.schedules.items()}


def bind(block: Mapping, choices: Mapping[str, Callable], where: str, *, given: tuple = (),
         may_change: bool = True) -> Call:
  """Looks `block["name"]` up in `choices` and checks its other entries against the function's keyword-only parameters.

  Args:
    block: {"name": ..., hyper-parameter: number, string, or a schedule block}.
    choices: what exists.
    where: the config path of the block, for messages.
    given: parameters that the caller supplies and a config must not.
    may_change: whether schedules are allowed as values.
  """
  block = block.to_dict() if isinstance(block, ConfigDict) else block
  if not isinstance(block, Mapping) or not isinstance(block.get("name"), str):
    raise ConfigError(f"{where}: expected dict(name=..., hyper-parameters), got {block!r}; names are {sorted(choices)}")
  name, values = block["name"], {key: value for key, value in block.items() if key != "name"}
  if name not in choices:
    raise ConfigError(f"{where}.name: there is no {name!r}{nearest(name, choices)}; "
                      f"there are {', '.join(sorted(choices))}")
  allowed = {key: parameter for key, parameter in _parameters(choices[name]).items() if key not in given}
  for key in values:
    if key not in allowed:
      raise ConfigError(f"{where}.{key}: {name} has no such argument{nearest(key, allowed)}; "
                        f"it takes {', '.join(allowed) or 'none'}")
  if missing := [key for key, p in allowed.items() if p.default is p.empty and key not in values]:
    raise ConfigError(f"{where}: {name} needs {', '.join(missing)}")
  call = Call(choices[name], {}, {})
  for key, value in values.items():
    if isinstance(value, Mapping):
      if not may_change:
        raise ConfigError(f"{where}.{key}: {name} takes a fixed value here, not a schedule")
      call.schedules[key] = schedule(value, f"{where}.{key}")
    else:
      _check_type(value, allowed[key], f"{where}.{key}")
      call.constants[key] = value
  return call


def _parameters(function: Callable) -> dict[str, inspect.Parameter]:
  """Keyword-only parameters of a function; the fields of a linen module."""
  if inspect.isclass(function):
    fields = inspect.signature(function).parameters.values()
    return {field.name: field for field in fields if field.name not in ("parent", "name")}
  return {p.name: p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}


def _positional(function: Callable) -> tuple[str, ...]:
  parameters = inspect.signature(function).parameters.values()
  return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)


def _check_type(value, parameter: inspect.Parameter, where: str) -> None:
  wanted = parameter.annotation if parameter.annotation in (bool, int, float, str, tuple) else type(parameter.default)
  number = isinstance(value, (int, float)) and not isinstance(value, bool)
  fits = {bool: isinstance(value, bool), int: number and value == int(value), float: number,
          str: isinstance(value, str), tuple: isinstance(value, (tuple, list))}
  if not fits.get(wanted, True):
    raise ConfigError(f"{where}: expected {wanted.__name__}, got {value!r} ({type(value).__name__})")


def schedule(block, where: str) -> Callable[[Clock], float]:
  """A schedule block, or a plain number, as a function of the clock."""
  if isinstance(block, (int, float)) and not isinstance(block, bool):
    return lambda clock: block
  call = bind(block, public(schedules), where, may_change=False)
  return lambda clock: call.function(clock, **call.constants)


def dataset(config) -> Callable[[], sources.Dataset]:
  """The config's data set, checked; call the result to read it."""
  call = bind(config.dataset, public(sources), "dataset", may_change=False)
  return lambda: call.function(**call.constants)


def model(config, num_classes: int) -> models.Classifier:
  """The network: backbone and head."""
  if config.precision not in PRECISIONS:
    raise ConfigError(f"precision: expected one of {sorted(PRECISIONS)}, got {config.precision!r}")
  backbones = {name: value for name, value in public(models).items() if name != "Classifier"}
  backbone = bind(config.backbone, backbones, "backbone", given=("dtype",), may_change=False)
  head = bind(config.head, public(heads), "head", given=("num_classes",), may_change=False)
  return models.Classifier(
      backbone=backbone.function(**backbone.constants, dtype=PRECISIONS[config.precision]),
      head=head.function(**head.constants, num_classes=num_classes))


def sampler(block, where: str, class_counts: np.ndarray) -> Callable[[Clock], np.ndarray] | None:
  """Clock -> class probabilities [c]; None for instance sampling, which is a permutation without replacement."""
  call = bind(block, public(samplers), where)
  if call.function is samplers.instance:
    return None
  return lambda clock: call.function(class_counts, **call.constants, **call.at(clock))


class Objective:
  """A stage's adjustment, loss and class weights as one function, and the values of their schedules at every step."""

  inputs = ("key", "noise", "mask", "features")  # supplied by the step, or for tests only: never by a config
  arrays = ("logits", "cosines", "labels", "class_counts")  # what the step has for arguments without a default

  def __init__(self, stage, where: str):
    self.adjust = (bind(stage.adjust, public(losses, ADJUSTMENTS), f"{where}.adjust", given=self.inputs)
                   if stage.adjust else None)
    self.loss = bind(stage.loss, public(losses, LOSSES), f"{where}.loss", given=self.inputs)
    self.weights = (bind(stage.class_weights, public(losses, WEIGHTS), f"{where}.class_weights")
                    if stage.class_weights else None)
    for part, call in dict(adjust=self.adjust, loss=self.loss).items():
      positional = _positional(call.function) if call else ()
      if unknown := [name for name in positional if name not in self.arrays]:
        raise ConfigError(f"{where}.{part}: {call.function.__name__} needs {', '.join(unknown)}, which the training "
                          "step does not have; call it from a loop of your own")
    self.lr = schedule(stage.lr, f"{where}.lr")

  def scalars(self, clock: Clock, class_counts: np.ndarray) -> dict:
    """Every scheduled value at `clock`, as the float32 arrays that enter the compiled step."""
    values = dict(lr=self.lr(clock), loss=self.loss.at(clock), adjust=self.adjust.at(clock) if self.adjust else {})
    if self.weights:
      values["class_weights"] = self.weights.function(class_counts, **self.weights.constants, **self.weights.at(clock))
    return {key: {k: np.float32(v) for k, v in value.items()} if isinstance(value, dict) else np.float32(value)
            for key, value in values.items()}

  def __call__(self, logits, labels, *, features, key, scalars, data):
    """The mean loss of a batch."""
    offered = dict(labels=labels, class_counts=data["class_counts"], features=features, key=key)
    if self.adjust:
      logits = _apply(self.adjust, logits, offered, scalars["adjust"])
    values = _apply(self.loss, logits, offered, scalars["loss"])
    if self.weights:
      return losses.weighted_mean(values, scalars["class_weights"][labels])
    return losses.mean(values)


def _apply(call: Call, logits, offered: Mapping, scheduled: Mapping):
  takes = {name: value for name, value in offered.items() if name in call.arguments}
  return call.function(logits, **takes, **call.constants, **scheduled)
