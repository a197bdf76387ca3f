"""Standard output and standard error that cannot end a run: whoever reads them may go away, and their disk may fill up.

Imports nothing that takes time, so that the program can call `protect` before it imports all else.
"""

import contextlib
import os
import sys


class Lossy:
  """A text stream whose writes never raise: what cannot be written is lost, and the run goes on.

  Everything else is the stream's own, so print, warnings, logging and progress bars work as before.
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
    """Flushes if possible. Python flushes on the way out, too, and would turn a failure into exit code 120."""
    with contextlib.suppress(OSError, ValueError):
      self._stream.flush()


def protect() -> None:
  """Makes `sys.stdout` and `sys.stderr` lossy, and turns characters outside their encoding into escapes.

  Called by programs, never by the library.
  """
  for name in ("stdout", "stderr"):
    stream = getattr(sys, name)
    if isinstance(stream, Lossy):
      continue
    if stream is None:  # the program was started with it closed
      stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if hasattr(stream, "reconfigure"):
      stream.reconfigure(errors="backslashreplace")
    setattr(sys, name, Lossy(stream))
