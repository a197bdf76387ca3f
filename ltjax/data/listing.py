"""Which images there are and of which class: class folders. Reads no image.

Everything here may be on gs:// as well. Paths are relative to a root, with forward slashes, and stay inside it.
"""

import collections
import contextlib
import hashlib
import os
import pathlib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from ltjax.data import archives
from ltjax.data.cache import load_arrays, store_arrays
from ltjax.errors import DataError

SUFFIXES = (".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_ARCHIVES = (".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip")
# What systems, network disks and tools leave among files, beside names that begin with a dot; in lower case.
_SYSTEM = frozenset((
    "$recycle.bin", "#recycle", "#snapshot", "@eadir", "@recycle", "@recently-snapshot", "@tmp", "__macosx",
    "__pycache__", "desktop.ini", "ehthumbs.db", "ehthumbs_vista.db", "icon\r", "lost+found", "network trash folder",
    "recycler", "system volume information", "temporary items", "thumbs.db", "~snapshot"))
# Keys of what a listing leaves out; every other key is the suffix of files that are not images, such as ".txt".
KINDS = HIDDEN_FILES, HIDDEN_FOLDERS, OUTSIDE = "hidden files", "hidden folders", "images in no class folder"
SPLITS = dict(train=("train", "training"), test=("test", "testing"), val=("val", "valid", "validation"))


class Listing(NamedTuple):
  """n images: their paths, and int64 [n] their class, or the name of it; and how many files of which kind are left out.
  """

  paths: Sequence[str]
  labels: np.ndarray
  left_out: Mapping[str, int] = {}
  notes: tuple[str, ...] = ()


# -- what a config names ----------------------------------------------------------------------------------------------


def existing_folder(path: str, key: str) -> epath.Path:
  """The folder that `dataset.<key>` names, or one error that says what is there instead."""
  if not path:
    raise DataError(f"dataset.{key}: empty; say where the images are with --config.dataset.{key}=DIR")
  found = epath.Path(path).expanduser()
  with reached(found, key):
    is_there = found.exists()
  if not is_there:
    raise DataError(f"dataset.{key}: no folder {path!r}; give the one that holds the images")
  if found.is_dir():
    return found
  if found.suffix.lower() in _ARCHIVES:
    raise DataError(f"dataset.{key}: {path} is an archive; unpack it with '{archives.COMMAND}', and give that DIR")
  raise DataError(f"dataset.{key}: {path} is a file, expected a folder")


@contextlib.contextmanager
def reached(path: epath.Path, key: str) -> Iterator[None]:
  """Turns what a remote file system raises, each its own errors, into one of ours."""
  try:
    yield
  except Exception as error:
    if is_local(path):
      raise
    reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
    raise DataError(f"dataset.{key}: {path} cannot be reached ({reason[0][:300]})") from error


def is_local(path: epath.Path) -> bool:
  """Whether a path is not on gs:// or the like."""
  return "://" not in str(path)


def same_name(name: str) -> str:
  """The one spelling of a name: accents may be composed, as Linux and Windows type them, or decomposed, as macOS does.
  """
  return unicodedata.normalize("NFC", name)


# -- which files count ------------------------------------------------------------------------------------------------


def is_image(name: str) -> bool:
  """Whether a file counts as an image by its name."""
  return name.lower().endswith(SUFFIXES) and not is_hidden(name)


def is_hidden(name: str) -> bool:
  """Whether a file or folder belongs to a system or a tool, not to the data: .DS_Store, Thumbs.db, @eaDir, ..."""
  return name.startswith(".") or name.lower() in _SYSTEM


def has_images(folder: epath.Path) -> bool:
  """Whether images are in `folder` itself, not in folders below it."""
  return any(is_image(path.name) for path in folder.iterdir())


def _is_folder(entry: os.DirEntry) -> bool:
  """Whether an entry is a folder, or a link to one; a link that leads in a circle is none."""
  try:
    return entry.is_dir()
  except OSError:
    return False


class _Left(collections.Counter):
  """Files and folders that are left out, by their kind."""

  def file(self, name: str) -> None:
    """Counts a file that is not an image of a class."""
    if is_hidden(name):
      self[HIDDEN_FILES] += 1
    else:
      self[OUTSIDE if is_image(name) else os.path.splitext(name)[1].lower()[:20]] += 1


def _walk(folder: str, left: _Left) -> Iterator[tuple[str, list[str]]]:
  """(folder, its images) of `folder` and all below it but hidden ones; raises for a linked folder below it."""
  def fail(error: OSError):
    raise error

  for current, below, files in os.walk(folder, onerror=fail):
    left[HIDDEN_FOLDERS] += sum(map(is_hidden, below))
    below[:] = sorted(name for name in below if not is_hidden(name))
    for name in below:
      if os.path.islink(os.path.join(current, name)):
        raise DataError(f"{current}/{name}: a linked folder below another folder; only images, and folders directly in "
                        "the root, may be links")
    images = []
    for name in files:
      if is_image(name):
        images.append(name)
      else:
        left.file(name)
    yield current, images


def images_below(folder: str | os.PathLike) -> Listing:
  """Every image at any depth below `folder`, on gs:// right in it only; the same files count as in training.

  Paths are complete and sorted; labels are all 0. A folder right in `folder` may be a link, as a class folder may.

  Raises:
    DataError: there is no image, or a linked folder further below.
  """
  top, left, paths = epath.Path(folder).expanduser(), _Left(), []
  if not is_local(top):
    paths = [str(path) for path in top.glob("*") if is_image(path.name)]
  else:
    with os.scandir(top) as entries:
      inside = [(entry.name, _is_folder(entry)) for entry in entries]
    paths = [os.path.join(top, name) for name, is_folder in inside if not is_folder and is_image(name)]
    for name, is_folder in inside:
      if is_folder and not is_hidden(name):
        paths += (os.path.join(current, image) for current, images in _walk(os.path.join(top, name), left)
                  for image in images)
      elif is_folder:
        left[HIDDEN_FOLDERS] += 1
      elif not is_image(name):
        left.file(name)
  if not paths:
    raise DataError(f"{folder}: no image in this folder ({', '.join(SUFFIXES)})")
  return Listing(sorted(paths), np.zeros(len(paths), np.int64), dict(+left))


# -- class folders ----------------------------------------------------------------------------------------------------


class Roots(NamedTuple):
  """The folders of class folders that a root holds; `others` are folders beside them, which are left out."""

  train: epath.Path
  test: epath.Path | None = None
  held_out: epath.Path | None = None
  others: tuple[str, ...] = ()


def roots(root: epath.Path, test_root: epath.Path | None = None) -> Roots:
  """Finds train/, test/ and val/ below `root`, in any case; `root` itself is the training set where there is no train/.

  The test set is test/, or val/ without a test/; val/ beside test/ is held out. `test_root` takes the place of test/.

  Raises:
    DataError: two folders of one role, such as val/ and Validation/; a test/ of images without class folders; the same
      folder in two roles.
  """
  folders = [path for path in root.iterdir() if path.is_dir() and not is_hidden(path.name)]
  found = {}
  for role, names in SPLITS.items():
    alike = sorted((path for path in folders if path.name.lower() in names), key=lambda path: path.name)
    # A class called "train" holds images, the training set holds folders.
    if role == "train":
      alike = [path for path in alike if not has_images(path)]
      if not alike:
        _check_apart(root, test_root)
        return Roots(root, test_root)
    if len(alike) > 1:
      raise DataError(f"{root}: {alike[0].name}/ and {alike[1].name}/ both look like the {role} set; rename or move "
                      "one")
    found[role] = alike[0] if alike else None
  test, val = found["test"], found["val"]
  others = tuple(sorted(path.name for path in folders if path not in found.values()))
  if test_root:
    _check_apart(found["train"], test_root)
    is_val = val and is_local(val) and os.path.realpath(val) == os.path.realpath(test_root)
    return Roots(found["train"], test_root, None if is_val else val if test else None, others)
  if test and not _has_folders(test) and has_images(test):
    labelled = f"--config.dataset.test_root={val} tests on {val.name}/; " if val else ""
    raise DataError(
        f"{test}: its images are in no class folder, so they have no labels to test with; {labelled}"
        f"--config.dataset.root={found['train']} leaves them out and splits a test set (dataset.val_fraction) off the "
        "training images; or give a labelled one with --config.dataset.test_root=DIR. `ltjax predict` classifies them "
        "after training")
  return Roots(found["train"], test or val, val if test else None, others)


def _has_folders(folder: epath.Path) -> bool:
  return any(path.is_dir() and not is_hidden(path.name) for path in folder.iterdir())


def _check_apart(train: epath.Path, test: epath.Path | None) -> None:
  if test and is_local(train) and is_local(test):
    whole, part = os.path.realpath(train), os.path.realpath(test)
    if os.path.commonpath((whole, part)) == whole:
      raise DataError(f"dataset.test_root: {test} is inside of {train}, so its images would be trained on; move it out "
                      "of there")


def class_folders(root: epath.Path, key: str, cache: pathlib.Path | None = None) -> tuple[Listing, tuple[str, ...]]:
  """Every image of a folder a class, and the class names in composed Unicode, both sorted.

  Images may be at any depth below their class, on gs:// right in its folder only. Hidden and system files and folders,
  and files that are not images by their name, are left out and counted.

  Args:
    root: the folder of the class folders.
    key: of the config, for messages.
    cache: a folder to keep the listing in. It is used again while no folder below `root` has changed; gs:// has no
      times of folders, so there it is used until it is deleted.

  Raises:
    DataError: no class folder, one without an image, two whose names differ in the form of an accent only.
  """
  complete = os.path.abspath(root) if is_local(root) else str(root)
  kept = None if cache is None else cache / f"folder-{hashlib.sha256(os.fsencode(complete)).hexdigest()[:16]}.npz"
  found = load_arrays(kept, "paths", "labels", "names", "folders", "times", "left_kinds", "left") if kept else None
  if found is None or not np.array_equal(_times(root, found["folders"]), found["times"]):
    found = _local_folders(root) if is_local(root) else _remote_folders(root)
    _check_classes(root, key, found["names"], found["labels"])
    if kept:
      store_arrays(kept, **found)
  left = dict(zip(found["left_kinds"], found["left"].tolist(), strict=False))  # an empty list comes back as [""]
  return Listing(found["paths"], found["labels"], left), tuple(map(same_name, found["names"]))


def _check_classes(root: epath.Path, key: str, names: Sequence[str], labels: np.ndarray) -> None:
  if not names:
    raise DataError(f"dataset.{key}: no folder in {root}, expected one for each class; for images with a table of "
                    "their classes there is configs/csv.py")
  if len(names) == 1 and is_local(root) and _has_folders(root / names[0]) and not has_images(root / names[0]):
    raise DataError(f"dataset.{key}: {root} holds one folder, {names[0]!r}, with folders in it; if those are the "
                    f"classes, give --config.dataset.{key}={root / names[0]}")
  first = {}
  for name in names:
    if first.setdefault(same_name(name), name) != name:
      raise DataError(f"dataset.{key}: {root} has two class folders of one name, {ascii(first[same_name(name)])} and "
                      f"{ascii(name)}, which differ only in how the accent is encoded; merge them or rename one")
  if empty := [names[c] for c in np.setdiff1d(np.arange(len(names)), labels)]:
    raise DataError(f"dataset.{key}: no image in the folder of class {', '.join(map(repr, empty[:5]))}"
                    f"{f' and {len(empty) - 5} more' if len(empty) > 5 else ''} of {root}; add images "
                    f"({', '.join(SUFFIXES)}) or remove the folder")


def _local_folders(root: epath.Path) -> dict:
  left, names, top = _Left(), [], str(root)
  with os.scandir(root) as entries:
    for entry in entries:
      if not _is_folder(entry):
        left.file(entry.name)
      elif is_hidden(entry.name):
        left[HIDDEN_FOLDERS] += 1
      else:
        names.append(entry.name)
  names.sort(key=lambda name: (same_name(name), name))
  paths, counts, folders = [], [], [""]
  for name in names:
    of_class = []
    for folder, images in _walk(os.path.join(top, name), left):
      relative = os.path.relpath(folder, top).replace(os.sep, "/")
      folders.append(relative)
      of_class.extend(f"{relative}/{image}" for image in images)
    paths.extend(sorted(of_class, key=lambda path: (same_name(path), path)))
    counts.append(len(of_class))
  return dict(paths=paths, labels=np.repeat(np.arange(len(names)), counts), names=names, folders=folders,
              times=_times(root, folders), **_left_arrays(left))


def _remote_folders(root: epath.Path) -> dict:
  """One listing of everything: on gs:// each question about a single folder is a request."""
  left, paths = _Left(), []
  for path in root.glob("*/*"):
    folder, name = path.parts[-2:]
    if is_hidden(folder):
      left[HIDDEN_FILES] += 1
    elif is_image(name):
      paths.append(f"{folder}/{name}")
    else:
      left.file(name)
  paths.sort()
  parents = np.array([path.partition("/")[0] for path in paths])
  names, labels = np.unique(parents, return_inverse=True)
  return dict(paths=paths, labels=labels, names=names.tolist(), folders=[""], times=_times(root, [""]),
              **_left_arrays(left))


def _left_arrays(left: _Left) -> dict:
  return dict(left_kinds=[*+left], left=np.array([*(+left).values()], np.int64))


def _times(root: epath.Path, folders: Sequence[str]) -> np.ndarray:
  """When each folder changed, in ns; -1 for one that has gone, 0 on gs://."""
  def time(folder: str) -> int:
    try:
      return os.stat(os.path.join(root, folder)).st_mtime_ns if is_local(root) else 0
    except FileNotFoundError:
      return -1

  return np.array([time(folder) for folder in folders], np.int64)
