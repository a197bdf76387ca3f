"""Files and folders of a run that survive a power cut.

Imports nothing that takes time: the lock needs it before all else.
"""

import os
import pathlib

PARTIAL = ".partial"  # ends the name of a file or folder that is being written


def write_durably(path: pathlib.Path, text: str) -> None:
  """Writes `text` to `path` at once and for good: whatever happens, a power cut too, the file is the old or the new.

  Raises:
    OSError: it cannot be written; the file is the old one.
  """
  partial = path.with_name(path.name + PARTIAL)
  try:
    partial.write_text(text, encoding="utf-8", errors="surrogateescape")
    sync(partial)
    partial.replace(path)
    sync(path.parent)
  except OSError:
    partial.unlink(missing_ok=True)
    raise


def make_folder(path: pathlib.Path) -> None:
  """Makes a folder and those above it, where they are missing, so that a power cut does not take them back."""
  missing = [folder for folder in (path, *path.parents) if not folder.exists()]
  path.mkdir(parents=True, exist_ok=True)
  for folder in missing:
    sync(folder.parent)


def sync(path: pathlib.Path) -> None:
  """Waits until the content of a file, or the names in a folder, are on the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
