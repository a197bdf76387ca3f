"""Images as files, long-tailed as they are, read one by one. Every source is a function of its config block.

A training set is one of: a folder for each class; split lists of `<path> <label>` lines; a CSV; what TFDS has prepared.
Paths may be local or gs://. Of each class with two images or more, a split made here has one on either side. Every
source takes `background`, "white" or "black": the colour that transparent images are laid on.
"""

import collections
import itertools
import pathlib
import re
import types
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from etils import epath

from ltjax.data import listing, records, sources, tables
from ltjax.data.files import Files, Paths
from ltjax.data.listing import Listing
from ltjax.data.official import OFFICIAL
from ltjax.data.sources import Fraction, Part, Seed
from ltjax.errors import ConfigError, DataError, nearest

__all__ = ["csv", "folder", "imagenet_lt", "inat2018", "places_lt", "split_list", "tfds"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Background = Literal["white", "black"]
BACKGROUNDS = get_args(Background)
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


def folder(*, root: str, test_root: str = "", val_fraction: Part = 0.2, holdout: Fraction = 0.0, subset_seed: Seed = 0,
           background: Background = "white", cache: pathlib.Path | None = None) -> sources.Dataset:
  """A folder for each class, named like it.

  Args:
    root: holds the class folders, or else train/ with them. The test set is then test/, or val/ where there is no
      test/; val/ beside test/ is held out. Capitals in these names do not matter.
    test_root: class folders of the test set, where they are elsewhere.
    val_fraction: where there is no test set at all, the fraction of every class that becomes one.
    holdout: fraction of the training images that is held out, in place of val/.
    subset_seed: of both splits.
    background: the colour behind transparent images, "white" or "black".
    cache: a folder to keep the listing in.

  Raises:
    DataError: no folder, an archive in its place, a class without an image, a class that only the test set has, a
      test/ without class folders, and what `listing.roots` and `listing.class_folders` raise.
  """
  _check_background(background)
  top = listing.existing_folder(root, "root")
  found = listing.roots(top, listing.existing_folder(test_root, "test_root") if test_root else None)
  train, names = listing.class_folders(found.train, "root", cache)
  left, notes = collections.Counter(train.left_out), []
  if found.others:
    notes.append(f"left out beside {found.train.name}/: {', '.join(map(repr, found.others[:5]))}"
                 f"{' ...' if found.others[5:] else ''}")

  def read(place: epath.Path | None, key: str, role: str) -> _Images | None:
    if place is None:
      return None
    images, their_names = listing.class_folders(place, key, cache)
    left.update(images.left_out)
    labels = _as_labels(their_names, names, str(place), role)
    return _Images(Paths(str(place), images.paths), labels[images.labels])

  images = _Images(Paths(str(found.train), train.paths), train.labels)
  test = read(found.test, "test_root" if test_root else "root", "test set")
  held_out = None if holdout else read(found.held_out, "root", "held-out set")
  return _dataset(images, test, held_out, names, holdout, subset_seed, val_fraction, background=background,
                  left_out=dict(left), notes=notes, test_key="test_root=DIR")


def csv(*, root: str, train_csv: str, test_csv: str = "", image_column: str = "", label_column: str = "",
        val_fraction: Part = 0.2, holdout: Fraction = 0.0, subset_seed: Seed = 0,
        background: Background = "white") -> sources.Dataset:
  """Tables with a column of paths and one of class names: `tables.table` says which and how they are written.

  Class names are what the cells hold, sorted; where all are integers, by their value.

  Args:
    root: the folder that the paths start from; absolute paths are below it.
    train_csv: the training set; without a `test_csv`, a `val_fraction` of every class of it becomes the test set.
    test_csv: the test set.
    image_column, label_column: headings of the two columns, where they are not found by themselves.
    val_fraction, holdout, subset_seed, background: as in `folder`.
  """
  _check_background(background)
  top = listing.existing_folder(root, "root")
  train, test = (tables.table(path, key, root=str(top), image_column=image_column, label_column=label_column)
                 if path or key == "train_csv" else None
                 for path, key in ((train_csv, "train_csv"), (test_csv, "test_csv")))
  _check_apart(train, train_csv, test, test_csv, "trained on", "tested on")
  names = sorted(set(train.labels.tolist()))
  if all(re.fullmatch(r"[+-]?[0-9]{1,18}", name) for name in names):
    names.sort(key=lambda name: (int(name), name))
  images, tests = (part and _Images(Paths(str(top), part.paths), _as_labels(part.labels.tolist(), names, path))
                   for part, path in ((train, train_csv), (test, test_csv)))
  return _dataset(images, tests, None, names, holdout, subset_seed, val_fraction, background=background,
                  notes=[*train.notes, *(test.notes if test else ())], test_key="test_csv=FILE")


# -- split lists ------------------------------------------------------------------------------------------------------


def split_list(*, root: str, train_list: str, test_list: str, val_list: str = "", class_names: str = "",
               holdout: Fraction = 0.0, subset_seed: Seed = 0, background: Background = "white") -> sources.Dataset:
  """Lists in the field's format, a `<path> <label>` line an image; .txt or .txt.xz.

  Args:
    root: the folder that the paths start from; absolute paths are below it.
    train_list: the training set; it has every label from 0 on.
    test_list: the test set.
    val_list: images that are held out; not used where `holdout` is above 0.
    class_names: a file with a class name a line; where there is none, classes are called by their folders.
    holdout, subset_seed, background: as in `folder`.

  Raises:
    DataError: what `tables.split_list` raises; an image in two of the lists; labels with a gap.
  """
  _check_background(background)
  top = listing.existing_folder(root, "root")
  lists = _read_lists(dict(train=train_list, held_out="" if holdout else val_list, test=test_list),
                      tables.class_names(class_names) if class_names else None, None, str(top))
  return _from_lists(lists, {role: Paths(str(top), part.paths) for role, part in lists.parts.items()},
                     holdout, subset_seed, IMAGENET_MEAN, IMAGENET_STD, background)


def tfds(*, builder: str, tfds_dir: str = "", train_list: str = "", test_list: str = "", val_list: str = "",
         holdout: Fraction = 0.0, subset_seed: Seed = 0, background: Background = "white",
         cache: pathlib.Path | None = None) -> sources.Dataset:
  """What TFDS has prepared as ArrayRecord: its train and validation splits, or what lists select from both.

  Args:
    builder: the data set's name in TFDS; lists select from imagenet2012, places365_small and i_naturalist2018.
    tfds_dir: TFDS's folder; its own default where it is empty.
    train_list, test_list, val_list: as in `split_list`, with paths that are found by the names TFDS keeps.
    holdout, subset_seed, background: as in `folder`.
    cache: a folder to keep the labels in, for which every record must be read once.
  """
  _check_background(background)
  mean, std = statistics(builder)
  given = bool(train_list), bool(test_list)
  if given[0] != given[1] or (val_list and not all(given)):
    raise ConfigError("dataset: lists that select from TFDS are at least dataset.train_list and dataset.test_list")
  # The lists come first: a mistake in them should not cost reading every record.
  paths = dict(train=train_list, held_out="" if holdout else val_list, test=test_list)
  lists = _read_lists(paths, None, None) if all(given) else None
  splits = [records.open_split(builder, name, tfds_dir, cache) for name in ("train", "validation")]
  if lists:
    files = {role: records.select(part, splits, builder, paths[role]) for role, part in lists.parts.items()}
    return _from_lists(lists, files, holdout, subset_seed, mean, std, background)
  names = records.label_names(builder, tfds_dir)
  train, test = (_Images(split.files, split.labels) for split in splits)
  _check_present(train.labels, names, f"TFDS's {builder}")
  return _dataset(train, test, None, names, holdout, subset_seed, 0.0, mean, std, background=background)


class _Lists(NamedTuple):
  """Listings by role, and the names of the classes."""

  parts: dict[str, Listing]
  names: tuple[str, ...]


def _read_lists(paths: dict[str, str], names: tuple[str, ...] | None, classes: int | None, root: str = "") -> _Lists:
  """The lists of the roles train, test and, where its path is not empty, held_out."""
  keys = dict(train="train_list", held_out="val_list", test="test_list")
  classes = classes if names is None else len(names)
  parts = {role: tables.split_list(path, keys[role], classes=classes, root=root)
           for role, path in paths.items() if path or role != "held_out"}
  labels = parts["train"].labels
  _check_present(labels, names or range(classes or int(labels.max()) + 1), paths["train"])
  names = names or _folder_names(parts["train"])
  does = dict(train="trained on", held_out="chosen on", test="tested on")
  for first, second in itertools.combinations(parts, 2):
    _check_apart(parts[first], paths[first], parts[second], paths[second], does[first], does[second])
  for role, part in parts.items():
    if part.labels.max() >= len(names):
      line = int(part.labels.argmax())
      raise DataError(f"{paths[role]}:{line + 1}: label {part.labels[line]} is not in {paths['train']}, whose labels "
                      f"go from 0 to {len(names) - 1}; a class needs training images")
  return _Lists(parts, names)


def _from_lists(lists: _Lists, files: dict[str, Files], holdout: float, seed: int, mean, std,
                background: str) -> sources.Dataset:
  images = {role: _Images(files[role], part.labels) for role, part in lists.parts.items()}
  return _dataset(images["train"], images["test"], images.get("held_out"), lists.names, holdout, seed, 0.0, mean, std,
                  background=background)


# -- the field's data sets --------------------------------------------------------------------------------------------


def imagenet_lt(*, lists: str, root: str = "", tfds_dir: str = "", holdout: Fraction = 0.0, subset_seed: Seed = 0,
                background: Background = "white", cache: pathlib.Path | None = None) -> sources.Dataset:
  """ImageNet-LT (Liu et al., 2019): 115,846 training images of 1,000 classes; test set of 50 a class.

  Args:
    lists: the folder of ImageNet_LT_{train,val,test}.txt, or .txt.xz; val is held out where it is there.
    root: the folder of ImageNet's train/ and val/; where it is empty, images come from TFDS's imagenet2012.
    tfds_dir, holdout, subset_seed, background, cache: as in `tfds`.
  """
  return _official("imagenet_lt", "imagenet2012", lists, root, tfds_dir, holdout, subset_seed, background, cache)


def places_lt(*, lists: str, root: str = "", tfds_dir: str = "", holdout: Fraction = 0.0, subset_seed: Seed = 0,
              background: Background = "white", cache: pathlib.Path | None = None) -> sources.Dataset:
  """Places-LT (Liu et al., 2019): 62,500 training images of 365 classes; test set of 100 a class.

  Args:
    lists: the folder of Places_LT_{train,val,test}.txt, or .txt.xz; val is held out where it is there.
    root: the folder of Places365's images; where it is empty, they come from TFDS's places365_small.
    tfds_dir, holdout, subset_seed, background, cache: as in `tfds`.
  """
  return _official("places_lt", "places365_small", lists, root, tfds_dir, holdout, subset_seed, background, cache)


def inat2018(*, lists: str = "", root: str = "", tfds_dir: str = "", holdout: Fraction = 0.0, subset_seed: Seed = 0,
             background: Background = "white", cache: pathlib.Path | None = None) -> sources.Dataset:
  """iNaturalist 2018 (Van Horn et al., 2018): 437,513 training images of 8,142 classes; test set of 3 a class.

  The test set is the official validation set: the official test set has no labels.

  Args:
    lists: the folder of iNaturalist18_{train,val}.txt, or .txt.xz.
    root: the folder of train_val2018/; where it is empty, images come from TFDS's i_naturalist2018, and its splits
      where `lists` is empty too.
    tfds_dir, holdout, subset_seed, background, cache: as in `tfds`.
  """
  if not root and not lists:
    return tfds(builder="i_naturalist2018", tfds_dir=tfds_dir, holdout=holdout, subset_seed=subset_seed,
                background=background, cache=cache)
  return _official("inat2018", "i_naturalist2018", lists, root, tfds_dir, holdout, subset_seed, background, cache,
                   INAT_MEAN, INAT_STD)


for _published in (tfds, imagenet_lt, places_lt, inat2018):
  _published.own_data = False


def _official(name: str, builder: str, folder: str, root: str, tfds_dir: str, holdout: float, seed: int,
              background: str, cache: pathlib.Path | None, mean=IMAGENET_MEAN, std=IMAGENET_STD) -> sources.Dataset:
  _check_background(background)
  top = listing.existing_folder(root, "root") if root else None
  paths = official_lists(name, folder) | (dict(held_out="") if holdout else {})
  lists = _read_lists(paths, None, OFFICIAL[name].classes, str(top) if top else "")
  if top:
    files = {role: Paths(str(top), part.paths) for role, part in lists.parts.items()}
  else:
    splits = [records.open_split(builder, split, tfds_dir, cache) for split in ("train", "validation")]
    files = {role: records.select(part, splits, builder, paths[role]) for role, part in lists.parts.items()}
  return _from_lists(lists, files, holdout, seed, mean, std, background)


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
             seed: int, val_fraction: float, mean=IMAGENET_MEAN, std=IMAGENET_STD, *, background: str,
             left_out: Mapping[str, int] = types.MappingProxyType({}), notes: Sequence[str] = (),
             test_key: str = "test_list=FILE") -> sources.Dataset:
  """Splits off what is not given; indices are those in the complete `train`."""
  if len(names) < 2:
    raise DataError(f"dataset: there is one class, {names[0]!r}; a classifier needs at least two")
  places, is_split = np.arange(len(train.labels)), test is None
  if is_split:
    if np.bincount(train.labels).max() < 2:
      raise DataError("dataset: there is no test set, and no class has the two images that it takes to split one off; "
                      f"give a test set with --config.dataset.{test_key}")
    places, tests = sources.hold_out(train.labels, val_fraction, seed)
    test = train.take(tests)
  if holdout:
    kept, held = sources.hold_out(train.labels[places], holdout, seed)
    places, held_out = places[kept], train.take(places[held])
  notes = [*notes, *_alike(names), *_untested(train.labels, test.labels, names, is_split, test_key)]
  if holdout and (unseen := len(names) - len(np.unique(held_out.labels))):
    notes.append(f"{unseen:,} of {len(names):,} classes have too few images for a held-out one; what is chosen on "
                 "held-out images does not depend on them")
  return sources.Dataset(tuple(train.take(places)), tuple(test), places, tuple(names), mean, std,
                         held_out and tuple(held_out), dict(left_out), tuple(notes), background)


