"""A stage's log: one JSON object a line, never out of step with the checkpoints; and what a run has to own up to."""

import collections
import json
import os
import pathlib
import sys

from ltjax import errors
from ltjax.distributed import processes
from ltjax.errors import WorkdirError


class Journal:
  """Appends lines to `path`; what lies beyond step `upto`, where the run resumes, is cut away first.

  The first process reads and writes the file; all know the lines.
  """

  def __init__(self, path: pathlib.Path, *, upto: int):
    self._path = path
    self._lines = processes.from_first(lambda: _cut(path, upto))

  def has(self, step: int, key: str) -> bool:
    """Whether a line of `step` has `key`."""
    return any(line["step"] == step and key in line for line in self._lines)

  def values(self, key: str) -> dict[int, object]:
    """{step: what `key` is there} of the lines that have it."""
    return {line["step"]: line[key] for line in self._lines if key in line}

  def count(self, key: str) -> int:
    """The number of lines that have `key`."""
    return sum(key in line for line in self._lines)

  def write(self, **entries) -> None:
    """Appends one line."""
    self._lines.append(entries)
    if processes.is_first():
      append(self._path, entries)


class Events:
  """What happened that nobody asked for: one JSON object a line of `path`, kept through all restarts of a run."""

  def __init__(self, path: pathlib.Path):
    self._path = path

  def write(self, kind: str, message: str) -> None:
    """Adds an event; called by the first process."""
    append(self._path, dict(event=kind, message=message))

  def counts(self) -> dict[str, int]:
    """The number of events of each kind."""
    return collections.Counter(line["event"] for line in read(self._path, "event"))


def append(path: pathlib.Path, entries: dict) -> None:
  """Adds a line to a log and waits until it is on the disk; half a line that a crash left is cut off first."""
  with errors.writing(path), path.open("ab+") as file:
    content = file.tell() and path.read_bytes()
    if content and not content.endswith(b"\n"):
      file.truncate(content.rfind(b"\n") + 1)
    file.write(json.dumps(entries).encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())


def write_durably(path: pathlib.Path, text: str) -> None:
  """Writes a file that is complete or not there, also after a power cut."""
  partial = path.with_suffix(".tmp")
  try:
    with partial.open("w", encoding="utf-8", errors="surrogateescape") as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())
    partial.replace(path)
  except OSError:
    partial.unlink(missing_ok=True)
    raise
  folder = os.open(path.parent, os.O_RDONLY)
  try:
    os.fsync(folder)
  finally:
    os.close(folder)


def read(path: pathlib.Path, key: str = "step") -> list[dict]:
  """The lines of a log, which all have `key`; a last line cut short by a crash is left out.

  Raises:
    WorkdirError: another line is not as it was written.
  """
  if not path.is_file():
    return []
  found, lines = [], path.read_bytes().splitlines(keepends=True)
  for number, line in enumerate(lines, 1):
    try:
      content = json.loads(line)
      content[key]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
      if number == len(lines) and not line.endswith(b"\n"):
        print(f"WARNING: {path}: its last line was cut short and is left out", file=sys.stderr)
        break
      raise WorkdirError(f"{path}:{number}: not a line that ltjax has written; mend the line, or move the work folder "
                         "away") from error
    found.append(content)
  return found


def _cut(path: pathlib.Path, upto: int) -> list[dict]:
  with errors.writing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
  kept = [line for line in read(path) if line["step"] <= upto]
  with errors.writing(path):
    write_durably(path, "".join(json.dumps(line) + "\n" for line in kept))
  return kept
