"""Checks of a parsed config: which parts go together, and where schedules lead. Touches no data and no device."""

import functools
import pathlib
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ltjax import optim, posthoc
from ltjax.augment import compose
from ltjax.config import bind as b
from ltjax.config.spec import RunSpec, StageSpec
from ltjax.data import sources
from ltjax.errors import ConfigError
from ltjax.schedules import Clock


def check(spec: RunSpec) -> None:
  """Raises a `ConfigError` for the first entry that could not run."""
  names = tuple(stage.name for stage in spec.stages)
  if spec.reset_head and not spec.pretrained:
    raise ConfigError("reset_head: without pretrained there is no head to reset; give --config.pretrained=DIR, the "
                      "work folder of a run, or write reset_head=False")
  if spec.pretrained and not pathlib.Path(spec.pretrained).expanduser().is_dir():
    backbone = spec.stages[0].backbone
    if not getattr(backbone.function, "imports_weights", False):
      raise ConfigError(f"pretrained: no file of weights fits backbone=dict(name={backbone.name!r}, ...); take the "
                        "backbone 'ResNet', 'ViT' or 'EfficientNet', or write pretrained=''")
  for stage in spec.stages:
    model = stage.model(None)
    _check_parts(stage, model, names)
    _check_augment(stage)
    if spec.test_crops and not stage.size:
      raise ConfigError(f"test_crops: {spec.test_crops!r} cuts squares of the size that {stage.name}.augment gives the "
                        "images, and it gives them none; write augment=(dict(name='random_resized_crop', size=224), "
                        "dict(name='flip')), or test_crops=''")
    _check_values(stage)
    b.at_path(stage.name, _trace, stage)
    shapes = parameter_shapes(stage, model)
    if stage.head_init and getattr(shapes["params"]["head"].get("kernel"), "ndim", 0) != 2:
      raise ConfigError(f"{stage.name}.head_init: the head {stage.head.name!r} has no class vectors to start, a kernel "
                        "[d c]; write head=dict(name='Cosine'), or head_init=None")
    check_trained(stage, shapes["params"])
    _check_layers(stage, shapes["batch_stats"])
  for index, block in enumerate(spec.posthoc):
    _check_posthoc(spec, block, f"posthoc[{index}]")


def parameter_shapes(stage: StageSpec, model, image_shape: tuple = ()) -> dict:
  """Shapes of {"params", "batch_stats"} for images of `image_shape`; by default, for any that the stage takes."""
  size = stage.size or 32
  # Features have any number of channels: one that the options of a head may divide.
  image_shape = image_shape or ((1, 1, 1, 5040) if _trait(stage.backbone, "takes_features") else (1, size, size, 3))
  try:
    maps, variables = _trace_backbone(model.backbone, image_shape)
  except TypeError:  # somebody's own backbone holds an array or a list, which has no hash
    maps, variables = _trace_backbone.__wrapped__(model.backbone, image_shape)
  head = jax.eval_shape(lambda maps: model.on_features().init(jax.random.key(0), maps, train=False), maps)
  inside = {key: dict(backbone=jax.tree.map(lambda shape: shape, given)) for key, given in variables.items()}
  return both({key: inside.get(key, {}) | head.get(key, {}) for key in inside | head})


@functools.lru_cache(maxsize=64)  # the stages of a run share their backbone, which takes a second to trace
def _trace_backbone(backbone, image_shape: tuple[int, ...]) -> tuple:
  return jax.eval_shape(lambda: backbone.init_with_output(jax.random.key(0), jnp.zeros(image_shape), train=False))


def both(variables: dict) -> dict:
  """{"params", "batch_stats"} of what a model's `init` gives; a backbone without parameters is an empty dict."""
  return dict(params=dict(backbone={}) | variables["params"], batch_stats=variables.get("batch_stats", {}))


def check_trained(stage: StageSpec, shapes: dict):
  """The learning rate factors of the stage's parameters; raises if a pattern matches none of them."""
  for key, patterns in dict(reset=stage.reset, **{"optimizer.no_decay": stage.around["no_decay"]}).items():
    optim.check_patterns(patterns, shapes, where=f"{stage.name}.{key}")
  factors = optim.learning_rate_factors(shapes, stage.train, stage.lr_factors, where=f"{stage.name}.train")
  trained = [path for path, factor in optim.flat(factors).items() if factor is not None]
  if stage.batch_norm == "shift" and any("norm" in path.split("/")[-2] for path in trained):
    raise ConfigError(f"{stage.name}.batch_norm: 'shift' moves the statistics of a frozen backbone, but "
                      f"{stage.name}.train trains BatchNorm's parameters; use 'train', or freeze them")
  return factors


