"""A stage's log: one JSON object a line, never out of step with the checkpoints."""

import json
import pathlib


class Journal:
  """Appends lines to `path`; what lies beyond step `upto`, where the run resumes, is cut away first."""

  def __init__(self, path: pathlib.Path, *, upto: int):
    self._path = path
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [line for line in read(path) if line["step"] <= upto]
    partial = path.with_suffix(".tmp")
    partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
    partial.replace(path)

  def write(self, **entries) -> None:
    """Appends one line."""
    with self._path.open("a") as file:
      file.write(json.dumps(entries) + "\n")


def read(path: pathlib.Path) -> list[dict]:
  """The lines of a log; a last line cut short by a crash is left out."""
  if not path.is_file():
    return []
  lines = []
  for line in path.read_text().splitlines():
    try:
      lines.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return lines
