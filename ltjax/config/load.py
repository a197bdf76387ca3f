"""The config of a run: read from the command line, checked as a whole, and kept in the work folder."""

import ast
import difflib
import inspect
import json
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from ltjax import losses, recipes, selection, train
from ltjax.config import bind as build
from ltjax.config import combinations
from ltjax.errors import ConfigError, LtjaxError, WorkdirError, nearest
from ltjax.schedules import Clock
from ltjax.workdir import lock

STAGE_KEYS = tuple(inspect.signature(recipes.stage).parameters)
AUGMENT_KEYS = dict(arrays=("crop_padding", "flip"), photographs=("crop", "size", "flip", "jitter"))
# key: (type, where it makes sense) of the plain numbers of a config and of a stage
RUN_NUMBERS = dict(seed=(int, "[0, 4294967295]"), steps_per_call=(int, "[0, inf)"), eval_every_epochs=(int, "[1, inf)"),
                   checkpoint_every_epochs=(int, "[1, inf)"), keep_checkpoints=(int, "[1, inf)"),
                   log_every_steps=(int, "[1, inf)"), eval_batch_size=(int, "[1, inf)"), skip_limit=(int, "[0, inf)"))
STAGE_NUMBERS = dict(epochs=(int, "[1, inf)"), batch_size=(int, "[1, inf)"), weight_decay=(float, "[0, inf)"),
                     mixup=(float, "[0, inf)"), momentum=(float, "[0, 1)"))
REDUCTIONS = tuple(build.public(losses, build.REDUCTIONS))
ON_NONFINITE = ("stop", "skip")
PARTIAL = "config.tmp"
EXIT_BAD_INPUT = 2


def parse_flags(argv: Sequence[str]) -> list[str]:
  """Parses the command line, absl's way, and turns what is wrong with it into one `ConfigError`."""
  _check_overrides(argv)
  try:
    return flags.FLAGS(argv)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
    raise ConfigError(_one_line(error)) from error


def parse_or_exit(argv: Sequence[str]) -> list[str]:
  """`parse_flags` as a program: what is wrong is said on stderr, in one line."""
  try:
    return parse_flags(argv)
  except ConfigError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)


def _check_overrides(argv: Sequence[str]) -> None:
  """Reads the config file once for itself, so that a misspelt --config.key meets the list of the keys there are."""
  values = [value for arg, value in zip(argv, [*argv[1:], ""], strict=True) if re.fullmatch(r"--?config", arg)]
  values += [arg.split("=", 1)[1] for arg in argv if re.match(r"--?config=", arg)]
  if not values:
    return
  path = values[-1].split(":", 1)[0]
  if not pathlib.Path(path).is_file():
    there = sorted(map(str, pathlib.Path(path).parent.glob("*.py")))
    raise ConfigError(f"--config: no file {path!r}{nearest(path, there)}; "
                      f"{'there are ' + ', '.join(there) if there else 'run from the root of the repository'}")
  config = _read(values[-1], path)
  keys = _flat(config)
  for arg in argv:
    if match := re.match(r"--?(?:no)?config\.([^=]+)(?:=(.*))?", arg, re.DOTALL):
      key, inside = match[1], [known for known in keys if known.startswith(match[1] + ".")]
      if key not in keys and not inside:
        raise ConfigError(f"--config.{key}: the config has no such key{nearest(key, keys)}")
      if inside and match[2] is not None and not _is_dict(match[2]):
        raise ConfigError(f"--config.{key}: expected a dict, got {match[2]!r}; its values can be set one by one, "
                          f"as in --config.{inside[0]}=...")


