"""Parses a config: binds every block to the function that it names. `parse` needs no data and no device."""

import inspect
import itertools
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ltjax import augment, losses, models, optim, posthoc, recipes
from ltjax.augment import batches
from ltjax.config import bind as b
from ltjax.config import outside
from ltjax.config.bind import Call
from ltjax.config.keys import check_literals, stage_names
from ltjax.data import decode, features, photos, samplers, sources
from ltjax.errors import ConfigError, DataError, nearest
from ltjax.losses.objective import OFFERED, Objective
from ltjax.models import head_init, heads, tuning
from ltjax.models.import_names import NORMALIZATIONS
from ltjax.schedules import Clock

STAGE_KEYS = tuple(inspect.signature(recipes.stage).parameters)
PRECISIONS = {"float32": jnp.float32, "bf16": jnp.bfloat16}
BATCH_NORM_MODES = ("train", "eval", "shift")
# {key of config.dataset that every source may have besides its own: its values, the default first}
READING = dict(pipeline=("resident", "tf_data"), on_bad_image=("error", "substitute"))
# {key of an optimizer block besides the optimiser's own: (type, range)}
AROUND = dict(clip_norm=(float, "[0, inf)"), accumulate=(int, "[1, inf)"), ema=(float, "[0, 1)"))
SETTINGS = dict(seed=(int, "[0, 4294967295]"), steps_per_call=(int, "[0, inf)"), eval_every_epochs=(int, "[1, inf)"),
                checkpoint_every_epochs=(int, "[1, inf)"), keep_checkpoints=(int, "[1, inf)"),
                log_every_steps=(int, "[1, inf)"), eval_batch_size=(int, "[1, inf)"), skip_limit=(int, "[0, inf)"))
ON_NONFINITE = ("stop", "skip")
CACHE_FEATURES = ("auto", "never")
# How images are prepared; "" is the default.
IMAGES = dict(normalization=("", "dataset", *NORMALIZATIONS), interpolation=("", "bilinear", "bicubic"),
              test_crops=("", "center", "five"))
POSTHOC = dict(tau_normalize=posthoc.tau_normalize, nearest_class_mean=posthoc.nearest_class_mean,
               logit_adjustment=posthoc.adjust_logits)


class StageSpec(NamedTuple):
  """A stage's blocks, bound."""

  name: str
  epochs: int
  batch_size: int
  lr: Callable[[Clock], float]
  objective: Objective
  class_weights: Call | None
  samplers: tuple[Call, ...]  # of the stage, then of a transform that joins batches
  augment: tuple[Call, ...]
  transforms: tuple[Call, ...]
  optimizer: Call
  around: dict  # clip_norm, accumulate, ema, no_decay
  backbone: Call
  head: Call
  head_where: str
  dtype: Any
  train: tuple[str, ...]
  lr_factors: tuple
  reset: tuple[str, ...]
  batch_norm: str | tuple[str, ...]
  rates: dict[float, Callable[[Clock], float]]  # {base: candidate for `lr`}; the first is there until one is chosen
  head_init: Call | None

  @property
  def join(self) -> Call | None:
    """The transform that joins several batches, if any."""
    return next((call for call in self.transforms if hasattr(call.function, "draws")), None)

  @property
  def draws(self) -> tuple[int, ...]:
    """For each batch of a step, the sampler that draws it."""
    return self.join.function.draws if self.join else (0,)

  @property
  def draws_held_out(self) -> bool:
    """Whether the second sampler draws from the images that are held out."""
    return bool(self.join) and getattr(self.join.function, "draws_held_out", False)

  def model(self, class_counts: Sequence[int] | np.ndarray | None) -> models.Classifier:
    """The network; without class counts for two classes, as a check of the parameters needs no more."""
    given = dict(num_classes=2 if class_counts is None else len(class_counts))
    if "class_counts" in self.head.arguments:
      given["class_counts"] = None if class_counts is None else tuple(map(int, class_counts))
    return models.Classifier(backbone=_backbone(self.backbone, self.dtype, given["num_classes"]),
                             head=b.at_path(self.head_where, self.head, **given))

  @property
  def size(self) -> int:
    """The side of all images after the augmentation; 0 if it does not resize them."""
    return next((call.constants["size"] for call in self.augment if hasattr(call.function, "boxes")), 0)


