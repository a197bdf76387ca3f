"""Standard output and error that never end a run: what cannot be written there is dropped."""

import os
import sys
from typing import TextIO


class Lossy:
  """A stream whose errors are swallowed: a closed pipe, a full disk, a character that its encoding lacks."""

  def __init__(self, stream: TextIO):
    self._stream = stream
    if hasattr(stream, "reconfigure"):
      stream.reconfigure(errors="backslashreplace")

  def write(self, text: str) -> int:
    """Writes `text`, or drops it."""
    try:
      return self._stream.write(text)
    except (OSError, ValueError):
      self._give_up()
      return len(text)

  def flush(self) -> None:
    """Flushes, or gives the stream up."""
    try:
      self._stream.flush()
    except (OSError, ValueError):
      self._give_up()

  def _give_up(self) -> None:
    # Python flushes the real stream once more at its end, and would then exit with 120.
    try:
      nowhere = os.open(os.devnull, os.O_WRONLY)
      os.dup2(nowhere, self._stream.fileno())
      os.close(nowhere)
    except (OSError, ValueError):
      pass

  def __getattr__(self, name: str):
    return getattr(self._stream, name)


def protect() -> None:
  """Makes standard output and error `Lossy`; called by programs, never by the library."""
  sys.stdout, sys.stderr = (stream and Lossy(stream) for stream in (sys.stdout, sys.stderr))
