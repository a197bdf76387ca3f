"""Reads a config from the command line: `--config=FILE[:ARGUMENT]`, and `--config.KEY=VALUE` for any value in it.

A VALUE is a Python literal (a number, None, True, a quoted string, a tuple, a dict, `dict(name=...)`); any other text
is a string. If the config holds a string, a number or a word replaces it as text.
"""

import ast
import difflib
import importlib.util
import inspect
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from ltjax import augment
from ltjax.augment import batches
from ltjax.config import bind
from ltjax.config.keys import flat
from ltjax.errors import ConfigError, LtjaxError, nearest

EXIT_BAD_INPUT = 2
# Lists of named blocks: an entry is addressed by its name, as in --config.augment.jitter=(0.4,0.4,0.4).
LISTS = dict(augment=augment, transforms=batches)
PRESET_KEYS = ("stages", "backbone", "head", "augment", "precision", "posthoc")  # beside the stages, a preset's own


class Option(NamedTuple):
  """An option besides --config: its text in --help, and its default."""

  help: str
  default: object = None


def parse(argv: Sequence[str], options: Mapping[str, Option], usage: str,
          otherwise: Callable[[dict], ConfigDict | None] = lambda given: None) -> dict:
  """{"config": ConfigDict, "changes": [(key, value, value of the file)], option: value} of a command line.

  A boolean option needs no value. `--help` prints `usage` and exits with 0. `otherwise(options)` gives the config where
  there is no --config.

  Raises:
    ConfigError: anything wrong with the command line or the config file.
  """
  given, overrides, rest = {name: option.default for name, option in options.items()}, [], list(argv)
  while rest:
    text = rest.pop(0)
    if text in ("--help", "-h", "--helpfull"):
      print(f"{usage.strip()}\n\noptions:\n  --config=FILE[:ARGUMENT]  --config.KEY=VALUE")
      print("\n".join(f"  --{name}{'' if isinstance(option.default, bool) else '=...'}  {option.help}"
                      for name, option in options.items()))
      sys.exit(0)
    match = re.fullmatch(r"--?(no)?(config\.[^=]+|[A-Za-z_][\w-]*)(?:=(.*))?", text, re.DOTALL)
    if not match:
      raise ConfigError(f"unexpected argument {text!r}; options are written --config=FILE "
                        f"{' '.join(f'--{name}=...' for name in options)}")
    no, name, value = match.groups()
    if no and not name.startswith("config.") and name not in options:
      no, name = None, no + name  # a name that merely begins with "no"
    boolean = isinstance(given.get(name), bool)
    if value is None and not no and not boolean and rest and not rest[0].startswith("--"):
      value = rest.pop(0)
    if name.startswith("config."):
      overrides.append((name.removeprefix("config."), "False" if no else "True" if value is None else value))
    elif name == "config" or name in options:
      if value is None and not boolean:
        raise ConfigError(f"--{name} needs a value, --{name}=...")
      given[name] = _boolean(name, no, value) if boolean else value
    else:
      raise _unknown_option(name, given, next((other.split("=", 1)[1] for other in argv
                                               if re.match(r"--?config=", other)), ""))
  given["config"] = otherwise(given) if given.get("config") is None else read(given["config"])
  if given["config"] is None:
    raise ConfigError("--config is missing; try --config=configs/gcl_digits.py")
  before = flat(given["config"])
  for key, value in overrides:
    override(given["config"], key, value)
  given["changes"] = _changes(before, flat(given["config"]))
  _note_preset(given["config"], given["changes"])
  return given


def _changes(before: Mapping, after: Mapping) -> list[tuple[str, str, str]]:
  """(key, value, value before) of every key that differs; "nothing" where there is none."""
  was, now = ({key: bind.show(value) for key, value in values.items()} for values in (before, after))
  return [(key, now.get(key, "nothing"), was.get(key, "nothing")) for key in sorted({*was, *now})
          if was.get(key) != now.get(key)]


def _note_preset(config: ConfigDict, changes: Sequence[tuple[str, str, str]]) -> None:
  """Writes into `config.preset` what the command line has changed in the preset, for results.json."""
  if config.get("preset"):
    config.preset.changed += tuple(f"{key}={value} instead of {before}" for key, value, before in changes
                                   if key.split(".")[0] in (*PRESET_KEYS, *config.stages))


def _boolean(name: str, no: str | None, value: str | None) -> bool:
  if value is not None and value.lower() not in ("true", "false", "1", "0"):
    raise ConfigError(f"--{name}: expected true or false, got {value!r}")
  return (value is None or value.lower() in ("true", "1")) and not no