class PosthocSpec(NamedTuple):
  """A method of config.posthoc: the stage whose model it changes, and the hyper-parameters it chooses among."""

  name: str
  stage: str
  candidates: tuple[dict[str, Any], ...]  # all hyper-parameters; one dict where nothing is chosen
  choices: tuple[str, ...]  # the hyper-parameters in which the candidates differ


class Settings(NamedTuple):
  """The numbers of a run that belong to no stage."""

  seed: int
  steps_per_call: int
  eval_every_epochs: int
  checkpoint_every_epochs: int
  keep_checkpoints: int
  log_every_steps: int
  eval_batch_size: int
  skip_limit: int
  on_nonfinite: str
  cache_features: str


class RunSpec(NamedTuple):
  """A checked config."""

  config: ConfigDict  # as it is written to config.json
  settings: Settings
  dataset: Call
  streamed: bool  # whether batches come from tf.data
  on_bad_image: str
  stages: tuple[StageSpec, ...]
  posthoc: tuple[PosthocSpec, ...]
  pretrained: str
  reset_head: bool
  normalization: str  # "" for that of the pretrained weights or the data set
  interpolation: str
  test_crops: str

  def read(self, cache: pathlib.Path | None = None, log: pathlib.Path | None = None) -> tuple[
      sources.Dataset, decode.BadImages]:
    """The data set, and the log of its bad images.

    Args:
      cache: a folder for listings.
      log: a file for the bad images, so that a resumed run remembers them.
    """
    given = dict(cache=cache) if "cache" in self.dataset.arguments else {}
    try:
      dataset = self.dataset(**given)
    except OSError as error:
      raise DataError(f"dataset: {error.filename or self.dataset.constants} cannot be read "
                      f"({error.strerror or error})") from error
    return decode.opened(dataset, self.on_bad_image, log)

  @property
  def own_data(self) -> bool:
    """Whether the images are the user's own, and not a published data set."""
    return getattr(self.dataset.function, "own_data", True)

  def stage(self, name: str) -> StageSpec:
    """The stage called `name`."""
    return next(stage for stage in self.stages if stage.name == name)

  @property
  def parameters(self) -> dict[str, inspect.Parameter]:
    """{"representation.adjust.scale": the parameter behind the key, ...} of every named block."""
    calls = dict(dataset=self.dataset)
    for each in self.stages:
      own = dict(loss=each.objective.loss, adjust=each.objective.adjust, class_weights=each.class_weights,
                 sampler=each.samplers[0], optimizer=each.optimizer)
      calls |= {f"{each.name}.{key}": call for key, call in own.items() if call}
      calls |= {each.head_where: each.head, "backbone": each.backbone}
    return {f"{where}.{key}": parameter for where, call in calls.items()
            for key, parameter in b.signature(call.function).items()}

  @property
  def defaults(self) -> dict[str, Any]:
    """{"dataset.background": "white", ...}: what a key of a named block means where the block leaves it out."""
    found = {key: parameter.default for key, parameter in self.parameters.items()
             if parameter.default is not parameter.empty}
    return found | {"dataset.on_bad_image": READING["on_bad_image"][0], "dataset.pipeline": "tf_data" if (
        self.dataset.name in photos.__all__) else READING["pipeline"][0]}


