"""Images that TFDS has prepared, read one by one from ArrayRecord files.

python -m ltjax convert --dataset=imagenet2012 --out=DIR

copies a data set that was prepared as TFRecord, which only reads from front to back, into DIR as ArrayRecord.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from tqdm import tqdm

from ltjax.data import quiet
from ltjax.data.cache import load_arrays, store_arrays
from ltjax.data.listing import Listing
from ltjax.errors import ConfigError, DataError, nearest

_CHUNK = 256  # records that are asked for at once while labels are collected


class Split(NamedTuple):
  """All images of one split: int64 [n] labels, their names, and where to read them."""

  files: "Records"
  labels: np.ndarray
  names: Sequence[str]


class Records:
  """Encoded images of a TFDS split."""

  def __init__(self, source, places: np.ndarray, title: str, names: Sequence[str] = ()):
    """`source` gives {"image": bytes, ...} for a place; `places` are those that count, in order.

    `names` are the data set's own names of these images; () where it has none.
    """
    self._source, self._places, self._title, self._names = source, places, title, names

  def __len__(self) -> int:
    return len(self._places)

  def read(self, place: int) -> bytes:
    """The bytes of image `place`."""
    try:
      data = self._source[int(self._places[place])]["image"]
    except Exception as error:  # array_record and protobuf have errors of many kinds for damaged files
      raise OSError(f"{self.name(place)} cannot be read ({str(error)[:200]})") from error
    if not data:  # what a file that is cut off gives
      raise OSError(f"{self.name(place)} holds no image; the file may be cut off")
    return data

  def name(self, place: int) -> str:
    """The folder, the split and the record of image `place`."""
    return f"{self._title} record {self._places[place]}"

  def take(self, places: Iterable[int]) -> "Records":
    """The images at `places`, in that order."""
    places = np.asarray(places, np.int64)
    names = [self._names[place] for place in places] if self._names else ()
    return Records(self._source, self._places[places], self._title, names)

  def entries(self) -> Iterator[tuple[str, int]]:
    """(the data set's own name of it, or its record's number, -1) of every image: its length is in the record."""
    for number, place in enumerate(self._places.tolist()):
      yield self._names[number] if self._names else f"record {place}", -1


def _basename(path: str) -> str:
  return path.rsplit("/", 1)[-1]


def _stem(path: str) -> str:
  return _basename(path).split(".")[0]


def _places_key(path: str) -> str:
  """One name for an image of Places in the standard layout and in that of 256 pixels, which TFDS has."""
  parts = path.split("/")
  if parts[0] in ("val", "val_256"):
    return f"val/{parts[-1]}"
  if parts[0] == "data_256":  # data_256/b/basketball_court/indoor/1.jpg is train/basketball_court-indoor/1.jpg
    return f"train/{'-'.join(parts[2:-1])}/{parts[-1]}"
  return path


# data set: the feature that names an image, and what makes that name, or a list's path, the key to find it by
NAMED: dict[str, tuple[str, Callable[[str], str]]] = dict(
    imagenet2012=("file_name", _basename), places365_small=("filename", _places_key), i_naturalist2018=("id", _stem))


def version_folder(dataset: str, data_dir: str) -> epath.Path:
  """The folder of the newest prepared version; `data_dir` is TFDS's own where it is empty."""
  tfds = quiet.tensorflow_datasets()

  root = epath.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser() / dataset
  versions = [path.parent for path in root.glob("*/dataset_info.json")]
  if not versions:
    raise DataError(f"dataset: TFDS has no prepared {dataset!r} in {root}; prepare it with 'tfds build {dataset} "
                    "--file_format=array_record', or name another folder with --config.dataset.tfds_dir=DIR")
  return max(versions, key=lambda path: [int(part) if part.isdecimal() else -1 for part in path.name.split(".")])


def open_split(dataset: str, split: str, data_dir: str = "", cache: pathlib.Path | None = None) -> Split:
  """The images of one split, in the order of their names.

  Labels and names stand inside the records, so all of them are read once; `cache` is a folder to keep them in.
  """
  tfds = quiet.tensorflow_datasets()

  folder = version_folder(dataset, data_dir)
  builder = tfds.builder_from_directory(folder)
  if split not in builder.info.splits:
    raise DataError(f"{folder}: there is no split {split!r}{nearest(split, builder.info.splits)}; "
                    f"there are {', '.join(builder.info.splits)}")
  if builder.info.file_format.value != "array_record":
    raise DataError(f"{folder}: prepared as {builder.info.file_format.value}, which has no random access; copy it once "
                    f"with 'python -m ltjax convert --dataset={dataset} --out=DIR', and set "
                    "--config.dataset.tfds_dir=DIR")
  source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
  feature, key = NAMED.get(dataset, (None, None))
  identity = hashlib.sha256(f"{folder}\0{split}\0".encode() + (folder / "dataset_info.json").read_bytes()).hexdigest()
  kept = None if cache is None else cache / f"tfds-{identity[:16]}.npz"
  found = load_arrays(kept, "labels", "names") if kept else None
  if found is None:
    labels, names = _collect(source, feature, f"{folder} {split}")
    found = dict(labels=labels, names=[key(name) for name in names] if feature else [])
    if kept:
      store_arrays(kept, **found)
  labels, names = found["labels"], found["names"]
  order = np.array(sorted(range(len(labels)), key=names.__getitem__)) if feature else np.arange(len(labels))
  names = [names[k] for k in order] if feature else ()
  return Split(Records(source, order, f"{folder} {split}", names), labels[order], names)


