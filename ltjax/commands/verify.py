"""Checks the images of a config before hours of training.

python -m ltjax verify --config=configs/gcl_folder.py --config.dataset.root=DIR --out=verify

prints which images are used, which files are left out and a table of the classes, and writes long_tail.png and
class_counts.csv to the folder --out. It reads the beginning of every file; --decode decodes every file, and TFDS's
records too. Exit codes: 0 all is well, 1 something is wrong with the data, 2 with the command.
"""

import collections
import concurrent.futures
import csv
import hashlib
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ltjax.config import load, spec
from ltjax.data import longtail, photos, tables
from ltjax.data.decode import BadImageError, pillow
from ltjax.data.files import Files, Paths
from ltjax.data.official import OFFICIAL, is_official
from ltjax.data.sources import Dataset
from ltjax.errors import ConfigError, DataError, LtjaxError
from ltjax.report import names
from ltjax.report.figures import classes, style

EXIT_WRONG_DATA = 1
SPLITS = dict(train="training", held_out="held-out", test="test")
_HEAD = 4096  # bytes to read of a file that is not decoded
_THREADS = 16
_CHUNK = 200  # files a thread takes at a time
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class _Seen(NamedTuple):
  """The result for one image: a fault or "", and a digest that is equal for images with equal bytes."""

  fault: str
  content: bytes | None


# -- one image --------------------------------------------------------------------------------------------------------


def _look(images: Files | np.ndarray, index: int, decode: bool) -> _Seen:
  if isinstance(images, np.ndarray):
    return _Seen("", _digest(images[index].tobytes()))
  if not decode and not isinstance(images, Paths):
    return _Seen("", None)  # a record cannot be read in part, and was read once for its label
  try:
    size, head = _read(images, index, decode)
  except OSError as error:
    return _Seen(f"{images.name(index)}: {error.strerror or error}", None)
  fault = _fault(head, decode)
  return _Seen(fault and f"{images.name(index)}: {fault}", _digest(head[:_HEAD] + b"%d" % size))


def _digest(data: bytes) -> bytes:
  return hashlib.blake2b(data, digest_size=16).digest()  # short, because one per image stays in memory


def _read(images: Files, index: int, complete: bool) -> tuple[int, bytes]:
  """(length of a file, its beginning or all of it)."""
  if complete:
    data = images.read(index)
    return len(data), data
  with images.open(index) as file:
    head = file.read(_HEAD)
    return len(head) if len(head) < _HEAD else file.seek(0, os.SEEK_END) or file.tell(), head


def _fault(data: bytes, decode: bool) -> str:
  """The fault of an image with these first bytes, or with all bytes if `decode`; "" if there is none."""
  if not data:
    return "empty file"
  if not data.startswith(_MAGIC) and not (data[:4] == b"RIFF" and data[8:12] == b"WEBP"):
    return f"not an image: it starts with {data[:12]!r}, expected JPEG, PNG, GIF, BMP, TIFF or WebP"
  if decode:
    try:
      pillow(data)
    except BadImageError as error:
      return f"cannot be decoded ({error})"
  return ""


# -- all images -------------------------------------------------------------------------------------------------------


class Looked(NamedTuple):
  """The result for all images: faults by split, a line for each, and groups of images that look equal.

  The images (split, index) of a group agree in their beginning and their length.
  """

  bad: dict[str, int]
  lines: list[str]
  alike: list[list[tuple[str, int]]]


def look(dataset: Dataset, decode: bool) -> Looked:
  """Opens every image once."""
  bad, lines, seen = dict.fromkeys(_parts(dataset), 0), [], collections.defaultdict(list)
  total = sum(len(labels) for _, labels in _parts(dataset).values())
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool, tqdm(
      total=total, desc="images", unit="image", disable=None) as bar:
    for split, (images, labels) in _parts(dataset).items():
      chunks = [range(start, min(start + _CHUNK, len(labels))) for start in range(0, len(labels), _CHUNK)]
      for chunk, found in zip(chunks, pool.map(
          lambda chunk, images=images: [_look(images, index, decode) for index in chunk], chunks), strict=True):
        for index, looked in zip(chunk, found, strict=True):
          if looked.fault:
            bad[split] += 1
            lines.append(looked.fault)
          elif looked.content:
            seen[looked.content].append((split, index))
        bar.update(len(chunk))
  return Looked(bad, lines, [alike for alike in seen.values() if len(alike) > 1])