def _read(value: str, path: str) -> ConfigDict:
  """The config of a file and its argument, or one `ConfigError` whatever goes wrong in the file."""
  try:
    config = config_flags.ConfigFileFlagParser("config").parse(value)
  except ConfigError as error:
    cause = error
    while "\n" in str(cause) and (cause.__cause__ or cause.__context__):
      cause = cause.__cause__ or cause.__context__  # ml_collections puts the traceback into the message
    raise ConfigError(f"--config={value}: {_one_line(cause)}") from error
  except Exception as error:
    cause = error
    while cause.__cause__ or cause.__context__:
      cause = cause.__cause__ or cause.__context__  # ml_collections wraps some errors in others
    lines = [frame.lineno for frame in traceback.extract_tb(cause.__traceback__) if frame.filename.endswith(path)]
    raise ConfigError(f"--config={value}: the config file could not be built: "
                      f"{f'line {lines[-1]}: ' if lines else ''}{type(cause).__name__}: {_one_line(cause)}") from error
  if not isinstance(config, ConfigDict):
    raise ConfigError(f"--config={value}: get_config gives {build.show(config)}, "
                      "expected a ConfigDict as ltjax.recipes make it")
  return config


def _is_dict(text: str) -> bool:
  try:
    return isinstance(ast.literal_eval(text), dict)
  except (ValueError, SyntaxError):
    return False


def _one_line(error: Exception) -> str:
  """The last line of a message, where libraries that wrap tracebacks put the cause."""
  lines = [line for line in str(error).splitlines() if line.strip()]
  return lines[-1].strip() if lines else type(error).__name__


def _flat(config: Mapping, prefix: str = "") -> dict[str, object]:
  """{"a.b": value} of every leaf of nested mappings."""
  found = {}
  for key, value in config.items():
    if isinstance(value, Mapping | ConfigDict) and len(value):
      found |= _flat(value, f"{prefix}{key}.")
    else:
      found[prefix + key] = value
  return found


def check(config: ConfigDict) -> None:
  """Raises a `ConfigError` for the first thing in `config` that could not run; touches no data and no device."""
  if not isinstance(config, ConfigDict):
    raise ConfigError(f"the config is a {type(config).__name__}, expected a ConfigDict as ltjax.recipes make it")
  _check_literals(config)
  stages = _check_keys(config)
  _check_numbers(config, RUN_NUMBERS, "")
  _check_choice(config.on_nonfinite, ON_NONFINITE, "on_nonfinite")
  build.check_kind(config.pretrained, str, "pretrained")
  build.check_kind(config.reset_head, bool, "reset_head")
  if config.reset_head and not config.pretrained:
    raise ConfigError("reset_head: there is no head to draw anew without pretrained; give --config.pretrained=DIR, the "
                      "work folder of a run, or write reset_head=False")
  if config.pretrained and config.backbone.get("name") != "ResNet" and not pathlib.Path(config.pretrained).is_dir():
    raise ConfigError(f"pretrained: weights of PyTorch are for backbone=dict(name='ResNet', ...), not for "
                      f"{config.backbone.get('name')!r}; write pretrained=''")
  _check_augment(config.augment)
  build.dataset(config)
  _check_reading(config)
  for name in stages:
    _check_stage(config, name)
  selection.blocks(config)
  for name in stages:
    # What a stage trains and resets is in the model; 32 x 32 is only for the shapes.
    train.state_makers(config, name, None, (1, 32, 32, 3))


def _check_literals(config: ConfigDict) -> None:
  def literal(value):
    return all(map(literal, value)) if isinstance(value, tuple | list) else (
        value is None or isinstance(value, bool | int | float | str | ConfigDict | Mapping))

  for key, value in _flat(config).items():
    if not literal(value):
      raise ConfigError(f"{key}: expected a number, string, bool, tuple, dict or None, got {build.show(value)}; "
                        "config.json could not keep it")


