"""Where images come from: functions of a config block that return a `Dataset`. Here those that are held in memory."""

import hashlib
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Literal, NamedTuple

import numpy as np

from ltjax.data import archives, listing, longtail, quiet
from ltjax.errors import ConfigError, DataError

__all__ = ["cifar10", "cifar100", "digits"]

# Arguments of sources, with the ranges and choices that a config is checked against.
Imbalance = Annotated[float, "[1, inf)"]
Fraction, Part = Annotated[float, "[0, 1)"], Annotated[float, "(0, 1)"]
Each = Annotated[int, "[0, inf)"]
Seed = Annotated[int, "[0, 4294967295]"]
Profile = Literal["exponential", "step", "pareto"]

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # the field uses these for CIFAR-100 too
_CIFAR10_FILES = (tuple(f"data_batch_{k}.bin" for k in range(1, 6)), ("test_batch.bin",))
# What is fetched from https://www.cs.toronto.edu/~kriz/cifar.html: size and SHA-256, as TFDS has them too.
_CIFAR_ARCHIVES = {
    10: ("cifar-10-binary.tar.gz", 170_052_171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
    100: ("cifar-100-binary.tar.gz", 168_513_733, "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec")}
_CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Dataset(NamedTuple):
  """A long-tailed training set and its balanced test set.

  `train`, `test` and `held_out` are (images, labels int64 [n]); images are uint8 [n h w c], or `files.Files` that hold
  n of them encoded. `selected` are the training images' indices in the set they were taken from, the balanced one or a
  complete list; `mean` and `std` are per channel, for images in [0, 1]. `held_out` are images that are not trained on,
  so that something can be chosen on them; None without any. `left_out` counts the files that are no images of a class,
  by the keys of `listing`; `notes` say what the user should know of the data; transparent images are laid on
  `background`.

  Instead of images there may be features that a backbone has computed, float [n v ...]: of each image itself, and of
  v - 1 augmented views of it. `made_by` then says what made them.
  """

  train: tuple[np.ndarray, np.ndarray]
  test: tuple[np.ndarray, np.ndarray]
  selected: np.ndarray
  class_names: tuple[str, ...]
  mean: tuple[float, ...]
  std: tuple[float, ...]
  held_out: tuple[np.ndarray, np.ndarray] | None = None
  left_out: Mapping[str, int] = {}
  notes: tuple[str, ...] = ()
  background: str = "white"
  made_by: Mapping = {}

  @property
  def holds_files(self) -> bool:
    """Whether images are encoded files, of any size, and not arrays."""
    return not isinstance(self.train[0], np.ndarray)

  @property
  def holds_features(self) -> bool:
    """Whether these are features instead of images."""
    images = self.train[0]
    return isinstance(images, np.ndarray) and np.issubdtype(images.dtype, np.floating)

  @property
  def class_counts(self) -> np.ndarray:
    """int64 [c]: training images a class, without those held out."""
    return np.bincount(self.train[1], minlength=len(self.class_names))

  @property
  def held_out_counts(self) -> np.ndarray:
    """int64 [c]: held-out images a class."""
    labels = np.zeros(0, np.int64) if self.held_out is None else self.held_out[1]
    return np.bincount(labels, minlength=len(self.class_names))

  @property
  def selection_sha256(self) -> str:
    """SHA-256 of the selected indices as little-endian int64, in order."""
    return hashlib.sha256(self.selected.astype("<i8").tobytes()).hexdigest()

  @property
  def fingerprint(self) -> str:
    """SHA-256 of the class names and of all example lines: what the run learns from and is tested on.

    It does not depend on where the data are or how their path is spelled. Files are told apart by path, length and
    class: two files that change places under names of equal length go unnoticed. Arrays are told apart by their bytes.
    """
    return self.fingerprint_of({split: self.example_lines(split) for split in self.splits})

  def fingerprint_of(self, lines: Mapping[str, Iterable[str]]) -> str:
    """The fingerprint, for who has the example lines of every split already."""
    found = hashlib.sha256("\0".join(self.class_names).encode("utf-8", "surrogateescape"))
    for split, examples in lines.items():
      found.update(f"\0{split}\n".encode())
      for line in examples:
        found.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return found.hexdigest()

  @property
  def splits(self) -> tuple[str, ...]:
    """The splits that there are, of "train", "held_out" and "test"."""
    return tuple(split for split in ("train", "held_out", "test") if getattr(self, split) is not None)

  def example_lines(self, split: str = "train") -> Iterator[str]:
    """A line `<relative path><TAB><bytes><TAB><class name>` for every example of a split, in its order.

    Backslashes, tabs and line breaks in names are escaped. The length is "-" where it is not known, as on gs://. Of
    arrays, the path is the image's index in the set that it was taken from, and a hash of its bytes stands for the
    length.
    """
    images, labels = getattr(self, split)
    names = [_one_line(name) for name in self.class_names]
    if isinstance(images, np.ndarray):
      places = self.selected.tolist() if split == "train" else range(len(labels))
      for place, image, label in zip(places, images, labels.tolist(), strict=True):
        yield f"{place}\t{hashlib.blake2b(image.tobytes(), digest_size=8).hexdigest()}\t{names[label]}"
      return
    for (path, size), label in zip(images.entries(), labels.tolist(), strict=True):
      yield f"{_one_line(path)}\t{size if size >= 0 else '-'}\t{names[label]}"

  def summary(self) -> str:
    """What the run takes and what it leaves out: one line, and one for each note.

    >>> images, labels = np.zeros((3, 2, 2, 3), np.uint8), np.array([0, 0, 1])
    >>> left = {"hidden files": 2, ".txt": 1, "hidden folders": 1}
    >>> Dataset((images, labels), (images, labels), np.arange(3), ("a", "b"), (0.5,), (0.5,), left_out=left).summary()
    '2 classes, 3 training images, 3 test images; 3 files left out: 2 hidden, 1 not an image (.txt); 1 hidden folder \
left out'
    """
    parts = [_number(len(self.class_names), "class", "classes"), _number(len(self.train[1]), "training image")]
    if self.held_out is not None:
      parts.append(_number(len(self.held_out[1]), "held-out image"))
    parts.append(_number(len(self.test[1]), "test image"))
    line = ", ".join(parts)
    strange = {kind: count for kind, count in self.left_out.items() if kind not in listing.KINDS}
    hidden, outside = (self.left_out.get(kind, 0) for kind in (listing.HIDDEN_FILES, listing.OUTSIDE))
    kinds = [f"{hidden} hidden"] if hidden else []
    if strange:
      suffixes = sorted(strange, key=lambda kind: (-strange[kind], kind))
      shown = ", ".join(suffix or "no suffix" for suffix in suffixes[:8]) + (", ..." if suffixes[8:] else "")
      kinds.append(f"{_number(sum(strange.values()), 'not an image', 'not images')} ({ascii(shown)[1:-1]})")
    if outside:
      kinds.append(_number(outside, "image in no class folder", "images in no class folder"))
    if kinds:
      line += f"; {_number(hidden + outside + sum(strange.values()), 'file')} left out: {', '.join(kinds)}"
    if folders := self.left_out.get(listing.HIDDEN_FOLDERS, 0):
      line += f"; {_number(folders, 'hidden folder')} left out"
    return "\n".join((line, *(f"note: {note}" for note in self.notes)))


def _number(count: int, one: str, many: str = "") -> str:
  return f"{count:,} {one if count == 1 else many or one + 's'}"


_SPECIAL = re.compile(r"[\\\t\n\r]")
_ESCAPED = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})