def _check_layers(stage: StageSpec, batch_stats: dict) -> None:
  """Raises where a pattern of `batch_norm` matches no BatchNorm layer."""
  layers = sorted({path.rpartition("/")[0] for path in optim.flat(batch_stats)})
  for pattern in stage.batch_norm if isinstance(stage.batch_norm, tuple) else ():
    if not any(re.fullmatch(pattern, layer) for layer in layers):
      raise ConfigError(f"{stage.name}.batch_norm: {pattern!r} matches no BatchNorm layer; there are "
                        f"{', '.join(layers[:6])}{', ...' if len(layers) > 6 else ''}")


def _trait(call, name: str, default=False):
  return getattr(call.function, name, default) if call else default


def _check_parts(stage: StageSpec, model, names: Sequence[str]) -> None:
  """Raises if the adjustment, the loss, the head and the transforms do not go together."""
  name, objective, head = stage.name, stage.objective, model.head
  adjust, loss = objective.adjust, objective.loss
  gives, head_name = getattr(head, "gives", "logits"), stage.head.name
  for call, key in ((adjust, "adjust"), (loss, "loss")):
    if call and "cosines" in call.arguments and gives == "logits":
      raise ConfigError(f"{name}.{key}: {call.name} takes cosines, but the head {head_name!r} does not return any; "
                        "write head=dict(name='Cosine')")
    if call and _trait(call, "needs_angles") and gives != "cosines":
      raise ConfigError(f"{name}.{key}: {call.name} works on the angle and needs cosines in [-1, 1], which the head "
                        f"{head_name!r} scales beyond; write head=dict(name='Cosine')")
    if call and "features" in call.arguments and not getattr(head, "keeps_norm", True):
      raise ConfigError(f"{name}.{key}: {call.name} works on the norm of the features, which the head {head_name!r} "
                        "removes; write head=dict(name='Linear')")
  if stage.class_weights and _trait(loss, "of_batch"):
    raise ConfigError(f"{name}.class_weights: {loss.name} is the loss of a complete batch, so its examples cannot have "
                      "different weights; write class_weights=None")
  if _trait(adjust, "drops_columns") and _trait(loss, "of_batch"):
    raise ConfigError(f"{name}.loss: {loss.name} reads down the columns of the logits, some of which {adjust.name} "
                      "drops at random; write loss=dict(name='cross_entropy'), or adjust=None")
  _check_projections(stage, head)
  if getattr(head, "wants_prototypes", False):
    _check_prototypes(stage, names)
  groups = stage.backbone.constants.get("bn_groups", 1)
  if stage.batch_norm != "eval" and stage.batch_size % groups:
    raise ConfigError(f"backbone.bn_groups: {groups} does not divide {name}.batch_size={stage.batch_size}; "
                      "give a multiple")
  if stage.join:
    _check_join(stage, model)
  for call in stage.transforms:
    if _trait(call, "adds_rows"):
      _check_added_rows(stage, model, call)
  if stage.draws_held_out:
    _check_held_out(stage)
  pieces = stage.around["accumulate"]
  if stage.batch_size % pieces:
    raise ConfigError(f"{name}.optimizer.accumulate: {pieces} does not divide {name}.batch_size={stage.batch_size}; "
                      f"give one of {', '.join(str(n) for n in range(1, 65) if stage.batch_size % n == 0)}")
  if pieces > 1 and (_trait(loss, "of_batch") or any(_trait(call, "adds_rows") for call in stage.transforms)):
    raise ConfigError(f"{name}.optimizer.accumulate: the loss of this stage is of a complete batch, which cannot be "
                      "cut into parts; write accumulate=1")


def _check_projections(stage: StageSpec, head) -> None:
  """Raises unless a head's projections, the loss of them and the transform that arranges the rows come together."""
  name, loss, adjust = stage.name, stage.objective.loss, stage.objective.adjust
  rows_of, projects = _trait(loss, "rows_of"), getattr(head, "projects", False)
  if rows_of and (stage.join is None or stage.join.name != rows_of):
    raise ConfigError(f"{name}.loss: {loss.name} reads the rows as {rows_of} arranges them; write {name}.transforms="
                      f"(dict(name={rows_of!r}, sampler=dict(name='class_balanced')),), or another loss")
  takes = _trait(loss, "takes")
  if takes and takes != projects:
    raise ConfigError(f"{name}.loss: {loss.name} takes the {takes} of a head for features, and {stage.head.name} gives "
                      "none; write head=dict(name='OLTR'), or another loss")
  if projects and "features" not in loss.arguments:
    raise ConfigError(f"{stage.head_where}: {loss.name} of {name} does not take the projections of {stage.head.name}; "
                      "write head=dict(name='Linear'), or loss=dict(name='hybrid_contrastive', ...)")
  if projects and adjust and "features" in adjust.arguments:
    raise ConfigError(f"{name}.adjust: {adjust.name} would take the projections of {stage.head.name} for features; "
                      "write adjust=None, or head=dict(name='Linear')")
  if projects and stage.batch_norm != "train":
    raise ConfigError(f"{name}.batch_norm: {stage.head.name} gives its projections to the loss in train mode only; "
                      "write batch_norm='train', or another head")


