"""The config of a run: read from the command line, checked as a whole, and kept in the work folder."""

import inspect
import json
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np
from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from ltjax import build, recipes
from ltjax.errors import ConfigError, WorkdirError, nearest

STAGE_KEYS = tuple(inspect.signature(recipes.stage).parameters)
# key: (type, smallest value) of the plain numbers of a config and of a stage
RUN_NUMBERS = dict(seed=(int, 0), steps_per_call=(int, 0), eval_every_epochs=(int, 1),
                   checkpoint_every_epochs=(int, 1), log_every_steps=(int, 1), eval_batch_size=(int, 1))
STAGE_NUMBERS = dict(epochs=(int, 1), batch_size=(int, 1), weight_decay=(float, 0), mixup=(float, 0),
                     momentum=(float, 0))
AUGMENT_TYPES = dict(crop_padding=int, flip=bool)


def parse_flags(argv: Sequence[str]) -> list[str]:
  """Parses the command line, absl's way, and turns what is wrong with it into one `ConfigError`."""
  _check_overrides(argv)
  try:
    return flags.FLAGS(argv)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
    raise ConfigError(_one_line(error)) from error


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
  try:
    config = config_flags.ConfigFileFlagParser("config").parse(values[-1])
  except ConfigError:
    raise
  except Exception as error:
    raise ConfigError(f"--config={values[-1]}: the config file could not be built: {_one_line(error)}") from error
  keys = _flat(config)
  for arg in argv:
    if match := re.match(r"--?(?:no)?config\.([^=]+)", arg):
      key = match[1]
      if key not in keys and not any(known.startswith(key + ".") for known in keys):
        raise ConfigError(f"--config.{key}: the config has no such key{nearest(key, keys)}")


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
  stages = config.get("stages")
  if not isinstance(stages, tuple | list) or not stages:
    raise ConfigError(f"stages: expected a tuple of stage names, got {stages!r}")
  known = (*recipes.RUN_KEYS, *stages)
  for key in config:
    if key not in known:
      raise ConfigError(f"{key}: not a key of a config{nearest(key, known)}; there are {', '.join(known)}")
  for key in known:
    if key not in config:
      raise ConfigError(f"{key}: missing from the config{' (it is named in stages)' if key in stages else ''}")
  _check_numbers(config, RUN_NUMBERS, "")
  for key, kind in AUGMENT_TYPES.items():
    if not isinstance(config.augment.get(key), kind):
      raise ConfigError(f"augment.{key}: expected {kind.__name__}, got {config.augment.get(key)!r}")
  build.dataset(config)
  build.model(config, num_classes=2)
  for name in stages:
    _check_stage(config[name], name)


def _check_stage(block, name: str) -> None:
  if not isinstance(block, ConfigDict):
    raise ConfigError(f"{name}: expected a stage block (recipes.stage), got {block!r}")
  for key in block:
    if key not in STAGE_KEYS:
      raise ConfigError(f"{name}.{key}: not a key of a stage{nearest(key, STAGE_KEYS)}; "
                        f"there are {', '.join(STAGE_KEYS)}")
  for key in STAGE_KEYS:
    if key not in block:
      raise ConfigError(f"{name}.{key}: missing; write stages with recipes.stage(...), which fills in the defaults")
  _check_numbers(block, STAGE_NUMBERS, f"{name}.")
  if block.batch_norm not in build.BATCH_NORM_MODES:
    raise ConfigError(f"{name}.batch_norm: expected one of {', '.join(build.BATCH_NORM_MODES)}, "
                      f"got {block.batch_norm!r}")
  for key in ("train", "reset", "lr_factors"):
    if not isinstance(block[key], tuple | list):
      raise ConfigError(f"{name}.{key}: expected a tuple, got {block[key]!r}")
  build.Objective(block, name)
  build.sampler(block.sampler, f"{name}.sampler", np.ones(2))


def _check_numbers(block, numbers: Mapping, prefix: str) -> None:
  for key, (kind, least) in numbers.items():
    value = block[key]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or (kind is int and not isinstance(value, int)) or not value >= least:
      raise ConfigError(f"{prefix}{key}: expected {'an integer' if kind is int else 'a number'} of at least {least}, "
                        f"got {value!r}")


def open_workdir(config: ConfigDict, workdir: pathlib.Path) -> None:
  """Makes the work folder with its config.json, or checks that it belongs to this very config."""
  path, text = workdir / "config.json", config.to_json(indent=1) + "\n"
  try:
    if path.exists():
      _compare(json.loads(path.read_text()), json.loads(text), workdir)
      return
    if workdir.exists() and any(workdir.iterdir()):
      raise WorkdirError(f"--workdir: {workdir} is not empty and has no config.json, so it is not a run of ltjax; "
                         "give a new or empty folder")
    workdir.mkdir(parents=True, exist_ok=True)
    partial = workdir / "config.tmp"
    partial.write_text(text)
    partial.replace(path)
  except OSError as error:
    raise WorkdirError(f"--workdir: {workdir} cannot be used ({error.strerror or error}); "
                       "give a folder that can be read and written") from error
  except json.JSONDecodeError as error:
    raise WorkdirError(f"--workdir: {path} is not valid JSON ({error}); mend it, or give another folder") from error


def _compare(before: Mapping, now: Mapping, workdir: pathlib.Path) -> None:
  before, now = _flat(before), _flat(now)
  missing = object()
  different = [f"{key} was {before.get(key, 'absent')!r}, is {now.get(key, 'absent')!r}"
               for key in sorted({*before, *now}) if before.get(key, missing) != now.get(key, missing)]
  if different:
    raise WorkdirError(f"--workdir: {workdir} was written by another config: {'; '.join(different)}. "
                       "Give another folder, or the values it was started with")
