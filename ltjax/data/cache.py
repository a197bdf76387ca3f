"""Listings that are stored between runs: arrays and lists of strings in an .npz without pickles."""

import contextlib
import os
import pathlib
import platform
import zipfile
from collections.abc import Sequence

import numpy as np


def store_arrays(path: pathlib.Path, **content: np.ndarray | Sequence[str]) -> None:
  """Writes arrays and lists of strings to an .npz; if the folder cannot be written, the cache stays empty."""
  # A file name may hold every character but NUL, and bytes that are not UTF-8.
  arrays = {key: value if isinstance(value, np.ndarray) else
            np.frombuffer("\0".join(value).encode("utf-8", "surrogateescape"), np.uint8)
            for key, value in content.items()}
  partial = path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}")  # all processes of a run write this file
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(partial, "wb") as file:
      np.savez(file, **arrays)
    partial.replace(path)
  except OSError:
    with contextlib.suppress(OSError):
      partial.unlink()


def load_arrays(path: pathlib.Path, *keys: str) -> dict | None:
  """The entries `keys` of a file from `store_arrays`, or None if it is missing or damaged."""
  try:
    with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
      arrays = {key: file[key] for key in keys}
      return {key: value if value.dtype != np.uint8 else
              value.tobytes().decode("utf-8", "surrogateescape").split("\0") for key, value in arrays.items()}
  # A damaged file raises any of these: a .zip may hold other things than arrays, and a single array is not a .zip.
  except (OSError, ValueError, EOFError, KeyError, AttributeError, TypeError, IndexError, zipfile.BadZipFile):
    return None
