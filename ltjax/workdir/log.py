"""The logs of a run and its stages, one JSON object per line."""

import collections
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Callable, Mapping

from ltjax import errors
from ltjax.distributed import processes
from ltjax.errors import SaveError, WorkdirError
from ltjax.workdir.durable import make_folder, sync, write_durably

_TYPES = dict(step=int, event=str)  # the key that every line has: in a stage's log its step, in the events their kind


class Journal:
  """The log of a stage, consistent with its checkpoints: lines after the step where the stage resumes are removed.

  The first process reads and writes the file; all processes know the lines.
  """

  def __init__(self, path: pathlib.Path, *, upto: int, logs: Mapping[str, Mapping] | None = None,
               on_loss: Callable[[str], None] = lambda message: None):
    """
    Args:
      path: the file.
      upto: the step where the stage resumes, the last one whose lines stay.
      logs: `Checkpoints.logs`, the marks of all logs in the checkpoint that the stage resumes from. Lines that the
        checkpoint knows and the file lacks are reported on stderr, since their loss would silently change results: the
        best epoch, the count of skipped steps, the scores on held-out images.
      on_loss: called with each such report.
    """
    self._path = path
    self._lines = processes.from_first(lambda: _resume(path, upto, (logs or {}).get(path.name), on_loss))
    self._digest = hashlib.sha256(_text(self._lines).encode())  # grows with each line, so that a mark costs nothing
    self._follow = lambda entries: None

  def follow(self, start: Callable[[list[dict]], Callable[[dict], None]]) -> None:
    """`start(lines so far)` returns what is called with each new line; for the first process only."""
    if processes.is_first():
      self._follow = start(list(self._lines))

  def has(self, step: int, key: str) -> bool:
    """Whether a line of `step` has `key`."""
    return any(line["step"] == step and key in line for line in self._lines)

  def values(self, key: str) -> dict[int, object]:
    """{step: value of `key`} of the lines that have it."""
    return {line["step"]: line[key] for line in self._lines if key in line}

  def count(self, key: str) -> int:
    """The number of lines that have `key`."""
    return sum(key in line for line in self._lines)

  def write(self, **entries) -> None:
    """Appends one line."""
    self._lines.append(entries)
    self._digest.update(_text([entries]).encode())
    if processes.is_first():
      append(self._path, entries)
      self._follow(entries)

  def mark(self) -> dict[str, dict]:
    """{file name: number, last step and hash of the lines so far}, for a checkpoint's manifest."""
    return {self._path.name: _mark(self._lines, self._digest)}

  def flush(self) -> None:
    """Waits until all lines are on the disk; called before a checkpoint is committed."""
    if processes.is_first() and self._path.exists():
      with errors.writing(self._path):
        sync(self._path)


class Events:
  """Events that a run survived, such as a damaged checkpoint: one JSON object per line, retained through restarts."""

  def __init__(self, path: pathlib.Path):
    self._path = path

  def write(self, kind: str, message: str) -> None:
    """Adds an event; for the first process only."""
    append(self._path, dict(event=kind, message=message))
    with errors.writing(self._path):
      sync(self._path)

  def counts(self) -> dict[str, int]:
    """The number of events of each kind; an unreadable line is reported on stderr and left out."""
    counts = collections.Counter()
    for number, content in _parsed(self._path, "event"):
      if content is None:
        print(f"WARNING: {self._path}:{number}: not a line that ltjax wrote; it is left out", file=sys.stderr)
      else:
        counts[content["event"]] += 1
    return counts


def append(path: pathlib.Path, entries: dict) -> None:
  """Adds a line to a log, after removing an incomplete last line that a crash may have left."""
  with errors.writing(path):
    try:
      # Opened anew for each line: a file that stays open would follow a moved folder unnoticed.
      with path.open("a+b") as file:
        _remove_half_line(file)
        file.write(_text([entries]).encode())
    except FileNotFoundError as error:
      raise SaveError(f"{path.parent} is gone: the work folder was moved or removed during the run; move it back, or "
                      "give its new path as --workdir, and run the same command again") from error