def _unknown_option(name: str, given: Mapping, config: str) -> ConfigError:
  known = list(dict.fromkeys(["config", *given]))
  inside = [key for key in _keys(read(config)) if key.split(".")[-1] == name] if config else []
  hint = f" (did you mean --config.{inside[0]}?)" if inside else nearest(name, known)
  return ConfigError(f"--{name}: no such option{hint}; there are {', '.join(f'--{name}' for name in known)}, and "
                     "--config.KEY for every key of the config")


# -- the file ---------------------------------------------------------------------------------------------------------


def read(value: str) -> ConfigDict:
  """The config of `FILE` or `FILE:ARGUMENT`; any exception in the file becomes a `ConfigError`."""
  path, argument = split(value)
  if argument == "":
    raise ConfigError(f"--config={value}: nothing follows the colon; give an argument, or leave the colon out")
  if path.suffix == ".json":
    raise ConfigError(f"--config={value}: a config is a Python file; to continue a run, repeat the command that "
                      f"started it: `--workdir={path.parent}` alone does not")
  if path.suffix != ".py":
    raise ConfigError(f"--config={value}: a config is a Python file, configs/NAME.py")
  try:
    spec = importlib.util.spec_from_file_location("ltjax_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    get_config = getattr(module, "get_config", None)
    if get_config is None:
      raise ConfigError("the file defines no get_config()")
    if argument is not None and not inspect.signature(get_config).parameters:
      raise ConfigError(f"get_config takes no argument, but the command line gives {argument!r}")
    config = get_config() if argument is None else get_config(argument)
  except LtjaxError as error:
    raise ConfigError(f"--config={value}: {error}") from error
  except (Exception, SystemExit) as error:
    file = str(path.absolute())  # as the loader calls it
    frames = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    line = error.lineno if isinstance(error, SyntaxError) else frames[-1] if frames else None
    raise ConfigError(f"--config={value}: the config file could not be built: {f'line {line}: ' if line else ''}"
                      f"{type(error).__name__}: {_one_line(error)}") from error
  if not isinstance(config, ConfigDict):
    raise ConfigError(f"--config={value}: get_config returns {bind.show(config)}, expected a ConfigDict as "
                      "ltjax.recipes makes it")
  return config


def split(value: str) -> tuple[pathlib.Path, str | None]:
  """(file, argument). A path may contain colons itself, so the longest prefix that is a file counts."""
  ends = [len(value), *(match.start() for match in reversed(list(re.finditer(":", value))))]
  for end in ends:
    path = pathlib.Path(value[:end]).expanduser()
    if path.is_file():
      return path, value[end + 1:] if end < len(value) else None
  path = value.split(":", 1)[0]
  if (old := re.fullmatch(r"(.*)_(cifar100?)\.py", path)) and pathlib.Path(f"{old[1]}_cifar.py").is_file():
    raise ConfigError(f"--config: no file {path!r}: both data sets have one config now, {old[1]}_cifar.py:{old[2]}")
  there = sorted(map(str, pathlib.Path(path).expanduser().parent.glob("*.py")))
  raise ConfigError(f"--config: no file {path!r}{nearest(path, there)}; "
                    f"{'there are ' + ', '.join(there) if there else 'run from the root of the repository'}")


def _one_line(error: BaseException) -> str:
  """The last line of a message, where libraries that wrap tracebacks put the cause."""
  lines = [line for line in str(error).splitlines() if line.strip()]
  return lines[-1].strip() if lines else type(error).__name__


# -- values -----------------------------------------------------------------------------------------------------------


def literal(text: str):
  """`text` as a Python literal, with `dict(name=...)` allowed; raises a `ValueError` for any other text."""

  def value(node):
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args and (
        all(keyword.arg for keyword in node.keywords)):
      return {keyword.arg: value(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict):
      return {value(key): value(entry) for key, entry in zip(node.keys, node.values, strict=True)}
    if isinstance(node, ast.Tuple | ast.List):
      return tuple(map(value, node.elts))
    return ast.literal_eval(node)

  try:
    return value(ast.parse(text.strip(), mode="eval").body)
  except (SyntaxError, TypeError, AttributeError, RecursionError, MemoryError) as error:
    raise ValueError(str(error)) from error


def _value(text: str, before, key: str):
  """`text` as a value of `key` in the place of `before`; raises where it begins like a tuple or a dict but is none."""
  try:
    found = literal(text)
  except ValueError as error:
    if re.match(r"\s*([(\[{]|dict\()", text) and not isinstance(before, str):
      raise ConfigError(f"--config.{key}: {text!r} is no Python literal; strings in it need quotes, and the shell "
                        "takes quotes away that have no others around them, as in "
                        "--config.stages=\"('representation',)\"") from error
    found = text
  if isinstance(before, bool) and text.lower() in ("true", "false"):
    return text.lower() == "true"
  if isinstance(before, str) and not isinstance(found, str | Mapping | tuple):
    return text
  if isinstance(before, float) and isinstance(found, int) and not isinstance(found, bool):
    return float(found)
  return found


def override(config: ConfigDict, key: str, text: str) -> None:
  """Sets the value at the dotted `key` of `config` to the value of `text`."""
  *above, last = key.split(".")
  block, where = config, ""
  for index, name in enumerate(above):
    where = ".".join(above[:index + 1])
    if not isinstance(block, ConfigDict) or name not in block:
      raise _no_key(config, key)
    if name in LISTS and isinstance(block[name], tuple | list):
      block[name] = tuple(_in_list(block[name], LISTS[name], where, above[index + 1:] + [last], text))
      return
    block = block[name]
  if not isinstance(block, ConfigDict):
    raise ConfigError(f"--config.{key}: {where} is {bind.show(block)} and has no keys; give a complete block, "
                      f"--config.{where}=\"dict(name='...', {last}={text})\"")
  if last not in block and "name" not in block:
    raise _no_key(config, key)
  before = block.get(last)
  value = _value(text, before, key)
  if isinstance(before, ConfigDict) and isinstance(value, str):
    inside = next(iter(flat(before, f"{key}.")))
    block = f", or the complete block, --config.{key}=\"dict(name='{text}')\"" if "name" in before else ""
    raise ConfigError(f"--config.{key}: expected a dict or a number, got {text!r}; its values can be set one by one, "
                      f"as in --config.{inside}=...{block}")
  with block.unlocked(), block.ignore_type():
    if isinstance(value, Mapping) and last in block:
      del block[last]  # a new dict replaces the old one; assignment would merge the two
    block[last] = ConfigDict(value) if isinstance(value, Mapping) else value
    if key == "stages" and isinstance(value, tuple):
      for name in set(before or ()) - set(value):  # the blocks of stages that do not run
        if name in block:
          del block[name]


def _keys(config: ConfigDict) -> list[str]:
  """The keys of every value, with the stages' blocks in the order of the stages."""
  order = {name: index for index, name in enumerate(config.get("stages") or ())}
  return sorted(flat(config), key=lambda key: order.get(key.split(".")[0], -1))


def _no_key(config: ConfigDict, key: str) -> ConfigError:
  keys = _keys(config)
  blocks = dict.fromkeys(known[:dot.start()] for known in keys for dot in re.finditer(r"\.", known))
  ends = [known for known in (*keys, *blocks) if known.split(".")[-1] == key.split(".")[-1]]
  near = difflib.get_close_matches(key, keys, n=1, cutoff=0.8) or ends[:1]
  hint = f" (did you mean {near[0]!r}?)" if near else nearest(key, keys)
  return ConfigError(f"--config.{key}: the config has no such key{hint}")


def _in_list(blocks: Sequence, module, where: str, path: Sequence[str], text: str) -> list:
  """`blocks` with the block named `path[0]` changed, added, or removed."""
  name, *inner = path
  choices = bind.public(module)
  blocks = [dict(bind.plain(block)) for block in blocks]
  index = int(name) if name.isdigit() and int(name) < len(blocks) else next(
      (index for index, block in enumerate(blocks) if block.get("name") == name), None)
  if index is None and name not in choices:
    raise ConfigError(f"--config.{where}.{name}: there is no operation {name!r}{nearest(name, choices)}; there are "
                      f"{', '.join(sorted(choices))}")
  block = dict(name=name) if index is None else blocks[index]
  if len(inner) == 1:
    block[inner[0]] = _value(text, block.get(inner[0]), f"{where}.{'.'.join(path)}")
  elif inner:
    raise ConfigError(f"--config.{where}.{'.'.join(path)}: expected {where}.{name}.ARGUMENT")
  else:
    value = _value(text, None, f"{where}.{name}")
    if value is None or value is False or value == 0:
      return [other for number, other in enumerate(blocks) if number != index]
    if isinstance(value, Mapping):
      block = dict(value, name=name)
    elif value is not True:
      first = next(iter(bind.hyper_parameters(choices[name])), None)
      if first is None:
        raise ConfigError(f"--config.{where}.{name}: {name} takes no arguments; give True or False")
      block[first] = value
  return [*blocks, block] if index is None else [*blocks[:index], block, *blocks[index + 1:]]