def _collect(source, feature: str | None, title: str) -> tuple[np.ndarray, list[str]]:
  labels, names = [], []
  with tqdm(total=len(source), desc=title, unit="image", disable=None) as bar:
    for start in range(0, len(source), _CHUNK):
      try:
        rows = source.__getitems__(range(start, min(start + _CHUNK, len(source))))
      except Exception as error:  # as in Records.read
        raise DataError(f"{title}: records from {start:,} on cannot be read ({str(error)[:200]})") from error
      if empty := [place for place, row in enumerate(rows, start) if not row["image"]]:
        raise DataError(f"{title}: record {empty[0]:,} holds no image; the file may be cut off")
      labels.extend(row["label"] for row in rows)
      names.extend(row[feature].decode() for row in rows if feature)
      bar.update(len(rows))
  return np.array(labels, np.int64), names


def label_names(dataset: str, data_dir: str = "") -> tuple[str, ...]:
  """The names of the classes of a prepared data set."""
  tfds = quiet.tensorflow_datasets()

  return tuple(tfds.builder_from_directory(version_folder(dataset, data_dir)).info.features["label"].names)


def select(listing: Listing, splits: Sequence[Split], dataset: str, where: str) -> Records:
  """The records of a split list's images, in the order of the list; all in one split."""
  if dataset not in NAMED:
    raise ConfigError(f"dataset.builder: images of {dataset!r} cannot be selected by a list; "
                      f"that is known of {', '.join(sorted(NAMED))}")
  keys = [NAMED[dataset][1](path) for path in listing.paths]
  for split in splits:
    place = {name: place for place, name in enumerate(split.names)}
    if keys[0] in place:
      break
  missing = [line for line, key in enumerate(keys, 1) if key not in place]
  if missing:
    raise DataError(f"{where}:{missing[0]}: {listing.paths[missing[0] - 1]!r} is not in TFDS's {dataset} "
                    f"({len(missing):,} such lines)")
  return split.files.take([place[key] for key in keys])


# -- TFRecord to ArrayRecord ------------------------------------------------------------------------------------------


def convert(dataset: str, data_dir: str, out: str) -> pathlib.Path:
  """Copies a data set that is prepared as TFRecord to `out` as ArrayRecord, and returns its folder there.

  What a conversion that was cut off has finished is kept; the folder counts as prepared once everything is there.
  """
  tf, tfds = quiet.tensorflow(), quiet.tensorflow_datasets()
  from array_record.python.array_record_module import ArrayRecordWriter

  folder = version_folder(dataset, data_dir)
  builder = tfds.builder_from_directory(folder)
  if builder.info.file_format.value != "tfrecord":
    raise DataError(f"{folder}: prepared as {builder.info.file_format.value}, so there is nothing to convert")
  target = pathlib.Path(out).expanduser() / dataset / folder.name
  if (target / "dataset_info.json").exists():
    raise DataError(f"--out: {target} is there already; give another folder, or delete it")
  target.mkdir(parents=True, exist_ok=True)
  splits = builder.info.splits.values()
  with tqdm(total=sum(split.num_examples for split in splits), desc=dataset, unit="image", disable=None) as bar:
    for split in splits:
      for path, length in zip(split.filepaths, split.shard_lengths, strict=True):
        done = target / path.name.replace(".tfrecord-", ".array_record-")
        if not done.exists():
          partial = done.with_name(f"{done.name}.partial")
          writer = ArrayRecordWriter(str(partial), "group_size:1")
          count = 0
          for record in tf.data.TFRecordDataset(os.fspath(path)).as_numpy_iterator():
            writer.write(record)
            count += 1
          writer.close()
          if count != length:
            raise DataError(f"{path}: {count:,} records, expected {length:,}; prepare the data set again")
          partial.replace(done)
        bar.update(length)
  for path in folder.iterdir():
    if path.suffix in (".json", ".txt") and path.name != "dataset_info.json":
      (target / path.name).write_bytes(path.read_bytes())
  info = json.loads((folder / "dataset_info.json").read_text())
  partial = target / "dataset_info.tmp"
  partial.write_text(json.dumps(info | {"fileFormat": "array_record"}, indent=2))
  partial.replace(target / "dataset_info.json")
  return target
