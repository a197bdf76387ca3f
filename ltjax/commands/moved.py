"""Tells in one line where a command went that used to be a module of another name."""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence

COMMANDS = {"ltjax.predict": "predict", "ltjax.debug_step": "debug_step", "ltjax.data.verify": "verify"}
# These modules stay; only their command lines moved.
_PROGRAMS_MOVED = {"ltjax.data.archives": "unpack", "ltjax.data.records": "convert"}
_PROGRAMS = ("ltjax", "ltjax.main", "ltjax.__main__")


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
  """Finds the old paths of commands: `python -m` with one runs the command, importing one raises an `ImportError`."""

  def find_spec(self, name, path=None, target=None):
    """The spec of an old path; None for every other name."""
    return importlib.machinery.ModuleSpec(name, self, origin=__file__) if name in COMMANDS else None

  def create_module(self, spec):
    """Raises: an old path cannot be imported."""
    raise ImportError(_sentence(spec.name), name=spec.name)

  def exec_module(self, module):
    """Never reached."""

  def get_code(self, name):
    """The code that `python -m` runs instead of an old path."""
    print(f"note: {_sentence(name)}", file=sys.stderr)
    spec = importlib.util.find_spec(f"ltjax.commands.{COMMANDS[name]}")
    return spec.loader.get_code(spec.name)


def refuse(arguments: Sequence[str]) -> None:
  """Ends `python -m ltjax.NAME` with exit code 2 if NAME is not a program: it would do nothing and report success.

  `arguments` are the interpreter's.
  """
  name = arguments[arguments.index("-m") + 1] if "-m" in arguments[:-1] else ""
  if name.split(".")[0] != "ltjax" or name in _PROGRAMS or name in COMMANDS or name.startswith(
      "ltjax.commands."):
    return
  print(f"error: {_sentence(name)}", file=sys.stderr)
  sys.exit(2)


def _sentence(name: str) -> str:
  if command := COMMANDS.get(name) or _PROGRAMS_MOVED.get(name):
    return (f"{name} is a command: run `python -m ltjax {command}` or `ltjax {command}`; in code, import "
            f"ltjax.commands.{command}")
  return (f"{name} is a module to import, not a program; `python -m ltjax` lists the commands, and training is "
          "`python -m ltjax.main --config=FILE --workdir=DIR`")
