"""Which images there are and of which class: class folders, the field's split lists, CSV tables. Reads no image.

Everything here may lie on gs:// as well. Paths are relative to a root, with forward slashes, and stay inside it.
"""

import contextlib
import csv
import hashlib
import io
import lzma
import os
import pathlib
import platform
import posixpath
import zipfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from ltjax.data import archives
from ltjax.errors import DataError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
_ARCHIVES = (".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip")
_LIST_BYTES = 2**28  # ten times the longest list of the field: an .xz that unpacks to more is not one


class Listing(NamedTuple):
  """n images: their paths, and int64 [n] their class, or the name of it."""

  paths: Sequence[str]
  labels: np.ndarray


# -- what a config names ----------------------------------------------------------------------------------------------


def existing_folder(path: str, key: str) -> epath.Path:
  """The folder that `dataset.<key>` names, or one error that says what is there instead."""
  if not path:
    raise DataError(f"dataset.{key}: empty; say where the images are with --config.dataset.{key}=DIR")
  found = epath.Path(path).expanduser()
  with _reached(found, key):
    is_there = found.exists()
  if not is_there:
    raise DataError(f"dataset.{key}: no folder {path!r}; give the one that holds the images")
  if found.is_dir():
    return found
  if found.suffix.lower() in _ARCHIVES:
    raise DataError(f"dataset.{key}: {path} is an archive; unpack it with '{archives.COMMAND}', and give that DIR")
  raise DataError(f"dataset.{key}: {path} is a file, expected a folder")


def read_bytes(path: str | os.PathLike, key: str) -> bytes:
  """The bytes of a text file that `dataset.<key>` names, unpacked where it ends in .xz."""
  found = epath.Path(path).expanduser()
  with _reached(found, key):
    is_there = os.fspath(path) and found.exists() and not found.is_dir()
  if not is_there:
    raise DataError(f"dataset.{key}: {f'no file {str(path)!r}' if os.fspath(path) else 'empty'}; give a file with "
                    f"--config.dataset.{key}=FILE")
  data = found.read_bytes()
  if found.suffix != ".xz":
    return data
  try:
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ)
    data = unpacker.decompress(data, _LIST_BYTES)
  except lzma.LZMAError as error:
    raise DataError(f"{path}: not an .xz file, or a damaged one ({error}); fetch it again") from error
  if not unpacker.eof:
    raise DataError(f"{path}: {'cut off' if unpacker.needs_input else f'unpacks to over {_LIST_BYTES:,} bytes'}, "
                    "so it is not a list of images; fetch it again")
  return data


def _text(path: str, key: str) -> str:
  data = read_bytes(path, key)
  if zipfile.is_zipfile(io.BytesIO(data)) or b"\0" in data[:1024]:
    raise DataError(f"dataset.{key}: {path} is not a text file; if it is an archive, unpack it with "
                    f"'{archives.COMMAND}'")
  try:
    return data.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise DataError(f"dataset.{key}: {path} is not UTF-8 text ({error.reason} at byte {error.start})") from error


def _lines(path: str, key: str) -> list[str]:
  """The lines of a text; str.splitlines would also split at characters that file names may hold."""
  text = _text(path, key)
  return text.removesuffix("\n").split("\n") if text.strip() else []


def class_names(path: str) -> tuple[str, ...]:
  """One class name a line; line k is label k, from 0."""
  names = tuple(line.strip() for line in _lines(path, "class_names"))
  first = {}
  for number, name in enumerate(names, 1):
    if not name:
      raise DataError(f"{path}:{number}: blank line, expected a class name")
    if first.setdefault(name, number) != number:
      raise DataError(f"{path}:{number}: class {name!r} stands in line {first[name]} already")
  if not names:
    raise DataError(f"{path}: empty, expected a class name a line")
  return names


@contextlib.contextmanager
def _reached(path: epath.Path, key: str) -> Iterator[None]:
  """Turns what a remote file system raises, each its own errors, into one of ours."""
  try:
    yield
  except Exception as error:
    if _is_local(path):
      raise
    reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
    raise DataError(f"dataset.{key}: {path} cannot be reached ({reason[0][:300]})") from error


