"""Old module paths: what moved is found under its old name, and what cannot be run tells in one line where it went."""

import importlib.abc
import importlib.machinery
import importlib.util
import pathlib
import sys
from collections.abc import Sequence

COMMANDS = {"ltjax.predict": "predict", "ltjax.debug_step": "debug_step", "ltjax.data.verify": "verify"}
# Modules by their paths in 0.1, and where they are now; importing an old path gives the same module.
MODULES = {
    "ltjax.cams": "report.activation_maps", "ltjax.checkpoint": "workdir.checkpoint", "ltjax.evaluate": "data.evaluate",
    "ltjax.feed": "data.feed", "ltjax.journal": "workdir.log", "ltjax.lock": "workdir.lock",
    "ltjax.manifest": "workdir.manifest", "ltjax.plots": "report.plots", "ltjax.prng": "data.prng",
    "ltjax.processes": "distributed.processes", "ltjax.sharding": "distributed.sharding",
    "ltjax.signals": "distributed.signals", "ltjax.watchdog": "distributed.watchdog"}
# Modules that stay, whose command lines moved.
_PROGRAMS_MOVED = {"ltjax.data.archives": "unpack", "ltjax.data.records": "convert"}
_PROGRAMS = ("ltjax", "ltjax.main", "ltjax.__main__")


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
  """Finds old paths: `python -m` with that of a command runs it, importing it raises an `ImportError`."""

  def find_spec(self, name, path=None, target=None):
    """The spec of an old path; None for every other name."""
    known = name in COMMANDS or name in MODULES
    return importlib.machinery.ModuleSpec(name, self, origin=__file__) if known else None

  def create_module(self, spec):
    """None for a module; raises for the old path of a command, which cannot be imported."""
    if spec.name in COMMANDS:
      raise ImportError(_sentence(spec.name), name=spec.name)

  def exec_module(self, module):
    """Puts the module that moved in the place of the empty one."""
    sys.modules[module.__name__] = importlib.import_module(f"ltjax.{MODULES[module.__name__]}")

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
  if name.split(".")[0] != "ltjax" or name in _PROGRAMS or name in COMMANDS or is_command(name):
    return
  print(f"error: {_sentence(name)}", file=sys.stderr)
  sys.exit(2)


def is_command(name: str) -> bool:
  """Whether a module is a file in the folder of the commands, and not this one."""
  folder, _, command = name.rpartition(".")
  file = pathlib.Path(__file__).parent / f"{command}.py"
  return folder == "ltjax.commands" and command not in ("moved", "__init__") and file.is_file()


def _sentence(name: str) -> str:
  if command := COMMANDS.get(name) or _PROGRAMS_MOVED.get(name):
    return (f"{name} is a command: run `python -m ltjax {command}` or `ltjax {command}`; in code, import "
            f"ltjax.commands.{command}")
  return (f"{name} is a module to import, not a program; `python -m ltjax` lists the commands, and training is "
          "`python -m ltjax.main --config=FILE --workdir=DIR`")
