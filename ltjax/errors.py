"""Errors that a user can fix: one sentence that says what, where, expected, got and how to fix it."""

import contextlib
import difflib
import pathlib
from collections.abc import Iterable


class LtjaxError(ValueError):
  """Base of all errors that ltjax raises on purpose; the command line prints them without a traceback, exit code 2."""


class ConfigError(LtjaxError):
  """An argument or a config value is wrong."""


class DataError(LtjaxError):
  """The data are missing, damaged or not what the config says."""


class WorkdirError(LtjaxError):
  """The work folder cannot be used, or belongs to another run."""


class SaveError(LtjaxError):
  """A checkpoint or another file of the work folder could not be written."""


class TrainingError(LtjaxError):
  """A loss, a gradient or a parameter became infinite or NaN."""


class MissingProcess(LtjaxError):
  """Another process of the run did not start or was lost; exit code 69."""


@contextlib.contextmanager
def writing(path: pathlib.Path):
  """Wraps code that writes a file of the work folder: turns an `OSError` into a `SaveError`."""
  try:
    yield
  except OSError as error:
    raise SaveError(f"{error.filename or path} cannot be written ({error.strerror or error}); the newest checkpoint "
                    "is intact: make room or repair the folder and run the same command again") from error


def nearest(name: str, choices: Iterable[str]) -> str:
  """' (did you mean ...?)' if one of `choices` is close to `name`, else ''."""
  close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
  return f" (did you mean {close[0]!r}?)" if close else ""
