"""TensorFlow and TFDS, imported where they are needed: without their greetings, and away from the accelerator."""

import contextlib
import importlib
import os
import sys
from types import ModuleType


@contextlib.contextmanager
def no_greetings():
  """Drops what libraries write to file descriptor 2 from C++, which would break the progress bar."""
  sys.stderr.flush()
  try:
    saved = os.dup(2)
  except OSError:  # there is no standard error
    yield
    return
  try:
    with open(os.devnull, "w") as nowhere:
      os.dup2(nowhere.fileno(), 2)
    yield
  finally:
    os.dup2(saved, 2)
    os.close(saved)


def tensorflow() -> ModuleType:
  """The module `tensorflow`; raises an `ImportError` where it is missing."""
  if loaded := sys.modules.get("tensorflow"):
    return loaded
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  with no_greetings():
    module = importlib.import_module("tensorflow")
    module.config.set_visible_devices([], "GPU")  # it would take all of the accelerator's memory
    module.constant(0)  # its runtime logs when it starts
  return module


def tensorflow_datasets() -> ModuleType:
  """The module `tensorflow_datasets`; raises an `ImportError` where it is missing."""
  tensorflow()
  if loaded := sys.modules.get("tensorflow_datasets"):
    return loaded
  with no_greetings():
    return importlib.import_module("tensorflow_datasets")