def _check_keys(config: ConfigDict) -> tuple[str, ...]:
  """The names of the stages, after a check that exactly their blocks and the keys of every config are there."""
  if "stages" not in config:
    for key in difflib.get_close_matches("stages", list(config), n=1):
      raise _unknown(key, ("stages",))
    raise ConfigError("stages: missing from the config")
  stages = config.stages
  if not isinstance(stages, tuple | list) or not stages or not all(isinstance(name, str) for name in stages):
    raise ConfigError(f"stages: expected a tuple of stage names, got {build.show(stages)}")
  for name in stages:
    if not name.isidentifier() or name in (*recipes.RUN_KEYS, "report"):
      raise ConfigError(f"stages: a stage names its block and its folder and so cannot be called {name!r}; "
                        "try 'representation' or 'classifier'")
  if len(set(stages)) < len(stages):
    raise ConfigError(f"stages: every stage needs a name of its own, got {build.show(stages)}")
  known = (*recipes.RUN_KEYS, *stages)
  for key, value in config.items():
    if key not in known:
      if isinstance(value, ConfigDict) and not nearest(key, [name for name in known if name not in config]):
        raise ConfigError(f"{key}: a block that is not named in stages={tuple(stages)!r}{nearest(key, known)}; "
                          "name it there or take it out")
      raise _unknown(key, known)
  for key in known:
    if key not in config:
      raise ConfigError(f"{key}: missing from the config{' (it is named in stages)' if key in stages else ''}")
  return tuple(stages)


def _unknown(key: str, known: Sequence[str], where: str = "") -> ConfigError:
  return ConfigError(f"{where}{key}: not a key{f' of {where[:-1]}' if where else ' of a config'}{nearest(key, known)}; "
                     f"there are {', '.join(known)}")


def _check_numbers(block, numbers: Mapping, prefix: str) -> None:
  for key, (kind, limits) in numbers.items():
    build.check_number(block[key], prefix + key, kind, limits)


def _check_choice(value, choices: Sequence[str], where: str) -> None:
  if value not in choices:
    raise ConfigError(f"{where}: expected one of {', '.join(choices)}, got {build.show(value)}"
                      f"{nearest(str(value), choices)}")


def _check_augment(block) -> None:
  if not isinstance(block, ConfigDict):
    raise ConfigError("augment: expected dict(crop_padding=..., flip=...), or for photographs dict(crop=..., size=..., "
                      f"flip=..., jitter=...), got {build.show(block)}")
  keys = AUGMENT_KEYS["arrays" if "crop_padding" in block or not {"crop", "size", "jitter"} & set(block)
                      else "photographs"]
  for key in block:
    if key not in keys:
      raise _unknown(key, keys, "augment.")
  for key in keys:
    if key not in block:
      raise ConfigError(f"augment.{key}: missing from the config")
  build.check_kind(block.flip, bool, "augment.flip")
  if "crop_padding" in block:
    build.check_number(block.crop_padding, "augment.crop_padding", int, "[0, inf)")
    return
  if block.crop != "random_resized":
    raise ConfigError(f"augment.crop: expected 'random_resized', got {build.show(block.crop)}")
  build.check_number(block.size, "augment.size", int, "[8, inf)")
  if block.jitter != 0 or isinstance(block.jitter, bool):
    if not isinstance(block.jitter, tuple | list) or len(block.jitter) != 3:
      raise ConfigError("augment.jitter: expected 0, or the strengths of (brightness, contrast, saturation), got "
                        f"{build.show(block.jitter)}")
    for place, strength in enumerate(block.jitter):
      build.check_number(strength, f"augment.jitter[{place}]", limits="[0, 1]")


def _check_reading(config: ConfigDict) -> None:
  for key, choices in build.READING.items():
    _check_choice(config.dataset.get(key, choices[0]), choices, f"dataset.{key}")
  if "crop" in config.augment and config.dataset.get("pipeline") != "tf_data":
    raise ConfigError(f"augment.crop: {config.augment.crop!r} is done by tf.data; write dataset.pipeline='tf_data', or "
                      "augment=dict(crop_padding=..., flip=...)")


