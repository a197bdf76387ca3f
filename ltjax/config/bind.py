"""Config blocks to checked callables: the only place where strings become functions.

A block is a dict with a `name` and hyper-parameters. The name is looked up among the public functions of one module and
the hyper-parameters are bound by the function's signature, so a misspelt name or argument fails here, with the list of
what exists, before any data are read.
"""

import difflib
import inspect
import math
import pathlib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ltjax import losses, models, schedules
from ltjax.augment.features import Plan, plan
from ltjax.data import photos, samplers, sources
from ltjax.errors import ConfigError, DataError, LtjaxError, nearest
from ltjax.models import afa, heads
from ltjax.schedules import Clock

# Which of `losses` is what, by the submodule that defines it.
ADJUSTMENTS = (".adjustment", ".angular", ".margins")
LOSSES = (".cross_entropy", ".disentangling", ".sigmoid", ".smoothing")
WEIGHTS = (".weights",)
REDUCTIONS = (".reduce",)
PRECISIONS = {"float32": jnp.float32, "bf16": jnp.bfloat16}
BRANCHED = (models.ResNetBBN,)  # the backbones that take a batch for each of two branches
BATCH_NORM_MODES = ("train", "eval", "shift")
# Keys of config.dataset that every source may have beside its own, and their values; the first is the default.
READING = dict(pipeline=("resident", "tf_data"), on_bad_image=("error", "substitute"))
# Where a hyper-parameter makes sense, as a number and at every value of its schedule. One name means one thing in all
# functions; a name that is not here may be any finite number.
LIMITS = dict(
    alpha="[0, inf)", at="[0, inf)", base="[0, inf)", beta="[0, 1)", crops="[1, inf)", factors="[0, inf)",
    gamma="[0, inf)", holdout="[0, 1)", imbalance="[1, inf)", label_smoothing="[0, 1]", lr="[0, inf)",
    margin="[0, inf)", max_margin="[0, inf)", momentum="[0, 1)", noise_scale="[0, inf)", num_heads="[1, inf)",
    num_prototypes="[1, inf)", samples_per_class="[1, inf)", scale="(0, inf)", share="[0, 1]", shorten="[0, inf)",
    subset_seed="[0, 4294967295]", tau="[0, inf)", threshold="[0, inf)", val_fraction="(0, 1)",
    warmup="[0, inf)", weight="[0, inf)")


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


def bind(block: Mapping, choices: Mapping[str, Callable], where: str, *, given: tuple = (), may_change: bool = True,
         beside: tuple = ()) -> Call:
  """Looks `block["name"]` up in `choices` and checks its other entries against the function's keyword-only parameters.

  Args:
    block: {"name": ..., hyper-parameter: number, string, or a schedule block}.
    choices: what exists.
    where: the config path of the block, for messages.
    given: parameters that the caller supplies and a config must not.
    may_change: whether schedules are allowed as values.
    beside: keys of the config's block that are not the function's and that the caller has taken out.
  """
  block = block.to_dict() if isinstance(block, ConfigDict) else block
  if not isinstance(block, Mapping) or not isinstance(block.get("name"), str):
    misspelt = difflib.get_close_matches("name", block, n=1, cutoff=0.7) if isinstance(block, Mapping) else []
    if misspelt and misspelt != ["name"]:
      raise ConfigError(f"{where}.{misspelt[0]}: not a key here (did you mean 'name'?)")
    raise ConfigError(f"{where}: expected dict(name=..., hyper-parameters), got {show(block)}; "
                      f"names are {', '.join(sorted(choices))}")
  name, values = block["name"], {key: value for key, value in block.items() if key != "name"}
  if name not in choices:
    raise ConfigError(f"{where}.name: there is no {name!r}{nearest(name, choices)}; "
                      f"there are {', '.join(sorted(choices))}")
  allowed = {key: parameter for key, parameter in _parameters(choices[name]).items() if key not in given}
  for key in values:
    if key not in allowed:
      raise ConfigError(f"{where}.{key}: {name} has no such argument"
                        f"{nearest(key, (*allowed, *beside))}; it takes {', '.join((*allowed, *beside)) or 'none'}")
  if missing := [key for key, p in allowed.items() if p.default is p.empty and key not in values]:
    raise ConfigError(f"{where}: {name} needs {', '.join(missing)}")
  call = Call(choices[name], {}, {})
  for key, value in values.items():
    if isinstance(value, Mapping):
      if not may_change or _kind(allowed[key]) is not float:
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


