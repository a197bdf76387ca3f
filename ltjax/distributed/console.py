"""Keeps standard output and standard error from ending a run: their reader may go away, their disk may fill up.

Imports nothing slow, so that the program can call `protect` before any other import.
"""

import contextlib
import os
import sys


class Lossy:
  """A text stream whose writes never raise: text that cannot be written is lost, and the run goes on.

  All other attributes are the stream's own, so print, warnings, logging and progress bars work as before.
  """

  def __init__(self, stream):
    self._stream = stream

  def __getattr__(self, name: str):
    return getattr(self._stream, name)

  def __iter__(self):
    return iter(self._stream)

  def write(self, text: str) -> int:
    """Writes `text` if possible."""
    try:
      return self._stream.write(text)
    except (OSError, ValueError):  # a closed pipe, a full disk; a stream that is closed
      return len(text)

  def writelines(self, lines) -> None:
    """Writes each of `lines` if possible."""
    for line in lines:
      self.write(line)

  def flush(self) -> None:
    """Flushes if possible. Python also flushes on exit, and would turn a failure there into exit code 120."""
    with contextlib.suppress(OSError, ValueError):
      self._stream.flush()


def protect() -> None:
  """Makes `sys.stdout` and `sys.stderr` lossy, escapes characters outside their encoding, and shows less noise.

  For programs; the library never calls it.
  """
  for name in ("stdout", "stderr"):
    stream = getattr(sys, name)
    if isinstance(stream, Lossy):
      continue
    if stream is None:  # it was closed when the program started
      stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if hasattr(stream, "reconfigure"):
      stream.reconfigure(errors="backslashreplace")
    setattr(sys, name, Lossy(stream))
  sys.unraisablehook = _unraisable


def _unraisable(found, show=sys.unraisablehook) -> None:
  """Shows an exception that nobody can catch, but not those of a save that has failed: it is reported as a whole.

  The writes of tensorstore may end after Orbax has closed the event loop that waited for them.
  """
  if str(found.exc_value) != "Event loop is closed":
    show(found)