def _check_stage(config: ConfigDict, name: str) -> None:
  block = config[name]
  if not isinstance(block, ConfigDict):
    raise ConfigError(f"{name}: expected a stage block (recipes.stage), got {build.show(block)}")
  for key in block:
    if key not in STAGE_KEYS:
      raise _unknown(key, STAGE_KEYS, f"{name}.")
  for key in STAGE_KEYS:
    if key not in block:
      raise ConfigError(f"{name}.{key}: missing; write stages with recipes.stage(...), which fills in the defaults")
  _check_numbers(block, STAGE_NUMBERS, f"{name}.")
  if block.batch_norm not in build.BATCH_NORM_MODES:
    raise ConfigError(f"{name}.batch_norm: expected one of {', '.join(build.BATCH_NORM_MODES)}, "
                      f"got {build.show(block.batch_norm)}")
  if block.reduce not in REDUCTIONS:
    raise ConfigError(f"{name}.reduce: expected one of {', '.join(REDUCTIONS)}, got {build.show(block.reduce)}"
                      f"{nearest(str(block.reduce), REDUCTIONS)}")
  _check_patterns(block, name)
  objective = build.Objective(block, name)
  combinations.check(config, name, objective)
  # Every epoch of a short stage, 200 of a long one: schedules have few corners.
  epochs = sorted({round(share * (block.epochs - 1)) for share in np.linspace(0, 1, 200)})
  clocks = [Clock(step=epoch, steps_per_epoch=1, epochs=block.epochs) for epoch in epochs]
  _check_values(block, name, objective, clocks)
  _check_trace(name, objective, clocks[0])


def _check_patterns(block: ConfigDict, name: str) -> None:
  for key in ("train", "reset", "lr_factors", "no_decay"):
    if not isinstance(block[key], tuple | list):
      raise ConfigError(f"{name}.{key}: expected a tuple, got {build.show(block[key])}")
    for entry in block[key]:
      pattern = entry
      if key == "lr_factors":
        if not isinstance(entry, tuple | list) or len(entry) != 2:
          raise ConfigError(f"{name}.{key}: expected (regular expression, factor) pairs, got {build.show(entry)}")
        pattern, factor = entry
        build.check_number(factor, f"{name}.{key}", limits="[0, inf)")
      build.check_kind(pattern, str, f"{name}.{key}")
      try:
        re.compile(pattern)
      except re.error as error:
        raise ConfigError(f"{name}.{key}: {pattern!r} is not a regular expression ({error})") from error


def _check_values(block: ConfigDict, name: str, objective: build.Objective, clocks: Sequence[Clock]) -> None:
  """Raises where a schedule leaves the range of what it moves, or a sampler does not give probabilities."""
  moving = {"lr": objective.lr} if isinstance(block.lr, ConfigDict) else {}
  for part, call in dict(adjust=objective.adjust, loss=objective.loss, class_weights=objective.weights).items():
    moving |= {f"{part}.{key}": schedule for key, schedule in call.schedules.items()} if call else {}
  samplers = {f"{name}.sampler": block.sampler}
  if objective.branches:
    moving["branches.share"] = objective.branches.share
    samplers[f"{name}.branches.sampler"] = objective.branches.sampler
  if objective.generation:
    moving["generation.weight"] = objective.generation.weight
  draws = {where: build.sampler(sampler, where, np.array([100, 10, 1])) for where, sampler in samplers.items()}
  for clock in clocks:
    for key, schedule in moving.items():
      limits = build.LIMITS.get(key.split(".")[-1], "(-inf, inf)")
      build.check_number(schedule(clock), f"{name}.{key} in epoch {clock.epoch}", limits=limits)
    for where, draw in draws.items():
      if callable(draw):
        build.named(where, draw, clock)