def parse(config: ConfigDict) -> RunSpec:
  """Binds every block; raises a `ConfigError` for the first with an unknown name or a value out of range."""
  if not isinstance(config, ConfigDict):
    raise ConfigError(f"the config is a {type(config).__name__}, expected a ConfigDict as ltjax.recipes makes it")
  check_literals(config)
  names = stage_names(config)
  for key, (kind, limits) in SETTINGS.items():
    b.check_number(config[key], key, kind, limits)
  b.check_choice(config.on_nonfinite, ON_NONFINITE, "on_nonfinite")
  b.check_choice(config.cache_features, CACHE_FEATURES, "cache_features")
  b.check_kind(config.pretrained, str, "pretrained")
  b.check_kind(config.reset_head, bool, "reset_head")
  _check_preset(config.get("preset"))
  b.check_choice(config.precision, tuple(PRECISIONS), "precision")
  for key, choices in IMAGES.items():
    b.check_choice(config[key], choices, key)
  source, reading = dataset(config.dataset)
  stages = tuple(_stage(config, name) for name in names)
  if not isinstance(config.posthoc, tuple | list):
    raise ConfigError(f"posthoc: expected a tuple of dict(name=..., hyper-parameters), got {b.show(config.posthoc)}")
  blocks = tuple(_posthoc(names, block, f"posthoc[{index}]") for index, block in enumerate(config.posthoc))
  return RunSpec(config, Settings(*(config[key] for key in Settings._fields)), source,
                 reading["pipeline"] == "tf_data", reading["on_bad_image"], stages, blocks,
                 config.pretrained, config.reset_head, *(config[key] for key in IMAGES))


def _check_preset(preset) -> None:
  """Raises unless this is None, or what `recipes.arguments` makes of an argument `preset`."""
  if preset is not None and (not isinstance(preset, ConfigDict) or set(preset) != {"name", "changed"}):
    raise ConfigError(f"preset: expected dict(name=..., changed=(...)), which only records what ran, got "
                      f"{b.show(preset)}; choose a preset behind the colon, --config=FILE:preset=NAME")


# -- blocks -----------------------------------------------------------------------------------------------------------


def dataset(block) -> tuple[Call, dict]:
  """(the bound source, {key of `READING`: its value})."""
  block = b.plain(block)
  reading = {}
  if isinstance(block, Mapping):
    files = block.get("name") in photos.__all__  # they are too many to be resident
    for key, choices in READING.items():
      reading[key] = block.get(key, "tf_data" if files and key == "pipeline" else choices[0])
      b.check_choice(reading[key], choices, f"dataset.{key}")
    block = {key: value for key, value in block.items() if key not in READING}
  choices = {name: part for family in (sources, photos, features) for name, part in b.public(family).items()}
  return b.bind(block, choices, "dataset", given=("cache",), may_change=False, beside=tuple(READING)), reading


def _objective(block, where: str) -> tuple[Objective, Call | None]:
  adjust = None
  if block.adjust is not None:
    adjust = b.bind(block.adjust, b.public(losses, outside.returns("b c")), f"{where}.adjust", given=OFFERED,
                    check=outside.lacks("logits|cosines"))
  loss = b.bind(block.loss, b.public(losses, outside.returns("b")), f"{where}.loss", given=OFFERED,
                check=outside.lacks("logits|cosines", "labels"))
  weights = None if block.class_weights is None else b.bind(
      block.class_weights, b.public(losses, outside.returns("c")), f"{where}.class_weights", given=("class_counts",),
      check=outside.lacks("class_counts"))
  b.check_choice(block.reduce, tuple(b.public(losses, outside.returns(""))), f"{where}.reduce")
  return Objective(loss, adjust, weights is not None, block.reduce), weights


def _transforms(blocks, where: str) -> tuple[tuple[Call, ...], list]:
  """(bound transforms, [(sampler block, its path)] of further batches)."""
  calls, further, choices = [], [], b.public(batches)
  for index, block in enumerate(_list(blocks, where)):
    at = f"{where}[{index}]"
    block = b.named_block(block, at, tuple(choices))
    part = b.lookup(block["name"], choices, f"{at}.name", outside.lacks("batch|batches", "key"))
    if hasattr(part, "draws"):  # it joins several batches
      if "sampler" not in block:
        others = [key for key in block if key != "name" and key not in b.signature(part)]
        misspelt = next((key for key in others if nearest(key, ["sampler"])), None)
        raise ConfigError(f"{at}.{misspelt}: {block['name']} has no such argument (did you mean 'sampler'?)"
                          if misspelt else
                          f"{at}: {block['name']} needs sampler=dict(name=...), which draws its second batch")
      if index:
        raise ConfigError(f"{at}: {block['name']} joins batches and so must be the first transform")
      further.append((block.pop("sampler"), f"{at}.sampler"))
    calls.append(b.bind(block, choices, at, given=("batch", "batches", "key", "num_classes"),
                        beside=("sampler",) if further else ()))
  return tuple(calls), further