def _check_join(stage: StageSpec, model) -> None:
  name, call = stage.name, stage.join
  number = {2: "two", 3: "three"}.get(len(call.function.draws), "several")
  needs = getattr(call.function, "needs", None)
  if needs and not getattr(model.backbone, needs, False):
    raise ConfigError(f"{name}.transforms: {call.name} makes {number} batches, but the backbone "
                      f"{stage.backbone.name!r} takes one; write backbone=dict(name='ResNetBBN')")
  if stage.head.constants.get("crops"):
    raise ConfigError(f"{stage.head_where}.crops: crops are taken of one batch, but {call.name} of {name} makes "
                      "several; remove one of them")
  if mixing := [op.name for op in stage.augment if mixes(op)]:
    raise ConfigError(f"{name}.mixup: {call.name} makes {number} batches, which {mixing[0]} would mix once "
                      "more; write mixup=0.0, or remove the transform")


def _check_held_out(stage: StageSpec) -> None:
  """Raises where the weights of examples that a transform learns have no meaning."""
  name, call, loss = stage.name, stage.join, stage.objective.loss
  if _trait(loss, "of_batch"):
    raise ConfigError(f"{name}.transforms: {call.name} weighs each example, but {loss.name} is the loss of a complete "
                      "batch; use another loss, or remove the transform")
  if _trait(stage.samplers[1], "permutes"):
    raise ConfigError(f"{name}.transforms[0].sampler: {stage.samplers[1].name} draws without replacement, for which "
                      "few held-out images do not suffice; write sampler=dict(name='class_balanced')")
  if stage.around["accumulate"] > 1:
    raise ConfigError(f"{name}.optimizer.accumulate: {call.name} weighs the examples of a complete batch, which "
                      "cannot be cut into parts; write accumulate=1")


def mixes(call) -> bool:
  """Whether an augmentation mixes examples and so takes their labels."""
  return "labels" in call.arguments


def _check_added_rows(stage: StageSpec, model, call) -> None:
  name = stage.name
  if "insert" not in stage.backbone.arguments:
    raise ConfigError(f"{name}.transforms: {call.name} needs an insert between the layers of a backbone, which "
                      f"{stage.backbone.name!r} cannot have; take another backbone, or remove the transform")
  if getattr(model.backbone, "insert", None) is None:
    raise ConfigError(f"{name}.transforms: nothing in the backbone makes the features that {call.name} asks for; write "
                      f"backbone=dict(name={stage.backbone.name!r}, ..., insert=dict(name='AFA')), or remove it")
  if stage.join:
    raise ConfigError(f"{name}.transforms: {call.name} takes one batch, but {stage.join.name} makes two; remove one")
  if mixing := [op.name for op in stage.augment if mixes(op)]:
    raise ConfigError(f"{name}.mixup: an image of {mixing[0]} has no class to generate features for; remove "
                      f"{mixing[0]} or {call.name}")
  if stage.backbone.constants.get("bn_groups", 1) > 1:
    raise ConfigError("backbone.bn_groups: the statistics of groups cannot leave out invalid rows; write bn_groups=1, "
                      f"or remove {call.name} from {name}.transforms")
  if getattr(model.head, "batch_statistics", False):
    raise ConfigError(f"{name}.transforms: the head {stage.head.name!r} would take the invalid rows of {call.name} "
                      "into its running mean; use another head, or remove the transform")
  if _trait(stage.objective.loss, "of_batch"):
    raise ConfigError(f"{name}.loss: {stage.objective.loss.name} is the loss of a complete batch, in which the invalid "
                      f"rows of {call.name} would count; use another loss, or remove the transform")


def _check_prototypes(stage: StageSpec, names: Sequence[str]) -> None:
  """Raises unless the stage is the last of several."""
  if stage.name != names[-1]:
    raise ConfigError(f"{stage.head_where}: {stage.head.name} belongs to the last stage, {names[-1]!r}, but "
                      f"{stage.name!r} has it; write --config.{names[-1]}.head=..., and another head for "
                      f"{stage.name!r}")
  if len(names) == 1:
    raise ConfigError(f"{stage.head_where}: {stage.head.name} takes its prototypes from the stage before, but "
                      f"{stage.name!r} is the only one of stages={tuple(names)!r}; put one before it that learns the "
                      "representation")