def _members(annotation) -> tuple:
  """The types that a union joins; any other annotation as it is."""
  is_union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
  return typing.get_args(annotation) if is_union else (annotation,)


def _kind(parameter: inspect.Parameter) -> type:
  """The type that a config gives a parameter, from its annotation or else its default; `object` where neither tells."""
  members = [typing.get_origin(member) or member for member in _members(parameter.annotation)]
  members.append(type(parameter.default))
  known = {bool: bool, str: str, tuple: tuple, list: tuple, Sequence: tuple, float: float, int: int}
  return next((kind for annotated, kind in known.items() if annotated in members), object)


def _check_type(value, parameter: inspect.Parameter, where: str) -> None:
  kind, limits = _kind(parameter), LIMITS.get(parameter.name, "(-inf, inf)")
  if value is None and parameter.default is None:
    return
  if kind in (int, float):
    check_number(value, where, kind, limits)
  elif kind is tuple and isinstance(value, tuple | list):
    of = {entry for member in _members(parameter.annotation) for entry in typing.get_args(member)}
    for place, entry in enumerate(value):
      if str in of:
        check_kind(entry, str, f"{where}[{place}]")
      else:
        check_number(entry, f"{where}[{place}]", int if int in of else float, limits)
  elif kind is not object:
    check_kind(value, kind, where)


def show(value) -> str:
  """A config value as one line for a message; a ConfigDict would print itself as many."""
  text = repr(value.to_dict() if isinstance(value, ConfigDict) else value)
  return text if len(text) <= 120 else f"{text[:120]} ..."


def check_kind(value, kind: type, where: str) -> None:
  """Raises unless `value` is of type `kind`."""
  if not isinstance(value, kind):
    raise ConfigError(f"{where}: expected {kind.__name__}, got {show(value)} ({type(value).__name__})")


def check_number(value, where: str, kind: type = float, limits: str = "(-inf, inf)") -> None:
  """Raises unless `value` is a finite number (an integer where `kind` is int) inside `limits`, such as "[0, 1)"."""
  low, high = map(float, limits[1:-1].split(","))
  is_number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
  inside = is_number and math.isfinite(value) and (
      low < value < high or (value == low and limits[0] == "[") or (value == high and limits[-1] == "]"))
  if not inside:
    wanted = "an integer" if kind is int else "a number"
    extent = f" in {limits}" if math.isfinite(high) else (
        f" of at least {low:g}" if limits[0] == "[" else f" above {low:g}" if math.isfinite(low) else "")
    raise ConfigError(f"{where}: expected {wanted}{extent}, got {show(value)}")


def named(where: str, function: Callable, *args, **kwargs):
  """function(*args, **kwargs), with the config path `where` in front of what it finds wrong."""
  try:
    return function(*args, **kwargs)
  except LtjaxError as error:
    raise ConfigError(f"{where}: {error}") from error


def schedule(block, where: str) -> Callable[[Clock], float]:
  """A schedule block, or a plain number, as a function of the clock."""
  choices = public(schedules)
  if isinstance(block, int | float):
    check_number(block, where, float, LIMITS.get(where.rsplit(".", 1)[-1], "(-inf, inf)"))
    return lambda clock: block
  if not isinstance(block, Mapping | ConfigDict):
    raise ConfigError(f"{where}: expected a number or a schedule, dict(name=...), got {show(block)}; "
                      f"schedules are {', '.join(sorted(choices))}")
  call = bind(block, choices, where, may_change=False)
  lists = {key: value for key, value in call.constants.items() if isinstance(value, tuple | list)}
  if len({len(value) for value in lists.values()}) > 1:
    raise ConfigError(f"{where}: {' and '.join(lists)} belong together, entry by entry, but have "
                      f"{' and '.join(str(len(value)) for value in lists.values())} entries")
  if any(later <= earlier for earlier, later in zip(lists.get("at", ()), lists.get("at", ())[1:], strict=False)):
    raise ConfigError(f"{where}.at: expected epochs that rise, got {lists['at']!r}")
  return lambda clock: call.function(clock, **call.constants)