def _alike(names: Sequence[str]) -> list[str]:
  """A note of classes that are one for a reader, though not for a computer."""
  first, pairs = {}, []
  for name in names:
    if (other := first.setdefault(name.casefold(), name)) != name:
      pairs.append(f"{other!r} and {name!r}")
  are = ", ".join(pairs[:3]) + (", ..." if len(pairs) > 3 else "")
  return [f"classes that differ in capitals alone: {are}"] if pairs else []


def _untested(train: np.ndarray, test: np.ndarray, names: Sequence[str], is_split: bool, key: str) -> list[str]:
  """A note of the classes without a test image, and what can be done about them; none where each class has one."""
  without = np.setdiff1d(np.arange(len(names)), test)
  if not without.size:
    return []
  shown = ", ".join(repr(names[c]) for c in without[:3]) + (", ..." if len(without) > 3 else "")
  have, get = ("has", "gets") if len(without) == 1 else ("have", "get")
  if is_split:
    singles = np.bincount(train, minlength=len(names))[without].max() == 1
    why = f"{have} one image and {get} no test image" if singles else f"{get} no test image"
    way_out = (f"add a second image to each, or give a test set that has them with --config.dataset.{key}; where "
               "classes have few images, the mean over other splits, too, says more than one "
               "(--config.dataset.subset_seed=1 with a --workdir of its own)")
  else:
    why, way_out = f"{have} no test image", "add test images of them"
  its = "its" if len(without) == 1 else "their"
  return [f"{len(without):,} of {len(names):,} classes {why} ({shown}), so {its} accuracy cannot be measured; "
          f"{way_out}"]


