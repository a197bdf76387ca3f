"""Modules that are commands now: their old paths say in one line where they went."""

import importlib.abc
import importlib.machinery
import sys

COMMANDS = {"ltjax.predict": "predict", "ltjax.debug_step": "debug_step", "ltjax.data.verify": "verify"}


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
  """Finds the old paths: importing one raises `ImportError`, `python -m` prints the sentence and exits with 2."""

  def find_spec(self, name, path=None, target=None):
    """The spec of an old path; None for every other name."""
    return importlib.machinery.ModuleSpec(name, self) if name in COMMANDS else None

  def create_module(self, spec):
    """Raises: an old path cannot be imported."""
    raise ImportError(_sentence(spec.name), name=spec.name)

  def exec_module(self, module):
    """Never reached."""

  def get_code(self, name):
    """`python -m` asks for the code of a module."""
    print(f"error: {_sentence(name)}", file=sys.stderr)
    sys.exit(2)


def _sentence(name: str) -> str:
  command = COMMANDS[name]
  return (f"{name} is now a command: run `python -m ltjax {command}` or `ltjax {command}`; in code, import "
          f"ltjax.commands.{command}")