def equal(dataset: Dataset, alike: list[tuple[str, int]]) -> list[list[tuple[str, int]]]:
  """The groups of images with equal bytes among those of `alike`, each in the order of `alike`."""
  found = collections.defaultdict(list)
  for split, index in alike:
    images = getattr(dataset, split)[0]
    found[_digest(images[index].tobytes() if isinstance(images, np.ndarray) else images.read(index))].append(
        (split, index))
  return [group for group in found.values() if len(group) > 1]


def image_name(dataset: Dataset, split: str, index: int) -> str:
  """What messages call an image: its file, or its split and index."""
  images = getattr(dataset, split)[0]
  return f"{SPLITS[split]} image {index}" if isinstance(images, np.ndarray) else images.name(index)


def faults(dataset: Dataset, decode: bool) -> tuple[dict[str, int], list[str]]:
  """Opens every image once.

  Returns:
    {split: number of images with a fault}, and a line for each fault and for each image that equals, byte for byte, an
    image of another split.
  """
  found = look(dataset, decode)
  groups = [group for alike in found.alike if len({split for split, _ in alike}) > 1
            for group in equal(dataset, alike)]
  return found.bad, found.lines + [line for group in groups for line in across(dataset, group)]


def across(dataset: Dataset, group: list[tuple[str, int]]) -> Iterator[str]:
  """A line for each image of `group`, whose images are equal, that is in another split than the first."""
  (first, place), *others = group
  for split, index in others:
    if split != first:
      yield (f"{image_name(dataset, split, index)}: the {SPLITS[split]} set has the same image as the "
             f"{SPLITS[first]} set, {image_name(dataset, first, place)}")


def _parts(dataset: Dataset) -> dict[str, tuple]:
  found = {split: getattr(dataset, split) for split in SPLITS}
  return {split: part for split, part in found.items() if part is not None}


def official_faults(name: str, block: Mapping, dataset: Dataset) -> list[str]:
  """A line for each difference from the published totals and lists, for data sets that have them."""
  known, lines = OFFICIAL.get(name), []
  if known is None:
    return lines
  counts = dataset.class_counts + (dataset.held_out_counts if block.get("holdout") else 0)
  found = dict(classes=len(counts), largest=int(counts.max()), smallest=int(counts.min()), train=int(counts.sum()),
               test=len(dataset.test[1]))
  expected = dict(classes=known.classes, largest=known.largest, smallest=known.smallest,
                  train=known.lists["train"].lines, test=known.lists["test"].lines)
  titles = dict(classes="classes", largest="training images of the largest class", train="training images",
                smallest="training images of the smallest class", test="test images")
  if dataset.held_out is not None and not block.get("holdout"):
    found["held_out"], expected["held_out"] = len(dataset.held_out[1]), known.lists["held_out"].lines
    titles["held_out"] = "held-out images"
  lines += [f"{name}: {found[key]:,} {title}, the official number is {expected[key]:,}"
            for key, title in titles.items() if found[key] != expected[key]]
  groups = {group: len(classes) for group, classes in longtail.shot_groups(counts).items()}
  if known.groups and groups != known.groups:
    lines.append(f"{name}: many / medium / few are {_slashes(groups)} classes, officially {_slashes(known.groups)}")
  if block.get("lists"):
    for role, path in photos.official_lists(name, block["lists"]).items():
      if path and not is_official(tables.read_bytes(path, "lists"), known.lists[role]):
        lines.append(f"{path}: not the official list, whose digest is {' or '.join(known.lists[role].digests)}; fetch "
                     "it again, without changing its line ends")
  return lines


# -- the table and the files ------------------------------------------------------------------------------------------


def _slashes(groups: Mapping[str, int]) -> str:
  return " / ".join(f"{groups[group]:,}" for group in longtail.GROUPS)