def read(path: pathlib.Path, key: str = "step", flushed: int | None = None) -> list[dict]:
  """The lines of a log, which all have `key`.

  A last line that a crash cut short is left out, with a warning. The first `flushed` lines were on the disk before the
  newest checkpoint. After them a power cut may leave anything, so everything from the first unreadable line on is left
  out there, with a warning; the run is about to write it again.

  Raises:
    WorkdirError: any other line is not as it was written.
  """
  retained, lines = [], list(_parsed(path, key))
  for number, content in lines:
    if content is None:
      if number == len(lines) and not path.read_bytes().endswith(b"\n"):
        print(f"WARNING: {path}: its last line was cut short and is left out", file=sys.stderr)
        break
      if flushed is not None and number > flushed:
        print(f"WARNING: {path}: line {number} cannot be read; it and the lines after it were written after the newest "
              "checkpoint and are left out", file=sys.stderr)
        break
      raise WorkdirError(f"{path}:{number}: not a line that ltjax wrote; repair the line, or move the work folder "
                         "away")
    retained.append(content)
  return retained


def _resume(path: pathlib.Path, upto: int, mark: Mapping | None, on_loss: Callable[[str], None]) -> list[dict]:
  """The lines of a stage that resumes at step `upto`; removes all others from the file."""
  with errors.writing(path):
    make_folder(path.parent)
  lines = read(path, flushed=mark and mark["lines"]) if upto > 0 else []
  retained = [line for line in lines if line["step"] <= upto]
  if mark and hashlib.sha256(_text(retained[:mark["lines"]]).encode()).hexdigest() != mark["sha256"]:
    message = _loss(path, retained, mark)
    print(f"WARNING: {message}", file=sys.stderr)
    on_loss(message)
  with errors.writing(path):
    text = _text(retained)
    if not path.exists() or path.read_bytes() != text.encode():
      write_durably(path, text)
  return retained


def _loss(path: pathlib.Path, lines: list[dict], mark: Mapping) -> str:
  if len(lines) >= mark["lines"]:
    return f"{path}: a line up to step {mark['last_step']} is not as it was written; results are taken from it"
  newest = max((line["step"] for line in lines), default=0)
  where = f"those after step {newest}" if newest < mark["last_step"] else "some before its end"
  return (f"{path}: {len(lines)} of the {mark['lines']} lines up to step {mark['last_step']} are there, {where} are "
          "missing; best epochs, skipped steps and held-out scores are taken from those that are there")


def _mark(lines: list[dict], digest) -> dict:
  return dict(lines=len(lines), last_step=max((line["step"] for line in lines), default=0), sha256=digest.hexdigest())


def _text(lines: list[dict]) -> str:
  return "".join(json.dumps(line) + "\n" for line in lines)


def _parsed(path: pathlib.Path, key: str):
  """(number, content) of each line; the content is None unless it is an object with such a key."""
  lines = path.read_bytes().split(b"\n") if path.is_file() else [b""]
  for number, line in enumerate(lines if lines[-1] else lines[:-1], 1):
    try:
      content = json.loads(line)
      valid = isinstance(content, dict) and isinstance(content.get(key), _TYPES[key])
    except (ValueError, RecursionError):
      valid = False
    yield number, content if valid else None


def _remove_half_line(file) -> None:
  """Cuts an open log after its last complete line; adds the newline if the last line lacks only that."""
  size = file.seek(0, os.SEEK_END)
  if not size:
    return
  file.seek(size - 1)
  if file.read(1) == b"\n":
    return
  file.seek(0)
  last = file.read().rpartition(b"\n")[2]
  try:
    json.loads(last)
    file.write(b"\n")
  except (ValueError, RecursionError):
    file.truncate(size - len(last))