# -- lists and tables -------------------------------------------------------------------------------------------------


def split_list(path: str, key: str, *, classes: int | None = None) -> Listing:
  """The field's official lists: a line is `<path> <label>`; .txt or .txt.xz.

  Args:
    path: of the list.
    key: of the config, for messages.
    classes: how many there are, where that is known.
  """
  rows = []
  for number, line in enumerate(_lines(path, key), 1):
    parts = line.rsplit(maxsplit=1)
    if not parts:
      raise DataError(f"{path}:{number}: blank line, expected '<path> <label>'; take it out")
    if len(parts) < 2 or not (parts[1].isascii() and parts[1].removeprefix("-").isdecimal()):
      raise DataError(f"{path}:{number}: expected '<path> <label>' with a whole number at the end, got {line[:100]!r}")
    label = int(parts[1][:20])  # what is longer is out of range either way
    if not 0 <= label < (classes or 2**31):
      raise DataError(f"{path}:{number}: label {label} is out of range, expected 0 to "
                      f"{classes - 1 if classes else 2**31 - 1}")
    rows.append((number, parts[0], label))
  return _listing(path, rows, np.int64)


def table(path: str, key: str) -> Listing:
  """A CSV of two columns, path and class name; a first row whose path is not an image's is taken for the heading."""
  rows, reader = [], csv.reader(io.StringIO(_text(path, key), newline=""), strict=True)
  try:
    for row in reader:
      number = reader.line_num
      if not any(cell.strip() for cell in row):
        raise DataError(f"{path}:{number}: blank line, expected '<path>,<class name>'; take it out")
      if len(row) != 2 or not all(cell.strip() for cell in row):
        raise DataError(f"{path}:{number}: expected two columns, path and class name, got {','.join(row)[:100]!r}")
      name, label = row[0].strip(), row[1].strip()
      if name.lower().endswith(SUFFIXES):
        rows.append((number, name, label))
      elif number > 1:
        raise DataError(f"{path}:{number}: {name[:100]!r} is no image by its name ({', '.join(SUFFIXES)})")
  except csv.Error as error:
    raise DataError(f"{path}:{reader.line_num}: not a line of a CSV ({error})") from error
  return _listing(path, rows, None)


def _listing(path: str, rows: list[tuple], kind) -> Listing:
  """The rows (line number, image, label), after a check that each image is inside the root and there once."""
  first, paths = {}, []
  for number, name, _ in rows:
    inside = posixpath.normpath(name)
    if inside.startswith(("/", "../")) or inside == ".." or "://" in name:
      raise DataError(f"{path}:{number}: {name!r} is outside the root; paths are relative to it and stay inside")
    if first.setdefault(inside, number) != number:
      raise DataError(f"{path}:{number}: {name!r} stands in line {first[inside]} already")
    paths.append(inside)
  if not rows:
    raise DataError(f"{path}: no image is listed")
  return Listing(paths, np.array([label for *_, label in rows], kind))


# -- class folders ----------------------------------------------------------------------------------------------------


def has_images(folder: epath.Path) -> bool:
  """Whether images lie in `folder` itself, not in folders below it."""
  return any(is_image(path.name) for path in folder.iterdir())


def class_folders(root: epath.Path, key: str, cache: pathlib.Path | None = None) -> tuple[Listing, tuple[str, ...]]:
  """Every image of a folder a class, and the class names, both sorted.

  Images may lie at any depth below their class, on gs:// right in its folder only. Hidden files and files that are no
  images by their name are passed over.

  Args:
    root: the folder of the class folders.
    key: of the config, for messages.
    cache: a folder to keep the listing in. It is used again while no folder below `root` has changed; gs:// has no
      times of folders, so there it is used until it is deleted.

  Raises:
    DataError: no class folder, or one without an image.
  """
  whole = os.path.abspath(root) if _is_local(root) else str(root)
  kept = None if cache is None else cache / f"folder-{hashlib.sha256(os.fsencode(whole)).hexdigest()[:16]}.npz"
  found = load_arrays(kept, "paths", "labels", "names", "folders", "times") if kept else None
  if found is None or not np.array_equal(_times(root, found["folders"]), found["times"]):
    found = _local_folders(root) if _is_local(root) else _remote_folders(root)
    names = found["names"]
    if not names:
      raise DataError(f"dataset.{key}: no folder in {root}, expected one for each class")
    if empty := [names[c] for c in np.setdiff1d(np.arange(len(names)), found["labels"])]:
      raise DataError(f"dataset.{key}: no image in the folder of class {', '.join(map(repr, empty[:5]))}"
                      f"{f' and {len(empty) - 5} more' if len(empty) > 5 else ''} of {root}; add images "
                      f"({', '.join(SUFFIXES)}) or take the folder away")
    if kept:
      store_arrays(kept, **found)
  return Listing(found["paths"], found["labels"]), tuple(found["names"])


