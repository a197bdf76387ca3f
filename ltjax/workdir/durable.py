"""Writes files and folders so that they survive a power cut.

Imports nothing slow: the lock needs it before any other import.
"""

import os
import pathlib

PARTIAL = ".partial"  # suffix of a file or folder that is being written


def write_durably(path: pathlib.Path, text: str) -> None:
  """Writes `text` to `path` atomically and durably: even after a power cut the file is either the old or the new one.

  Raises:
    OSError: it cannot be written; the old file remains.
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
  """Makes a folder and its missing parents, so that they survive a power cut."""
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