def _check_background(background: str) -> None:
  if background not in BACKGROUNDS:
    raise ConfigError(f"dataset.background: expected {' or '.join(map(repr, BACKGROUNDS))}, got {background!r}")


def _as_labels(names: Sequence[str], known: Sequence[str], where: str, role: str = "test set") -> np.ndarray:
  """Class names as labels; int64 [n]."""
  label = {name: number for number, name in enumerate(known)}
  if strange := sorted(set(names) - set(label)):
    raise DataError(f"{where}: class {', '.join(map(repr, strange[:5]))}{' ...' if len(strange) > 5 else ''} is only "
                    f"in the {role}{nearest(strange[0], known)}; a class needs training images")
  return np.array([label[name] for name in names], np.int64)


def _check_present(labels: np.ndarray, names: Sequence, where: str) -> None:
  """Raises unless each class has an image."""
  present = np.unique(labels)
  if len(present) < len(names):
    # Not a table of all labels: a label may be a mistake of any size.
    first = next((c for c, label in enumerate(present) if c != label), len(present))
    more = len(names) - len(present) - 1
    others = f", nor {'has 1 other' if more == 1 else f'have {more} others'}" if more else ""
    called = f" ({names[first]!r})" if names[first] != first else ""
    raise DataError(f"{where}: class {first}{called} has no training image{others}, although labels go to "
                    f"{len(names) - 1}; give each class an image, or number those that have some from 0 without a gap")


def _check_apart(one: Listing, one_path: str, other: Listing | None, other_path: str, does: str,
                 must_not: str) -> None:
  both = set(one.paths) & set(other.paths) if other else ()
  if both:
    more = f", and {len(both) - 1} more are" if len(both) > 1 else ""
    raise DataError(f"{other_path}: {min(both)!r} is in {one_path} too{more}; what is {does} cannot be {must_not}")


def _folder_names(train: Listing) -> tuple[str, ...]:
  """The class names by their folders, as in <folder>/<image>; the labels where that is not one to one."""
  labels, first = np.unique(train.labels, return_index=True)
  parents = [listing.same_name(path.rpartition("/")[0].rpartition("/")[2]) for path in train.paths]
  names = tuple(parents[place] for place in first)
  alike = all(parent == names[label] for parent, label in zip(parents, train.labels.tolist(), strict=True))
  return names if alike and len(set(names)) == len(names) and "" not in names else tuple(map(str, labels))
