"""Shipped configs as trees of plain dicts, so that tests can change one key or value of them."""

import copy
import functools
import importlib
import pathlib
from collections.abc import Iterator

import pytest
from ml_collections import ConfigDict

from ltjax.config import parse
from ltjax.errors import ConfigError

SHIPPED = sorted(path.stem for path in (pathlib.Path(__file__).parents[2] / "configs").glob("*.py"))
ABSENT = object()


@functools.cache
def shipped(name: str) -> ConfigDict:
  """A shipped config with its default argument; not to be changed."""
  return importlib.import_module(f"configs.{name}").get_config()


def tree(name: str) -> dict:
  """A shipped config as nested dicts, with lists of dicts where it has tuples of blocks."""
  return {key: _unfrozen(value) for key, value in shipped(name).to_dict().items()}


def _unfrozen(value):
  if isinstance(value, dict):
    return {key: _unfrozen(entry) for key, entry in value.items()}
  if isinstance(value, tuple | list) and any(isinstance(entry, dict) for entry in value):
    return [_unfrozen(entry) for entry in value]
  return value


def config(tree: dict) -> ConfigDict:
  """A tree as a config."""

  def frozen(value):
    if isinstance(value, dict):
      return {key: frozen(entry) for key, entry in value.items()}
    return tuple(map(frozen, value)) if isinstance(value, list) else value

  return ConfigDict(frozen(copy.deepcopy(tree)))


def nodes(block, path: tuple = ()) -> Iterator[tuple[tuple, object]]:
  """(path, value) of every key, blocks before their entries; the index in a list is an int in the path."""
  for key, value in block.items() if isinstance(block, dict) else enumerate(block):
    if (*path, key) == ("preset",):  # a record of how the config came about
      continue
    if isinstance(block, dict):
      yield (*path, key), value
    if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(entry, dict) for entry in value)):
      yield from nodes(value, (*path, key))


def parent(block, path: tuple):
  """The block that holds the last key of `path`."""
  return functools.reduce(lambda found, key: found[key], path[:-1], block)


def changed(path: tuple | str, value=ABSENT, *, key: str | None = None, name: str = "gcl_digits") -> ConfigDict:
  """A shipped config with `value` at `path`, or with the last key of `path` called `key`."""
  found = tree(name)
  path = tuple(path.split(".")) if isinstance(path, str) else path
  block = parent(found, path)
  if key is not None:
    block[key] = block.pop(path[-1])
  else:
    block[path[-1]] = value
  return config(found)


def rejected(config, what=None) -> str:
  """The one-line message with which a config is rejected."""
  with pytest.raises(ConfigError) as caught:
    parse(config)
    pytest.fail(f"accepted: {what or config}")
  message = str(caught.value)
  assert message and "\n" not in message
  return message


def every_key(kind=lambda value: None) -> dict[str, list[tuple]]:
  """{config: paths}: each key of the shipped configs once, or once for each `kind` of its values."""
  seen, found = set(), {}
  for name in sorted(SHIPPED, key=lambda name: (not name.endswith("_digits"), name)):  # small networks first
    for path, value in nodes(tree(name)):
      case = tuple(part for part in path if isinstance(part, str)), kind(value)
      if case not in seen:
        seen.add(case)
        found.setdefault(name, []).append(path)
  return found