def table(dataset: Dataset, bad: Mapping[str, int]) -> str:
  """Images, classes, imbalance and groups, split by split, and the largest and smallest classes."""
  splits = _parts(dataset)
  counts = {split: np.bincount(labels, minlength=len(dataset.class_names)) for split, (_, labels) in splits.items()}
  rows = {
      "": [SPLITS[split] for split in splits],
      "images": [f"{count.sum():,}" for count in counts.values()],
      "with a fault": [f"{bad[split]:,}" for split in splits],
      "classes": [f"{np.count_nonzero(count):,}" for count in counts.values()],
      "largest class": [f"{count.max():,}" for count in counts.values()],
      "smallest class": [f"{count[count > 0].min():,}" for count in counts.values()],
      "imbalance": [f"{count.max() / count[count > 0].min():,.4g}" for count in counts.values()],
      "many / medium / few": [_slashes({group: len(classes) for group, classes in longtail.shot_groups(
          counts["train"]).items()})]}
  width = max(12, *(len(cell) + 2 for row in rows.values() for cell in row))
  lines = [f"{title:20}" + "".join(f"{cell:>{width}}" for cell in row) for title, row in rows.items()]
  order = np.argsort(-counts["train"], kind="stable")
  shown = [*order[:10], None, *order[-10:]] if len(order) > 40 else [*order]
  called = {c: names.shown(dataset.class_names[c], "terminal") for c in shown if c is not None}
  widest = max(20, *map(names.width, called.values()))
  lines += ["", f"{'class':{widest}}" + "".join(f"{SPLITS[split]:>{width}}" for split in splits)]
  for c in shown:
    lines.append("..." if c is None else names.padded(called[c], widest) + "".join(
        f"{counts[split][c]:>{width},}" for split in splits))
  return "\n".join(lines)


def write(dataset: Dataset, out: pathlib.Path) -> None:
  """Writes a plot of the long tail, and the counts of all classes as a CSV."""
  out.mkdir(parents=True, exist_ok=True)
  style.save(classes.long_tail(dataset.class_counts), out / "long_tail.png")
  columns = [np.bincount(labels, minlength=len(dataset.class_names)) for _, labels in _parts(dataset).values()]
  with open(out / "class_counts.csv", "w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow(["label", "class", *(SPLITS[split] for split in _parts(dataset))])
    called = [names.shown(name, "csv") for name in dataset.class_names]
    writer.writerows(zip(range(len(called)), called, *columns, strict=True))


def verify(config, out: pathlib.Path, decode: bool = False) -> list[str]:
  """Prints the table, writes to `out`, and returns a line for each fault in the data of `config`."""
  try:
    dataset = spec.dataset(config.dataset)[0]()  # never from a cache
  except DataError as error:
    return [str(error)]
  block = config.dataset.to_dict()
  wrong = official_faults(block["name"], block, dataset)
  bad, lines = faults(dataset, decode)
  print(names.printable(f"{dataset.summary()}\n\n{table(dataset, bad)}", sys.stdout))
  write(dataset, out)
  print(f"\nwritten: {out / 'long_tail.png'}, {out / 'class_counts.csv'}")
  return wrong + lines


def tell(wrong: Sequence[str], shown: int) -> None:
  """Lists the first `shown` faults on stderr."""
  for line in wrong[:shown]:
    print(f"wrong: {line}", file=sys.stderr)
  if len(wrong) > shown:
    print(f"wrong: ... and {len(wrong) - shown:,} more; --shown={len(wrong)} lists all", file=sys.stderr)


OPTIONS = dict(
    out=load.Option("Folder for long_tail.png and class_counts.csv.", "verify"),
    decode=load.Option("Decode every image.", False),
    shown=load.Option("The number of faults to list.", "50"))


def main(arguments: Sequence[str]) -> None:
  """The command line."""
  try:
    given = load.parse(arguments, OPTIONS, __doc__)
    if not given["shown"].isdecimal() or int(given["shown"]) < 1:
      raise ConfigError(f"--shown: expected a number of at least 1, got {given['shown']!r}")
    wrong = verify(given["config"], pathlib.Path(given["out"]).expanduser(), given["decode"])
  except (LtjaxError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(load.EXIT_BAD_INPUT)
  tell(wrong, int(given["shown"]))
  if wrong:
    sys.exit(EXIT_WRONG_DATA)
  print(f"all is well{'' if given['decode'] else ', as far as can be seen without decoding the images (--decode)'}")


if __name__ == "__main__":
  main(sys.argv[1:])
