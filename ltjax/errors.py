"""Errors that a user can mend: one sentence each, what, where, expected, got, how to mend."""

import difflib
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
  """A checkpoint could not be written."""


class TrainingError(LtjaxError):
  """The numbers went wrong."""


class MissingProcess(LtjaxError):
  """Another process of the run did not come, or is lost; exit code 69."""


def nearest(name: str, choices: Iterable[str]) -> str:
  """' (did you mean ...?)' where one of `choices` is close to `name`, else ''."""
  close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
  return f" (did you mean {close[0]!r}?)" if close else ""