def _check_trace(name: str, objective: build.Objective, clock: Clock) -> None:
  """Traces the loss of one batch without computing it: what only the functions know, such as a list of choices."""

  def loss(logits, labels, counts):
    scalars = dict(adjust=objective.adjust.at(clock) if objective.adjust else {}, loss=objective.loss.at(clock),
                   class_weights=counts)
    return objective(logits, labels, features=logits, key=jax.random.key(0), scalars=scalars, class_counts=counts,
                     seen_counts=counts)

  shapes = [jax.ShapeDtypeStruct(shape, kind) for shape, kind in (((3, 2), "float32"), ((3,), "int32"),
                                                                   ((2,), "float32"))]
  build.named(name, jax.eval_shape, loss, *shapes)


def check_workdir(config: ConfigDict, workdir: pathlib.Path) -> bool:
  """Whether the work folder already belongs to this very config; raises where it cannot become or stay its folder."""
  path = workdir / "config.json"
  try:
    above = next(folder for folder in (workdir, *workdir.absolute().parents) if folder.exists())
    if not above.is_dir():
      raise WorkdirError(f"--workdir: {above} is a file, expected a folder; give another --workdir")
    if not os.access(above, os.R_OK | os.W_OK | os.X_OK):
      raise WorkdirError(f"--workdir: {above} may not be read and written; give another --workdir, or change its mode")
    if path.exists():
      _compare(json.loads(path.read_text()), json.loads(config.to_json()), workdir)
      return True
    if workdir.exists() and any(entry.name not in (PARTIAL, lock.NAME) for entry in workdir.iterdir()):
      raise WorkdirError(f"--workdir: {workdir} is not empty and has no config.json, so it is not a run of ltjax; "
                         "give a new or empty folder")
  except OSError as error:
    raise _unusable(workdir, error) from error
  except ValueError as error:
    if isinstance(error, LtjaxError):
      raise
    raise WorkdirError(f"--workdir: {path} is not valid JSON ({error}); mend it, or give another folder") from error
  return False


def load(workdir: pathlib.Path) -> ConfigDict:
  """The config that the run in `workdir` was started with; raises a `WorkdirError` where there is none."""
  path = workdir / "config.json"
  try:
    return ConfigDict(_tuples(json.loads(path.read_text())))
  except OSError as error:
    raise WorkdirError(f"{workdir} is not a run of ltjax: {path} cannot be read ({error.strerror or error}); give the "
                       "--workdir of a run") from error
  except (ValueError, TypeError) as error:
    raise WorkdirError(f"{path} is not the config of a run ({error}); mend it, or give another folder") from error


def _tuples(value):
  """JSON has lists where configs have tuples."""
  if isinstance(value, Mapping):
    return {key: _tuples(entry) for key, entry in value.items()}
  return tuple(map(_tuples, value)) if isinstance(value, list) else value


def open_workdir(config: ConfigDict, workdir: pathlib.Path) -> None:
  """Makes the work folder with its config.json, or checks that it belongs to this very config."""
  if check_workdir(config, workdir):
    return
  partial = workdir / PARTIAL
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    try:
      partial.write_text(config.to_json(indent=1) + "\n")
      partial.replace(workdir / "config.json")
    except OSError:
      partial.unlink(missing_ok=True)
      raise
  except OSError as error:
    raise _unusable(workdir, error) from error


def _unusable(workdir: pathlib.Path, error: OSError) -> WorkdirError:
  return WorkdirError(f"--workdir: {workdir} cannot be used ({error.strerror or error}); "
                      "give a folder that can be read and written")


def _compare(before, now: Mapping, workdir: pathlib.Path) -> None:
  if not isinstance(before, Mapping):
    raise WorkdirError(f"--workdir: {workdir / 'config.json'} is not the config of a run; give another folder")
  before, now = _flat(before), _flat(now)
  missing = object()
  different = [f"{key} was {before.get(key, 'absent')!r}, is {now.get(key, 'absent')!r}"
               for key in sorted({*before, *now}) if before.get(key, missing) != now.get(key, missing)]
  if different:
    raise WorkdirError(f"--workdir: {workdir} was written by another config: {'; '.join(different)}. "
                       "Give another folder, or the values it was started with")