def _one_line(name: str) -> str:
  return name.translate(_ESCAPED) if _SPECIAL.search(name) else name


def _counts(profile: str, num_classes: int, max_count: int, imbalance: float) -> np.ndarray:
  profiles = dict(exponential=longtail.exponential_counts, step=longtail.step_counts, pareto=longtail.pareto_counts)
  if profile not in profiles:
    raise ConfigError(f"dataset.profile: no long-tail profile is called {profile!r}; there are {sorted(profiles)}")
  try:
    return profiles[profile](num_classes, max_count, imbalance)
  except ConfigError as error:
    raise ConfigError(f"dataset.imbalance: {error}") from error


def hold_out(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Places in `labels` that are trained on and places that are held out, both ascending.

  A class of n images gives fraction * n, rounded, but at least one, and keeps at least one; a single image is kept.
  """
  stream, held = np.random.RandomState(seed), np.zeros(len(labels), bool)
  if fraction:
    order = np.argsort(labels, kind="stable")
    for places in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
      stream.shuffle(places)
      count = 0 if len(places) == 1 else np.clip(round(fraction * len(places)), 1, len(places) - 1)
      held[places[:count]] = True
    if not held.any():
      raise ConfigError("dataset.holdout: no class has the two images that it takes to hold one out; "
                        "lower the imbalance, or set dataset.holdout to 0")
  return np.flatnonzero(~held), np.flatnonzero(held)


def hold_out_each(labels: np.ndarray, selected: np.ndarray, each: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """(places that are trained on, places that are held out): `each` images of every class.

  They are images that are not selected, where a class has enough of them; the others come from the selected ones.
  """
  stream, used = np.random.RandomState(seed), np.isin(np.arange(len(labels)), selected)
  held = []
  for label in range(labels.max() + 1):
    places = stream.permutation(np.flatnonzero(labels == label))
    held.append(places[np.argsort(used[places], kind="stable")][:each])
    if len(held[-1]) < each or not np.setdiff1d(places[used[places]], held[-1]).size:
      raise ConfigError(f"dataset.holdout_each: class {label} has {len(places)} images, {used[places].sum()} of them "
                        f"to train on, so {each} cannot be held out; lower it")
  held = np.concatenate(held)
  return selected[~np.isin(selected, held)], held


def _held_out(labels: np.ndarray, selected: np.ndarray, fraction: float, each: int, seed: int) -> tuple[
    np.ndarray, np.ndarray]:
  """(places that are trained on, places that are held out) by one of the two rules."""
  if fraction and each:
    raise ConfigError("dataset: holdout takes a part of every class and holdout_each a number; set one of them to 0")
  if each:
    return hold_out_each(labels, selected, each, seed)
  return tuple(selected[places] for places in hold_out(labels[selected], fraction, seed))


def digits(*, imbalance: Imbalance, profile: Profile, subset_seed: Seed, holdout: Fraction = 0.0,
           holdout_each: Each = 0) -> Dataset:
  """scikit-learn's handwritten digits (1,797 real 8x8 scans), made long-tailed; the test set is 40 images a class."""
  from sklearn.datasets import load_digits

  images, labels = load_digits(return_X_y=True)
  images = (images * 15).astype(np.uint8).reshape(-1, 8, 8, 1)  # 16 grey levels and black: x15 is lossless in uint8
  test = longtail.long_tailed_subset(labels, np.full(10, 40), seed=subset_seed)
  rest = np.setdiff1d(np.arange(len(labels)), test)
  counts = _counts(profile, 10, int(np.bincount(labels[rest]).min()), imbalance)
  selected = rest[longtail.long_tailed_subset(labels[rest], counts, seed=subset_seed)]
  train, held_out = _held_out(labels[rest], np.searchsorted(rest, selected), holdout, holdout_each, subset_seed)
  train, held_out = rest[train], rest[held_out]
  unit = images[train] / 255
  return Dataset((images[train], labels[train]), (images[test], labels[test]), train, tuple("0123456789"),
                 (float(unit.mean()),), (float(unit.std()),),
                 (images[held_out], labels[held_out]) if holdout or holdout_each else None)


def cifar10(*, imbalance: Imbalance, profile: Profile, subset_seed: Seed, dir: str,
            holdout: Fraction = 0.0, holdout_each: Each = 0) -> Dataset:
  """CIFAR-10-LT from the official binary files in `dir`, or from TFDS where `dir` is empty."""
  return _cifar_lt(10, imbalance, profile, subset_seed, dir, holdout, holdout_each)


def cifar100(*, imbalance: Imbalance, profile: Profile, subset_seed: Seed, dir: str,
             holdout: Fraction = 0.0, holdout_each: Each = 0) -> Dataset:
  """CIFAR-100-LT (fine labels) from the official binary files in `dir`, or from TFDS where `dir` is empty."""
  return _cifar_lt(100, imbalance, profile, subset_seed, dir, holdout, holdout_each)


for _published in (digits, cifar10, cifar100):
  _published.own_data = False


def _cifar_lt(classes: int, imbalance: float, profile: str, subset_seed: int, folder: str, holdout: float,
              each: int) -> Dataset:
  # The counts come first: a bad imbalance should not cost a download.
  counts = _counts(profile, classes, 50000 // classes, imbalance)
  (images, labels), test, names = _cifar_binary(classes, folder) if folder else _cifar_tfds(classes)
  selected = longtail.long_tailed_subset(labels, counts, seed=subset_seed)
  train, held_out = _held_out(labels, selected, holdout, each, subset_seed)
  return Dataset((images[train], labels[train]), test, train, names, CIFAR_MEAN, CIFAR_STD,
                 (images[held_out], labels[held_out]) if holdout or each else None)


def _cifar_binary(classes: int, folder: str):
  root = pathlib.Path(folder).expanduser()
  inner = root / ("cifar-10-batches-bin" if classes == 10 else "cifar-100-binary")
  pickled = next((path for path in (root, root / f"cifar-{classes}-batches-py", root / f"cifar-{classes}-python")
                  if any((path / name).is_file() for name in ("batches.meta", "meta"))), None)
  root = inner if inner.is_dir() else root
  if root.is_file() and root.name.lower().endswith(archives.SUFFIXES):
    raise DataError(f"dataset.dir: {folder} is an archive; unpack it with '{archives.COMMAND}', and give that DIR")
  if not root.is_dir():
    raise DataError(f"dataset.dir: no folder {folder!r}; give the one that holds {inner.name}/, "
                    f"or leave it empty for TFDS; {_how_to_get(classes)}")
  if pickled and root is not inner:
    raise DataError(f"dataset.dir: {pickled} holds CIFAR's Python version, pickles, which could run anything and are "
                    f"never read; {_how_to_get(classes)}")
  train_files, test_files = _CIFAR10_FILES if classes == 10 else (("train.bin",), ("test.bin",))
  records = 10000 if classes == 10 else 50000
  train = [_cifar_file(root / name, records, classes) for name in train_files]
  images, labels = (np.concatenate(part) for part in zip(*train, strict=True))
  names_file = root / "fine_label_names.txt"
  names = _CIFAR10_NAMES if classes == 10 else (
      tuple(names_file.read_text().split()) if names_file.is_file() else tuple(map(str, range(100))))
  return (images, labels), _cifar_file(root / test_files[0], 10000, classes), names


def _how_to_get(classes: int) -> str:
  name, size, digest = _CIFAR_ARCHIVES[classes]
  return (f"the binary version is {name} of cs.toronto.edu/~kriz/cifar.html ({size:,} bytes, SHA-256 {digest}), "
          f"unpacked with '{archives.COMMAND.replace('ARCHIVE', name)}'")


def _cifar_file(path: pathlib.Path, records: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
  """Images and labels of one official file: <label> or <coarse><fine>, then 3 planes of 32x32, a record."""
  label_bytes = 1 if classes == 10 else 2
  expected = records * (label_bytes + 3072)
  if not path.is_file():
    raise DataError(f"{path}: missing; expected a CIFAR-{classes} binary file of {expected:,} bytes; "
                    f"{_how_to_get(classes)}")
  raw = np.fromfile(path, np.uint8)
  if len(raw) != expected:
    is_page = raw[:1000].tobytes().lstrip().startswith(b"<")
    raise DataError(f"{path}: {len(raw):,} bytes, expected {expected:,} ({records:,} records of {label_bytes + 3072}); "
                    f"the file is {'a web page' if is_page else 'truncated or of another data set'}: fetch it again; "
                    f"{_how_to_get(classes)}")
  raw = raw.reshape(records, -1)
  labels = raw[:, label_bytes - 1].astype(np.int64)
  if labels.max() >= classes:
    raise DataError(f"{path}: record {int(labels.argmax())} has label {labels.max()}, expected 0..{classes - 1}")
  return raw[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def _cifar_tfds(classes: int):
  try:
    tfds = quiet.tensorflow_datasets()
  except ImportError as error:
    raise DataError(f"dataset: CIFAR-{classes} without a dataset.dir comes from TFDS, which could not be imported "
                    f"({error}); install it, or give --config.dataset.dir=DIR") from error
  try:
    builder = tfds.builder(f"cifar{classes}")
    builder.download_and_prepare()
  except Exception as error:
    raise DataError(f"dataset: CIFAR-{classes} could not be had from TFDS ({type(error).__name__}: "
                    f"{' '.join(str(error).split())[:600]}); give the official binary files with "
                    f"--config.dataset.dir=DIR; {_how_to_get(classes)}") from error
  splits = {}
  for split in ("train", "test"):
    rows = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1))
    # TFDS shuffles on disk; its ids carry the official order, on which the field's selection depends.
    order = np.argsort(rows["id"], kind="stable")
    splits[split] = rows["image"][order], rows["label"][order].astype(np.int64)
  return splits["train"], splits["test"], tuple(builder.info.features["label"].names)