def _list(value, where: str) -> Sequence:
  if not isinstance(value, tuple | list):
    hint = ""
    if isinstance(value, Mapping | ConfigDict) and where.startswith("augment"):
      hint = "; a dict was the form of ltjax 0.1, whose crop_padding=4, flip=True is (dict(name='random_crop', " \
             "padding=4), dict(name='flip'))"
    raise ConfigError(f"{where}: expected a tuple of dict(name=..., hyper-parameters), got {b.show(value)}{hint}")
  return value


def _augment(blocks, mixup: float, where: str) -> tuple[Call, ...]:
  choices = b.public(augment)
  given = "images", "key", "labels", "progress", "partners"
  calls = [b.bind(block, choices, f"{where}[{index}]", given=given, may_change=False,
                  check=outside.lacks("images", "key")) for index, block in enumerate(_list(blocks, where))]
  if mixup:
    calls.append(Call(augment.mixup, dict(alpha=mixup), {}))
  return tuple(calls)


def sampler(block, where: str) -> Call:
  """A sampler block, bound."""
  return b.bind(block, b.public(samplers), where, given=("class_counts",), check=outside.lacks("class_counts"))


def _optimizer(block, where: str) -> tuple[Call, dict]:
  block = b.named_block(block, where, optim.__all__)
  around = {key: block.pop(key, 1 if key == "accumulate" else 0) for key in AROUND}
  for key, (kind, limits) in AROUND.items():
    b.check_number(around[key], f"{where}.{key}", kind, limits)
  around["no_decay"] = _patterns(block.pop("no_decay", ()), f"{where}.no_decay")
  if "lr" in block or "learning_rate" in block:
    raise ConfigError(f"{where}: the learning rate is the stage's own key, {where.partition('.')[0]}.lr")
  call = b.bind(block, b.public(optim), where, given=("learning_rate", "lr", "mask"), may_change=False,
                beside=(*AROUND, "no_decay"), check=outside.lacks("learning_rate|lr"))
  if around["no_decay"] and "mask" not in call.arguments:
    raise ConfigError(f"{where}.no_decay: {call.name} takes no mask for its weight decay; write no_decay=()")
  return call, around


def _patterns(value, where: str, pairs: bool = False) -> tuple:
  if not isinstance(value, tuple | list):
    raise ConfigError(f"{where}: expected a tuple, got {b.show(value)}")
  for entry in value:
    pattern = entry
    if pairs:
      if not isinstance(entry, tuple | list) or len(entry) != 2:
        raise ConfigError(f"{where}: expected (regular expression, factor) pairs, got {b.show(entry)}")
      pattern, factor = entry
      b.check_number(factor, where, limits="[0, inf)")
    b.check_kind(pattern, str, where)
    try:
      re.compile(pattern)
    except re.error as error:
      raise ConfigError(f"{where}: {pattern!r} is not a regular expression ({error})") from error
  return tuple(tuple(entry) if pairs else entry for entry in value)