def dataset(config) -> Callable[..., sources.Dataset]:
  """The config's data set, checked; call the result to read it, with a folder to keep listings in or without.

  How its images then come to the devices (`READING`) is not the source's to know.
  """
  block = config.dataset
  if isinstance(block, Mapping | ConfigDict):
    block = {key: value for key, value in block.items() if key not in READING}
  call = bind(block, public(sources) | public(photos), "dataset", given=("cache",), may_change=False,
              beside=tuple(READING))

  def read(cache: pathlib.Path | None = None) -> sources.Dataset:
    given = dict(cache=cache) if "cache" in call.arguments else {}
    try:
      return call.function(**call.constants, **given)
    except OSError as error:
      raise DataError(f"dataset: {error.filename or call.constants} cannot be read "
                      f"({error.strerror or error})") from error

  return read


def backbone(config) -> Call:
  """The config's backbone, checked but not yet made; with what its `insert` names, made."""
  backbones = {name: value for name, value in public(models).items() if name != "Classifier"}
  block = config.backbone.to_dict() if isinstance(config.backbone, ConfigDict) else config.backbone
  insert = block.get("insert") if isinstance(block, Mapping) else None
  if insert is None:
    return bind(block, backbones, "backbone", given=("dtype",), may_change=False)
  call = bind({key: value for key, value in block.items() if key != "insert"}, backbones, "backbone",
              given=("dtype",), may_change=False)
  if "insert" not in call.arguments:
    takers = sorted(name for name, value in backbones.items() if "insert" in _parameters(value))
    raise ConfigError(f"backbone.insert: {block['name']} has no place for a module; {' and '.join(takers)} have")
  inserts = {name: value for name, value in public(afa).items() if inspect.isclass(value)}
  module = bind(insert, inserts, "backbone.insert", may_change=False)
  call.constants["insert"] = named("backbone.insert", module.function, **module.constants)
  return call


def head(config, stage: str) -> tuple[Call, str]:
  """The head of `stage`, its own or else the config's, checked but not yet made; and its place in the config."""
  block, where = (config.head, "head") if config[stage].head is None else (config[stage].head, f"{stage}.head")
  given = ("num_classes", "class_counts")
  return bind(block, public(heads), where, given=given, may_change=False), where


def model(config, class_counts: Sequence[int] | np.ndarray | None, stage: str) -> models.Classifier:
  """The network of `stage`: backbone and head; without class counts for two classes, to see its parameters."""
  if not isinstance(config.precision, str) or config.precision not in PRECISIONS:
    raise ConfigError(f"precision: expected one of {sorted(PRECISIONS)}, got {show(config.precision)}")
  images, (classes, where) = backbone(config), head(config, stage)
  given = dict(num_classes=2 if class_counts is None else len(class_counts))
  if "class_counts" in classes.arguments:
    given["class_counts"] = None if class_counts is None else tuple(map(int, class_counts))
  return models.Classifier(
      backbone=named("backbone", images.function, **images.constants, dtype=PRECISIONS[config.precision]),
      head=named(where, classes.function, **classes.constants, **given))


def sampler(block, where: str, class_counts: np.ndarray) -> samplers.Cycle | Callable[[Clock], np.ndarray] | None:
  """What `Order` draws from: Clock -> class probabilities [c], a cycle over the classes, or None for a permutation.

  Instance sampling is a permutation, so it is without replacement.
  """
  call = bind(block, public(samplers), where)
  if call.function is samplers.instance:
    return None
  if call.function is samplers.class_aware:
    return named(where, call.function, class_counts, **call.constants)
  return lambda clock: call.function(class_counts, **call.constants, **call.at(clock))


class SecondBatch(NamedTuple):
  """A stage's `branches`, checked: what the second batch is drawn by, and the share of the first."""

  sampler: Mapping
  share: Callable[[Clock], float]


def branches(block, where: str) -> SecondBatch | None:
  """The `branches` block of a stage; None where it has none."""
  if block is None:
    return None
  block = _block(block, where, SecondBatch._fields)
  bind(block["sampler"], public(samplers), f"{where}.sampler")
  return SecondBatch(block["sampler"], schedule(block["share"], f"{where}.share"))


class Generation(NamedTuple):
  """A stage's `generation`, checked: what is generated from a batch, and how much the loss over all rows counts."""

  gamma: float
  alpha: float
  weight: Callable[[Clock], float]


def generation(block, where: str) -> Generation | None:
  """The `generation` block of a stage; None where it has none."""
  if block is None:
    return None
  values = _block(block, where, Generation._fields)
  check_number(values["gamma"], f"{where}.gamma", float, "(0, inf)")
  check_number(values["alpha"], f"{where}.alpha", float, LIMITS["alpha"])
  return Generation(values["gamma"], values["alpha"], schedule(values["weight"], f"{where}.weight"))


