"""Long-tailed visual recognition in JAX and Flax."""

import importlib
import sys

from ltjax.commands import moved

__version__ = "0.2.0"

sys.meta_path.append(moved.Finder())
if sys.argv[:1] == ["-m"]:  # the interpreter is about to run a module of this package
  moved.refuse(sys.orig_argv)


def __getattr__(name: str):
  """`ltjax.run`, loaded when somebody asks for it: the losses need nothing of what it imports."""
  if name == "run":
    return importlib.import_module("ltjax.main").run
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