def _stage(config: ConfigDict, name: str) -> StageSpec:
  block = config[name]
  if not isinstance(block, ConfigDict):
    raise ConfigError(f"{name}: expected a stage block (recipes.stage), got {b.show(block)}")
  for key in block:
    if key not in STAGE_KEYS:
      raise ConfigError(f"{name}.{key}: not a key of a stage{nearest(key, STAGE_KEYS)}; "
                        f"there are {', '.join(STAGE_KEYS)}")
  for key in STAGE_KEYS:
    if key not in block:
      raise ConfigError(f"{name}.{key}: missing; write stages with recipes.stage(...), which fills in the defaults")
  rates = b.rates(block.lr, f"{name}.lr")
  for key, (kind, limits) in dict(epochs=(int, "[1, inf)"), batch_size=(int, "[1, inf)"),
                                  mixup=(float, "[0, inf)")).items():
    b.check_number(block[key], f"{name}.{key}", kind, limits)
  batch_norm = block.batch_norm
  if isinstance(batch_norm, tuple | list):
    batch_norm = _patterns(batch_norm, f"{name}.batch_norm")
  else:
    b.check_choice(batch_norm, BATCH_NORM_MODES, f"{name}.batch_norm")
  objective, weights = _objective(block, name)
  transforms, further = _transforms(block.transforms, f"{name}.transforms")
  images, where = (config.augment, "augment") if block.augment is None else (block.augment, f"{name}.augment")
  head, head_where = (config.head, "head") if block.head is None else (block.head, f"{name}.head")
  optimizer, around = _optimizer(block.optimizer, f"{name}.optimizer")
  backbones = {key: value for key, value in b.public(models).items() if value is not models.Classifier}
  backbone = b.bind(config.backbone, backbones, "backbone", given=("dtype",), may_change=False,
                    check=outside.backbone_lacks)
  return StageSpec(
      name, block.epochs, block.batch_size, next(iter(rates.values())), objective, weights,
      tuple(sampler(*entry) for entry in ((block.sampler, f"{name}.sampler"), *further)),
      _augment(images, block.mixup, where), transforms, optimizer, around,
      backbone, b.bind(head, b.public(heads), head_where, given=("num_classes", "class_counts"), may_change=False,
             check=outside.head_lacks), head_where, PRECISIONS[config.precision], *_trained(block, backbone, name),
      _patterns(block.reset, f"{name}.reset"), batch_norm, rates,
      None if block.head_init is None else b.bind(block.head_init, b.public(head_init), f"{name}.head_init",
                                                  given=head_init.OFFERED, may_change=False))


def _backbone(call: Call, dtype, num_classes: int):
  """The backbone, with what its tuning derives from the number of classes."""
  dtype = dict(dtype=dtype) if "dtype" in call.arguments else {}
  if own := call.constants.get("tuning"):
    dtype["tuning"] = own.for_classes(num_classes)
  call = call._replace(constants={key: value for key, value in call.constants.items() if key not in dtype})
  return b.at_path("backbone", call, **dtype)


def _trained(block, call: Call, where: str) -> tuple[tuple[str, ...], tuple]:
  """(train, lr_factors) of a stage; train="tuning" is what the backbone's tuning says."""
  lr_factors = _patterns(block.lr_factors, f"{where}.lr_factors", pairs=True)
  if block.train != "tuning":
    return _patterns(block.train, f"{where}.train"), lr_factors
  train, factors = b.at_path(f"{where}.train", tuning.trainable, _backbone(call, jnp.float32, 2))
  return train, (*lr_factors, *factors)


def _posthoc(stages: tuple[str, ...], block, where: str) -> PosthocSpec:
  values = b.named_block(block, where, tuple(POSTHOC))
  stage = values.pop("stage", stages[-1])
  if stage not in stages:
    raise ConfigError(f"{where}.stage: there is no stage {stage!r}{nearest(str(stage), stages)}; "
                      f"there are {', '.join(stages)}")
  lists = {key: value for key, value in values.items() if key != "name" and isinstance(value, tuple | list)}
  for key, value in lists.items():
    if not value:
      raise ConfigError(f"{where}.{key}: expected a value or a tuple of candidates, got none")
  given = ("center",)  # an array, which no config can hold
  calls = [b.bind(values | dict(zip(lists, combination, strict=True)), POSTHOC, where, given=given, may_change=False,
                  beside=("stage",)) for combination in itertools.product(*lists.values())]
  defaults = {key: p.default for key, p in b.hyper_parameters(calls[0].function).items() if key not in given}
  return PosthocSpec(values["name"], stage, tuple(defaults | call.constants for call in calls), tuple(lists))