def _check_augment(stage: StageSpec) -> None:
  """Raises if the operations are in an order that makes no sense, or one refuses its values."""
  where = f"{stage.name}.augment"
  apply = b.at_path(where, compose.compose, [(call.name, call.function, call) for call in stage.augment])
  size = stage.size or 32
  given = [jax.ShapeDtypeStruct(shape, kind) for shape, kind in (
      ((2, size, size, 3), "uint8"), ((2,), "int32"), ((3,), "float32"), ((3,), "float32"))]
  key = jax.random.key(0)
  b.at_path(where, jax.eval_shape, lambda images, labels, mean, std: apply(images, key, labels, mean, std), *given)


# -- values -----------------------------------------------------------------------------------------------------------


def _moving(stage: StageSpec) -> dict[str, tuple]:
  """{config path: (schedule, range)} of everything that a stage schedules."""
  calls = dict(adjust=stage.objective.adjust, loss=stage.objective.loss, class_weights=stage.class_weights)
  calls |= {f"transforms[{index}]": call for index, call in enumerate(stage.transforms)}
  found = {f"{stage.name}.lr{f' {base:g}' if base else ''}": (rate, "[0, inf)") for base, rate in stage.rates.items()}
  for part, call in calls.items():
    for key, schedule in (call.schedules.items() if call else ()):
      found[f"{stage.name}.{part}.{key}"] = schedule, b.interval(b.signature(call.function)[key])
  return found


def notes(spec: RunSpec) -> list[str]:
  """Notes for the user before training: schedules that reach beyond their stage."""
  return [f"note: {where}{text}" for stage in spec.stages for where, (schedule, _) in _moving(stage).items()
          if isinstance(schedule, b.Schedule) for text in schedule.beyond(stage.epochs)]


def _check_values(stage: StageSpec) -> None:
  """Raises if a schedule leaves the range of its parameter, or a sampler does not return probabilities."""
  # Every epoch of a short stage, 200 of a long one: schedules have few corners.
  epochs = sorted({round(part * (stage.epochs - 1)) for part in np.linspace(0, 1, 200)})
  clocks = [Clock(step=epoch, steps_per_epoch=1, epochs=stage.epochs) for epoch in epochs]
  draws = {f"{stage.name}.sampler" if not index else f"{stage.name}.transforms[0].sampler": call
           for index, call in enumerate(stage.samplers)}
  for clock in clocks:
    for where, (schedule, limits) in _moving(stage).items():
      b.check_number(schedule(clock), f"{where} in epoch {clock.epoch}", limits=limits)
    for where, call in draws.items():
      b.at_path(where, call, np.array([100, 10, 1]), **call.at(clock))


def _trace(stage: StageSpec) -> None:
  """Traces the loss of one batch without computing it: only a call shows a function's result and its own checks."""
  objective, clock = stage.objective, Clock(0, 1, stage.epochs)
  scalars = dict(adjust=objective.adjust.at(clock) if objective.adjust else {}, loss=objective.loss.at(clock))

  def traced(logits, labels, counts):
    state = objective.update_state(objective.init_state(2), logits, labels, 1.0)
    offered = dict(labels=labels, class_counts=counts, features=logits, key=jax.random.key(0), **(state or {}))
    results = {}
    for key in ("adjust", "loss"):
      if call := getattr(objective, key):
        given = {name: value for name, value in offered.items() if name in call.arguments}
        results[key] = call(logits, **given, **scalars[key])
    return results

  shapes = [jax.ShapeDtypeStruct(shape, kind) for shape, kind in (((3, 2), "float32"), ((3,), "int32"),
                                                                   ((2,), "float32"))]
  for key, result in jax.eval_shape(traced, *shapes).items():
    wanted, call = dict(adjust=(3, 2), loss=(3,))[key], getattr(objective, key)
    if getattr(result, "shape", None) != wanted:
      hint = {(3, 2): "; it returns logits, so it belongs in adjust=", (3,): "; it belongs in loss="}
      raise ConfigError(f"{key}: {call.name} returns {getattr(result, 'shape', type(result).__name__)} for 3 examples "
                        f"of 2 classes, expected {wanted}{hint.get(getattr(result, 'shape', None), '')}")