def _block(block, where: str, keys: tuple[str, ...]) -> Mapping:
  """`block`, which has exactly `keys`."""
  if not isinstance(block, Mapping | ConfigDict) or not len(block):
    raise ConfigError(f"{where}: expected dict({', '.join(f'{key}=...' for key in keys)}), got {show(block)}")
  for key in block:
    if key not in keys:
      raise ConfigError(f"{where}.{key}: not a key here{nearest(key, keys)}; there are {', '.join(keys)}")
  for key in keys:
    if key not in block:
      raise ConfigError(f"{where}.{key}: missing from the config")
  return block


class Objective:
  """A stage's adjustment, loss and class weights as one function, and the values of their schedules at every step."""

  inputs = ("key", "noise", "mask", "features")  # supplied by the step, or for tests only: never by a config

  def __init__(self, stage, where: str):
    self.adjust = None
    if stage.adjust is not None:
      self.adjust = bind(stage.adjust, public(losses, ADJUSTMENTS), f"{where}.adjust", given=self.inputs)
    self.loss = bind(stage.loss, public(losses, LOSSES), f"{where}.loss", given=self.inputs)
    self.weights = None
    if stage.class_weights is not None:
      self.weights = bind(stage.class_weights, public(losses, WEIGHTS), f"{where}.class_weights")
    self.reduce = stage.reduce
    self.lr = schedule(stage.lr, f"{where}.lr")
    self.branches = branches(stage.branches, f"{where}.branches")
    self.generation = generation(stage.generation, f"{where}.generation")
    self._weights = None

  def plan(self, labels, key, num_classes: int) -> Plan:
    """What is generated from a batch with `labels`, in a stage with `generation`."""
    return plan(labels, key=key, num_classes=num_classes, gamma=self.generation.gamma,
                alpha=self.generation.alpha)

  def generates(self, clock: Clock) -> bool:
    """Whether features are generated at `clock`."""
    return self.generation is not None and self.generation.weight(clock) > 0

  def scalars(self, clock: Clock, class_counts: np.ndarray) -> dict:
    """Every scheduled value at `clock`, as the float32 arrays that enter the compiled step.

    `generation` is there only where features are generated, so that there is a compiled step without.
    """
    values = dict(lr=self.lr(clock), loss=self.loss.at(clock), adjust=self.adjust.at(clock) if self.adjust else {})
    if self.branches:
      values["share"] = self.branches.share(clock)
    if self.generates(clock):
      values["generation"] = self.generation.weight(clock)
    if self.weights:
      values["class_weights"] = self._class_weights(class_counts, self.weights.at(clock))
    return {key: {k: np.float32(v) for k, v in value.items()} if isinstance(value, dict) else np.float32(value)
            for key, value in values.items()}

  def _class_weights(self, class_counts: np.ndarray, scheduled: dict) -> np.ndarray:
    """The weights [c], computed on the host once for each value of their schedules."""
    if self._weights is None or self._weights[0] != scheduled:
      with jax.transfer_guard("allow"):
        weights = self.weights.function(class_counts, **self.weights.constants, **scheduled)
        self._weights = scheduled, np.asarray(weights)
    return self._weights[1]

  def __call__(self, logits, labels, *, features, key, scalars, class_counts, seen_counts, valid=None):
    """The mean loss of a batch, or of its rows that are `valid`."""
    if valid is not None:  # whatever is in the other rows, a NaN too, stays there
      logits, features = (jnp.where(valid[:, None], rows, 1) for rows in (logits, features))
    offered = dict(labels=labels, class_counts=class_counts, seen_counts=seen_counts, features=features, key=key)
    if self.adjust:
      logits = _apply(self.adjust, logits, offered, scalars["adjust"])
    values = _apply(self.loss, logits, offered, scalars["loss"])
    weights = scalars["class_weights"][labels] if self.weights else jnp.ones_like(values)
    counted = jnp.ones_like(values) if valid is None else valid.astype(values.dtype)
    if self.reduce == "weighted_mean":
      return losses.weighted_mean(values, weights * counted)
    return losses.weighted_mean(weights * values, counted)


def _apply(call: Call, logits, offered: Mapping, scheduled: Mapping):
  takes = {name: value for name, value in offered.items() if name in call.arguments}
  return call.function(logits, **takes, **call.constants, **scheduled)