def _is_local(path: epath.Path) -> bool:
  return "://" not in str(path)


def is_image(name: str) -> bool:
  """Whether a file is taken for an image by its name."""
  return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _local_folders(root: epath.Path) -> dict:
  def fail(error: OSError):
    raise error

  with os.scandir(root) as entries:
    names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
  paths, counts, folders, top = [], [], [""], str(root)
  for name in names:
    of_class = []
    for folder, below, files in os.walk(os.path.join(top, name), onerror=fail):
      for other in below:
        if os.path.islink(os.path.join(folder, other)):
          raise DataError(f"{folder}/{other}: a linked folder inside a class folder; only class folders themselves and "
                          "images may be links")
      relative = os.path.relpath(folder, top).replace(os.sep, "/")
      folders.append(relative)
      of_class.extend(f"{relative}/{file}" for file in files if is_image(file))
    paths.extend(sorted(of_class))
    counts.append(len(of_class))
  return dict(paths=paths, labels=np.repeat(np.arange(len(names)), counts), names=names, folders=folders,
              times=_times(root, folders))


def _remote_folders(root: epath.Path) -> dict:
  """One listing of everything: on gs:// each question about a single folder is a request."""
  paths = sorted("/".join(path.parts[-2:]) for path in root.glob("*/*") if is_image(path.name))
  parents = np.array([path.partition("/")[0] for path in paths])
  names, labels = np.unique(parents, return_inverse=True)
  return dict(paths=paths, labels=labels, names=names.tolist(), folders=[""], times=_times(root, [""]))


def _times(root: epath.Path, folders: Sequence[str]) -> np.ndarray:
  """When each folder changed, in ns; -1 for one that has gone, 0 on gs://."""
  def time(folder: str) -> int:
    try:
      return os.stat(os.path.join(root, folder)).st_mtime_ns if _is_local(root) else 0
    except FileNotFoundError:
      return -1

  return np.array([time(folder) for folder in folders], np.int64)


# -- the cache --------------------------------------------------------------------------------------------------------


def store_arrays(path: pathlib.Path, **content: np.ndarray | Sequence[str]) -> None:
  """Keeps arrays and lists of strings in an .npz without pickles; where that cannot be written, they are not kept."""
  # A file name may hold every character but NUL, and bytes that are no UTF-8.
  arrays = {key: value if isinstance(value, np.ndarray) else
            np.frombuffer("\0".join(value).encode("utf-8", "surrogateescape"), np.uint8)
            for key, value in content.items()}
  partial = path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}")  # all processes of a run write it
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(partial, "wb") as file:
      np.savez(file, **arrays)
    partial.replace(path)
  except OSError:
    with contextlib.suppress(OSError):
      partial.unlink()


def load_arrays(path: pathlib.Path, *keys: str) -> dict | None:
  """The `keys` of what `store_arrays` kept, or None where that is not there or not whole."""
  try:
    with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
      found = {key: file[key] for key in keys}
      return {key: value if value.dtype != np.uint8 else
              value.tobytes().decode("utf-8", "surrogateescape").split("\0") for key, value in found.items()}
  # A .zip may hold other things than arrays, and a single array is no .zip.
  except (OSError, ValueError, EOFError, KeyError, AttributeError, TypeError, IndexError, zipfile.BadZipFile):
    return None
