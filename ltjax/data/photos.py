"""Photographs: long-tailed as they are, encoded, read one by one. Every source is a function of its config block.

A training set is one of: a folder for each class; split lists of `<path> <label>` lines; a CSV; what TFDS has prepared.
Paths may be local or gs://. Of each class with two images or more, a split made here has one on either side.
"""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from ltjax.data import listing, records, sources
from ltjax.data.files import Files, Paths
from ltjax.data.listing import Listing
from ltjax.data.official import OFFICIAL
from ltjax.errors import ConfigError, DataError

__all__ = ["csv", "folder", "imagenet_lt", "inat2018", "places_lt", "split_list", "tfds"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INAT_MEAN, INAT_STD = (0.466, 0.471, 0.380), (0.195, 0.194, 0.192)


def statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Mean and standard deviation that the images of data set `name`, ours or TFDS's, are normalised with."""
  return (INAT_MEAN, INAT_STD) if name.startswith(("inat", "i_naturalist")) else (IMAGENET_MEAN, IMAGENET_STD)


class _Images(NamedTuple):
  """A set of images before it is split: files that have `take`, labels int64 [n]."""

  files: Files
  labels: np.ndarray

  def take(self, places: np.ndarray) -> "_Images":
    return _Images(self.files.take(places), self.labels[places])


# -- the user's own images --------------------------------------------------------------------------------------------


def folder(*, root: str, test_root: str = "", val_fraction: float = 0.2, holdout: float = 0.0, subset_seed: int = 0,
           cache: pathlib.Path | None = None) -> sources.Dataset:
  """A folder for each class, named like it.

  Args:
    root: holds the class folders, or else train/ with them. The test set is then test/, or val/ where there is no
      test/; val/ beside test/ is held out.
    test_root: class folders of the test set, where they lie elsewhere.
    val_fraction: where there is no test set at all, the share of every class that becomes one.
    holdout: share of the training images that is held out, in place of val/.
    subset_seed: of both splits.
    cache: a folder to keep the listing in.

  Raises:
    DataError: no folder, an archive in its place, a class without an image, a class that only the test set has.
  """
  top = listing.existing_folder(root, "root")
  # A class called "train" holds images, the training set holds folders.
  is_split = (top / "train").is_dir() and not listing.has_images(top / "train")
  train_top = top / "train" if is_split else top
  found = [top / name for name in ("test", "val", "validation", "valid") if is_split and (top / name).is_dir()]
  test_top = listing.existing_folder(test_root, "test_root") if test_root else found[0] if found else None
  held_out_top = found[1] if len(found) > 1 and found[0].name == "test" and not holdout else None
  train, names = listing.class_folders(train_top, "root", cache)

  def read(place: epath.Path | None, key: str) -> _Images | None:
    if place is None:
      return None
    images, their_names = listing.class_folders(place, key, cache)
    labels = _as_labels(their_names, names, str(place))
    return _Images(Paths(str(place), images.paths), labels[images.labels])

  images = _Images(Paths(str(train_top), train.paths), train.labels)
  return _dataset(images, read(test_top, "test_root" if test_root else "root"), read(held_out_top, "root"), names,
                  holdout, subset_seed, val_fraction)


def csv(*, root: str, train_csv: str, test_csv: str = "", val_fraction: float = 0.2, holdout: float = 0.0,
        subset_seed: int = 0) -> sources.Dataset:
  """Tables of two columns: a path below `root`, and the name of the class.

  Args:
    root: the folder that the paths start from.
    train_csv: the training set; without a `test_csv`, a `val_fraction` of every class of it becomes the test set.
    test_csv: the test set.
    val_fraction, holdout, subset_seed: as in `folder`.
  """
  top = listing.existing_folder(root, "root")
  train = listing.table(train_csv, "train_csv")
  test = listing.table(test_csv, "test_csv") if test_csv else None
  _check_apart(train, train_csv, test, test_csv)
  names = tuple(sorted(set(train.labels.tolist())))
  images, tests = (part and _Images(Paths(str(top), part.paths), _as_labels(part.labels.tolist(), names, path))
                   for part, path in ((train, train_csv), (test, test_csv)))
  return _dataset(images, tests, None, names, holdout, subset_seed, val_fraction)


# -- split lists ------------------------------------------------------------------------------------------------------


def split_list(*, root: str, train_list: str, test_list: str, val_list: str = "", class_names: str = "",
               holdout: float = 0.0, subset_seed: int = 0) -> sources.Dataset:
  """Lists in the field's format, a `<path> <label>` line an image; .txt or .txt.xz.

  Args:
    root: the folder that the paths start from.
    train_list: the training set; it has every label from 0 on.
    test_list: the test set.
    val_list: images that are held out; not used where `holdout` is above 0.
    class_names: a file with a class name a line; where there is none, classes are called by their folders.
    holdout, subset_seed: as in `folder`.
  """
  top = listing.existing_folder(root, "root")
  lists = _read_lists(dict(train=train_list, held_out=val_list, test=test_list),
                      listing.class_names(class_names) if class_names else None, None)
  return _from_lists(lists, {role: Paths(str(top), part.paths) for role, part in lists.parts.items()},
                     holdout, subset_seed, IMAGENET_MEAN, IMAGENET_STD)


def tfds(*, builder: str, tfds_dir: str = "", train_list: str = "", test_list: str = "", val_list: str = "",
         holdout: float = 0.0, subset_seed: int = 0, cache: pathlib.Path | None = None) -> sources.Dataset:
  """What TFDS has prepared as ArrayRecord: its train and validation splits, or what lists select from both.

  Args:
    builder: the data set's name in TFDS; lists select from imagenet2012, places365_small and i_naturalist2018.
    tfds_dir: TFDS's folder; its own default where it is empty.
    train_list, test_list, val_list: as in `split_list`, with paths that are found by the names TFDS keeps.
    holdout, subset_seed: as in `folder`.
    cache: a folder to keep the labels in, for which every record must be read once.
  """
  mean, std = statistics(builder)
  given = bool(train_list), bool(test_list)
  if given[0] != given[1] or (val_list and not all(given)):
    raise ConfigError("dataset: lists that select from TFDS are at least dataset.train_list and dataset.test_list")
  # The lists come first: a mistake in them should not cost reading every record.
  paths = dict(train=train_list, held_out=val_list, test=test_list)
  lists = _read_lists(paths, None, None) if all(given) else None
  splits = [records.open_split(builder, name, tfds_dir, cache) for name in ("train", "validation")]
  if lists:
    files = {role: records.select(part, splits, builder, paths[role]) for role, part in lists.parts.items()}
    return _from_lists(lists, files, holdout, subset_seed, mean, std)
  names = records.label_names(builder, tfds_dir)
  train, test = (_Images(split.files, split.labels) for split in splits)
  _check_present(train.labels, names, f"TFDS's {builder}")
  return _dataset(train, test, None, names, holdout, subset_seed, 0.0, mean, std)


class _Lists(NamedTuple):
  """Listings by role, and the names of the classes."""

  parts: dict[str, Listing]
  names: tuple[str, ...]


def _read_lists(paths: dict[str, str], names: tuple[str, ...] | None, classes: int | None) -> _Lists:
  """The lists of the roles train, test and, where its path is not empty, held_out."""
  keys = dict(train="train_list", held_out="val_list", test="test_list")
  classes = classes if names is None else len(names)
  parts = {role: listing.split_list(path, keys[role], classes=classes)
           for role, path in paths.items() if path or role != "held_out"}
  labels = parts["train"].labels
  _check_present(labels, names or range(classes or int(labels.max()) + 1), paths["train"])
  names = names or _folder_names(parts["train"])
  for role, part in parts.items():
    if role != "train":
      _check_apart(parts["train"], paths["train"], part, paths[role])
      if part.labels.max() >= len(names):
        line = int(part.labels.argmax())
        raise DataError(f"{paths[role]}:{line + 1}: label {part.labels[line]} is not in {paths['train']}, whose labels "
                        f"go from 0 to {len(names) - 1}; a class needs training images")
  return _Lists(parts, names)


def _from_lists(lists: _Lists, files: dict[str, Files], holdout: float, seed: int, mean, std) -> sources.Dataset:
  images = {role: _Images(files[role], part.labels) for role, part in lists.parts.items()}
  return _dataset(images["train"], images["test"], None if holdout else images.get("held_out"), lists.names,
                  holdout, seed, 0.0, mean, std)


# -- the field's data sets --------------------------------------------------------------------------------------------


def imagenet_lt(*, lists: str, root: str = "", tfds_dir: str = "", holdout: float = 0.0, subset_seed: int = 0,
                cache: pathlib.Path | None = None) -> sources.Dataset:
  """ImageNet-LT (Liu et al., 2019): 115,846 training images of 1,000 classes; test set of 50 a class.

  Args:
    lists: the folder of ImageNet_LT_{train,val,test}.txt, or .txt.xz; val is held out where it is there.
    root: the folder of ImageNet's train/ and val/; where it is empty, images come from TFDS's imagenet2012.
    tfds_dir, holdout, subset_seed, cache: as in `tfds`.
  """
  return _official("imagenet_lt", "imagenet2012", lists, root, tfds_dir, holdout, subset_seed, cache)


def places_lt(*, lists: str, root: str = "", tfds_dir: str = "", holdout: float = 0.0, subset_seed: int = 0,
              cache: pathlib.Path | None = None) -> sources.Dataset:
  """Places-LT (Liu et al., 2019): 62,500 training images of 365 classes; test set of 100 a class.

  Args:
    lists: the folder of Places_LT_{train,val,test}.txt, or .txt.xz; val is held out where it is there.
    root: the folder of Places365's images; where it is empty, they come from TFDS's places365_small.
    tfds_dir, holdout, subset_seed, cache: as in `tfds`.
  """
  return _official("places_lt", "places365_small", lists, root, tfds_dir, holdout, subset_seed, cache)


def inat2018(*, lists: str = "", root: str = "", tfds_dir: str = "", holdout: float = 0.0, subset_seed: int = 0,
             cache: pathlib.Path | None = None) -> sources.Dataset:
  """iNaturalist 2018 (Van Horn et al., 2018): 437,513 training images of 8,142 classes; test set of 3 a class.

  The test set is the official validation set: the official test set has no labels.

  Args:
    lists: the folder of iNaturalist18_{train,val}.txt, or .txt.xz.
    root: the folder of train_val2018/; where it is empty, images come from TFDS's i_naturalist2018, and its splits
      where `lists` is empty too.
    tfds_dir, holdout, subset_seed, cache: as in `tfds`.
  """
  if not root and not lists:
    return tfds(builder="i_naturalist2018", tfds_dir=tfds_dir, holdout=holdout, subset_seed=subset_seed, cache=cache)
  return _official("inat2018", "i_naturalist2018", lists, root, tfds_dir, holdout, subset_seed, cache, INAT_MEAN,
                   INAT_STD)


def _official(name: str, builder: str, folder: str, root: str, tfds_dir: str, holdout: float, seed: int,
              cache: pathlib.Path | None, mean=IMAGENET_MEAN, std=IMAGENET_STD) -> sources.Dataset:
  top = listing.existing_folder(root, "root") if root else None
  paths = official_lists(name, folder)
  lists = _read_lists(paths, None, OFFICIAL[name].classes)
  if top:
    files = {role: Paths(str(top), part.paths) for role, part in lists.parts.items()}
  else:
    splits = [records.open_split(builder, split, tfds_dir, cache) for split in ("train", "validation")]
    files = {role: records.select(part, splits, builder, paths[role]) for role, part in lists.parts.items()}
  return _from_lists(lists, files, holdout, seed, mean, std)


def official_lists(name: str, folder: str) -> dict[str, str]:
  """{role: path} of the official lists of data set `name` in `folder`; "" for one to hold out that is not there."""
  top, found = listing.existing_folder(folder, "lists"), {}
  for role, known in OFFICIAL[name].lists.items():
    there = [path for path in (top / f"{known.name}.txt", top / f"{known.name}.txt.xz") if path.is_file()]
    if not there and role != "held_out":
      raise DataError(f"dataset.lists: no {known.name}.txt or {known.name}.txt.xz in {folder}; the official list has "
                      f"{known.lines:,} lines and the digest {known.digests[0]}; GitHub's "
                      "facebookresearch/classifier-balancing has it")
    found[role] = str(there[0]) if there else ""
  return found


# -- what all of them share -------------------------------------------------------------------------------------------


def _dataset(train: _Images, test: _Images | None, held_out: _Images | None, names: Sequence[str], holdout: float,
             seed: int, val_fraction: float, mean=IMAGENET_MEAN, std=IMAGENET_STD) -> sources.Dataset:
  """Splits off what is not given; places are counted in the whole of `train`."""
  if len(names) < 2:
    raise DataError(f"dataset: there is one class, {names[0]!r}; it takes two to tell apart")
  places = np.arange(len(train.labels))
  if test is None:
    if np.bincount(train.labels).max() < 2:
      raise DataError("dataset: there is no test set, and no class has the two images that it takes to split one off")
    places, tests = sources.hold_out(train.labels, val_fraction, seed)
    test = train.take(tests)
  if holdout:
    kept, held = sources.hold_out(train.labels[places], holdout, seed)
    places, held_out = places[kept], train.take(places[held])
  return sources.Dataset(tuple(train.take(places)), tuple(test), places, tuple(names), mean, std,
                         held_out and tuple(held_out))


def _as_labels(names: Sequence[str], known: Sequence[str], where: str) -> np.ndarray:
  """Class names as labels; int64 [n]."""
  label = {name: number for number, name in enumerate(known)}
  if strange := sorted(set(names) - set(label)):
    raise DataError(f"{where}: class {', '.join(map(repr, strange[:5]))}{' ...' if len(strange) > 5 else ''} is only "
                    "in the test set; a class needs training images")
  return np.array([label[name] for name in names], np.int64)


def _check_present(labels: np.ndarray, names: Sequence, where: str) -> None:
  """Raises unless each class has an image."""
  present = np.unique(labels)
  if len(present) < len(names):
    # Not a table of all labels: a label may be a mistake of any size.
    first = next((c for c, label in enumerate(present) if c != label), len(present))
    more = len(names) - len(present) - 1
    raise DataError(f"{where}: class {first}{f' ({names[first]!r})' if names[first] != first else ''} has no training "
                    f"image{f', nor have {more} others' if more else ''}, although labels go to {len(names) - 1}; give "
                    "each class an image, or number those that have some from 0 without a gap")


def _check_apart(train: Listing, train_path: str, other: Listing | None, other_path: str) -> None:
  both = set(train.paths) & set(other.paths) if other else ()
  if both:
    more = f", and {len(both) - 1} more are" if len(both) > 1 else ""
    raise DataError(f"{other_path}: {min(both)!r} is in {train_path} too{more}; what is trained on cannot be tested on")


def _folder_names(train: Listing) -> tuple[str, ...]:
  """What classes are called by their folders, as in <folder>/<image>; their labels where that is not one to one."""
  labels, first = np.unique(train.labels, return_index=True)
  parents = [path.rpartition("/")[0].rpartition("/")[2] for path in train.paths]
  names = tuple(parents[place] for place in first)
  alike = all(parent == names[label] for parent, label in zip(parents, train.labels.tolist(), strict=True))
  return names if alike and len(set(names)) == len(names) and "" not in names else tuple(map(str, labels))