def _check_posthoc(spec: RunSpec, block, where: str) -> None:
  for candidate in block.candidates:
    b.at_path(where, posthoc.trace, block.name, candidate)
  in_memory = spec.dataset.function in b.public(sources).values()  # files may bring their own held-out list
  if block.choices and in_memory and not spec.dataset.constants.get("holdout"):
    raise nothing_held_out(f"{where}.{block.choices[0]}")
  if block.name == "tau_normalize":
    stage = spec.stage(block.stage)
    shapes = parameter_shapes(stage, stage.model(None))
    head = shapes["params"].get("head", {})
    if not {"kernel"} <= set(head) <= {"kernel", "bias"} or "head" in shapes["batch_stats"]:
      raise ConfigError(f"{where}: tau_normalize needs a head with a kernel and at most a bias, but {stage.head.name} "
                        f"has {', '.join(head) or 'nothing'}; use a Linear head, or name a stage that has one with "
                        "stage=...")


def check_data(spec: RunSpec, dataset, devices: int) -> None:
  """Raises if the data set does not suit the config; reads no image."""
  arrays, name = not dataset.holds_files, spec.dataset.name
  for stage in spec.stages:
    _check_features(stage, stage.model(dataset.class_counts), dataset, name)
    check_batch(stage, devices, len(dataset.train[1]))
    if stage.draws_held_out and (dataset.held_out is None or not arrays):
      raise ConfigError(f"{stage.name}.transforms: {stage.join.name} learns on held-out images "
                        + ("in memory, but those here are files" if not arrays else "and there are none; write "
                           "--config.dataset.holdout=0.1, or holdout_each=10 in config.dataset") + "; or remove it")
    first = stage.augment[0] if stage.augment else None
    if not arrays and not hasattr(first and first.function, "boxes"):
      raise ConfigError(f"augment: the images of {name!r} have many sizes; write augment=(dict(name="
                        "'random_resized_crop', size=224), dict(name='flip'))")
  if not arrays and not spec.streamed:
    raise ConfigError(f"dataset.pipeline: the images of {name!r} are too many to be resident; write 'tf_data'")
  for index, block in enumerate(spec.posthoc):
    if block.choices and dataset.held_out is None:
      raise nothing_held_out(f"posthoc[{index}].{block.choices[0]}")


def _check_features(stage: StageSpec, model, dataset, name: str) -> None:
  """Raises where the data set has features and the stage wants images, or the other way about."""
  takes = _trait(stage.backbone, "takes_features")
  if not dataset.holds_features:
    if takes:
      raise ConfigError(f"backbone: {stage.backbone.name} takes features, but {name!r} has images; give the backbone "
                        f"of a network, or compute features of {name!r} with `ltjax extract`")
    return
  shape = dataset.train[0].shape[2:]
  if not takes:
    raise ConfigError(f"backbone: {stage.backbone.name} takes images, but {name!r} has features of shape {shape}; "
                      "write --config.backbone=\"dict(name='Identity')\"")
  if getattr(model.head, "takes_maps", False):
    if getattr(model.head, "crops", None):
      raise ConfigError(f"{stage.head_where}.crops: crops are taken of images, but {name!r} has features; write "
                        "crops=None, or train on the images")
    if len(shape) != 3:
      raise ConfigError(f"{stage.head_where}: {stage.head.name} takes feature maps, but those of {name!r} are pooled; "
                        "write them with `ltjax extract --maps`, or train on the images")
  for call in stage.augment:
    if not getattr(call.function, "fits_features", False):
      raise ConfigError(f"{stage.name}.augment: {call.name} works on images, but {name!r} has features; write "
                        "--config.augment=(), and take augmented views with `ltjax extract --views=10`")


def nothing_held_out(where: str) -> ConfigError:
  """The error for a choice of hyper-parameters without held-out images."""
  return ConfigError(f"{where}: candidates are chosen on held-out training images, but dataset.holdout is 0; "
                     "set --config.dataset.holdout=0.1, which takes a --workdir of its own, or give one value")


def check_batch(stage: StageSpec, devices: int, examples: int) -> None:
  """Raises if a batch does not fit the data or the devices."""
  where, size = f"{stage.name}.batch_size", stage.batch_size
  if size > examples:
    largest = examples - examples % devices
    raise ConfigError(f"{where}: {size} does not fit {examples} training images; give 1 to {examples}"
                      f"{f', as in --config.{where}={largest}' if largest else ''}")
  if size % devices:
    near = [number for number in (size - size % devices, size - size % devices + devices) if 1 <= number <= examples]
    raise ConfigError(f"{where}: {size} is not divisible by {devices} devices; valid are its multiples, the nearest "
                      f"{' and '.join(map(str, near)) or 'none that fits'}")
