"""Encoded images to pixels: what Pillow would show, and what happens to images that nothing can be made of."""

import io
import json
import os
import pathlib
import threading
import time
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from ltjax.data.files import Files
from ltjax.distributed import processes
from ltjax.errors import DataError, WorkdirError

# An image of a few kilobytes can claim any size, so the size is looked at before memory is taken for it.
MAX_PIXELS = Image.MAX_IMAGE_PIXELS
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # no other reader of Pillow is let near a file
PAUSES = (0.1, 0.4)  # seconds before a read that has failed is repeated, as a disk in the network may be back by then
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)  # will fail again
_ORIENTATION = 0x0112
_START_OF_FRAME = frozenset((0xC0, 0xC1, 0xC2))  # baseline, extended and progressive: what every libjpeg decodes
_OTHER_FRAMES = frozenset(range(0xC0, 0xD0)) - _START_OF_FRAME - {0xC4, 0xC8, 0xCC}


class BadImageError(Exception):
  """Why an image cannot be decoded."""


class Encoded(NamedTuple):
  """An image on its way to a batch: a JPEG that TensorFlow decodes, or the pixels of any other, uint8 [h w 3]."""

  height: int
  width: int
  jpeg: bytes | None
  pixels: np.ndarray | None


BLACK = Encoded(1, 1, None, np.zeros((1, 1, 3), np.uint8))  # in place of a bad image


def plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
  """(height, width) of a JPEG that TensorFlow decodes as Pillow does, None of anything else.

  That is 8 bits of grey or three channels, complete, and not to be turned by its EXIF. Only the headers are read; what
  is odd about them is left to Pillow.
  """
  # decode_and_crop_jpeg stops behind the crop, so a missing end would show for some crops only.
  if data[:2] != b"\xff\xd8" or b"\xff\xd9" not in data[-64:]:
    return None
  place, end = 2, len(data)
  while place + 9 < end and data[place] == 0xFF:
    marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
    if marker in _START_OF_FRAME:
      precision, components = data[place + 4], data[place + 9]
      height, width = (int.from_bytes(data[at : at + 2], "big") for at in (place + 5, place + 7))
      return (height, width) if precision == 8 and components in (1, 3) and height and width else None
    if marker in _OTHER_FRAMES or not 0xC0 <= marker < 0xFF or length < 2:
      return None
    if marker == 0xE1 and not _upright(data[place + 4 : place + 2 + length]):
      return None
    place += 2 + length
  return None


def _upright(segment: bytes) -> bool:
  """Whether an APP1 segment does not say that the image must be turned."""
  if b"tiff:Orientation" in segment:
    return False
  if not segment.startswith(b"Exif"):
    return True
  exif = Image.Exif()
  try:
    exif.load(segment)
    return exif.get(_ORIENTATION, 1) == 1
  except Exception:  # damaged EXIF is Pillow's to judge, which then sees the whole file
    return False


def pillow(data: bytes) -> np.ndarray:
  """uint8 [h w 3]: the first frame, turned as its EXIF says, converted to RGB.

  Of 16 bits a channel the upper eight are kept: Pillow does so with colours, TensorFlow and viewers with grey too.

  Raises:
    BadImageError: it is empty, truncated, damaged, too large, or no image of a known kind.
  """
  if not data:
    raise BadImageError("the file is empty")
  try:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
      _check_size(*image.size)
      image = ImageOps.exif_transpose(image)
      if image.mode.startswith("I"):  # 16 bits of grey, of which Pillow would keep the low eight, or white
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
      if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # a palette with alpha; Pillow warns of the direct way
      return np.asarray(image.convert("RGB"))
  except Image.UnidentifiedImageError as error:
    raise BadImageError(f"it is not an image of a known kind ({', '.join(FORMATS)})") from error
  except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
    raise BadImageError(f"it has more than the {MAX_PIXELS:,} pixels that are allowed") from error
  except BadImageError:
    raise
  except Exception as error:  # Pillow's readers raise whatever the damage leads to
    raise BadImageError(str(error) or type(error).__name__) from error


def _check_size(width: int, height: int) -> None:
  if width * height > MAX_PIXELS:
    raise BadImageError(f"it has {width} x {height} pixels, more than the {MAX_PIXELS:,} that are allowed")


class Images:
  """`Files`, decoded; bad images are an error, or are replaced by black ones and counted."""

  def __init__(self, files: Files, log: "BadImages"):
    self._files, self._log = files, log
    self.by_pillow = set()  # places of plain JPEGs that TensorFlow has failed on
    self.check = log.check

  def __len__(self) -> int:
    return len(self._files)

  def open(self, place: int) -> Encoded:
    """Image `place`, a black one where it is bad. Called from many threads."""
    try:
      data = self._read(place)
      size = plain_jpeg_size(data)
      if size and place not in self.by_pillow:
        _check_size(size[1], size[0])
        return Encoded(*size, data, None)
      pixels = pillow(data)
      return Encoded(*pixels.shape[:2], None, pixels)
    except BadImageError as error:
      self._log.add(self._files.name(place), str(error))
      return BLACK

  def _read(self, place: int) -> bytes:
    for pause in (*PAUSES, None):
      try:
        return self._files.read(place)
      except OSError as error:
        if pause is None or isinstance(error, _LASTING):
          raise BadImageError(error.strerror or str(error)) from error
        self._log.retry()
        time.sleep(pause)
    raise AssertionError("unreachable")


class BadImages:
  """The bad images of a run, and how many reads of images had to be repeated.

  With policy "error" the first bad image stops the run. With "substitute" they are replaced by black images, and so the
  order and the length of the data stay; more of them than one in a thousand, and than ten, stop the run. A process
  knows of those it has met itself, and after `gather` of all; the limit is for what it knows.
  """

  POLICIES = ("error", "substitute")

  def __init__(self, policy: str = "error", size: int = 0, path: pathlib.Path | None = None):
    """`size` images there are; what is counted becomes lines of the file `path`, so that a resumed run still knows.

    Only the first process of a run reads or writes the file.
    """
    self._policy, self._limit, self._lock = policy, max(10, size // 1000), threading.Lock()
    self._path = path if path and processes.is_first() else None
    self.found: dict[str, str] = {}  # name: what is wrong with it
    self.retried = 0
    self._fresh = 0  # how many of them are of this process and since the last `gather`
    self._unwritten: OSError | None = None
    if self._path and self._path.is_file():
      self.found, self.retried = _kept(self._path)

  def add(self, name: str, reason: str) -> None:
    """Counts a bad image, once."""
    with self._lock:
      if name not in self.found:
        self.found[name] = reason
        if self._policy == "substitute":
          self._write(image=name, reason=reason)

  def retry(self) -> None:
    """Counts a read that is repeated."""
    with self._lock:
      self.retried += 1
      self._fresh += 1
      self._write(retried=1)

  def gather(self) -> None:
    """Tells every process of a run what all have met; all must call it, at the same point."""
    with self._lock:
      mine = dict(found=dict(self.found), before=self.retried - self._fresh, fresh=self._fresh)
      self._fresh = 0
    parts = processes.gather(mine)
    for part in parts:
      for name, reason in part["found"].items():
        self.add(name, reason)
    with self._lock:
      others = sum(part["fresh"] for part in parts) - mine["fresh"]
      self.retried = parts[0]["before"] + mine["fresh"] + others + self._fresh
      if others:
        self._write(retried=others)

  def _write(self, **line) -> None:
    if self._path:
      try:
        with self._path.open("a") as file:
          file.write(json.dumps(line) + "\n")
      except OSError as error:
        self._unwritten = error

  def check(self) -> None:
    """Raises a `DataError` where what was found stops the run, a `WorkdirError` where it could not be kept."""
    if self._unwritten:
      raise WorkdirError(f"{self._path}: bad images and repeated reads cannot be kept ({self._unwritten.strerror}); "
                         "make room, or let the folder be written") from self._unwritten
    if not self.found:
      return
    name, reason = next(iter(self.found.items()))
    if self._policy == "error":
      raise DataError(f"{name}: the image cannot be decoded: {reason}; mend or remove it, or write "
                      "--config.dataset.on_bad_image=substitute to go on with a black image in its place")
    if len(self.found) > self._limit:
      raise DataError(f"{name} and {len(self.found) - 1} more images cannot be decoded, above the limit of "
                      f"{self._limit} that are replaced; the first: {reason}. `python -m ltjax verify --decode` "
                      "lists all")


def _kept(path: pathlib.Path) -> tuple[dict[str, str], int]:
  """What `BadImages` has written: reasons by image, and the number of repeated reads."""
  found, retried = {}, 0
  *lines, cut_off = path.read_bytes().split(b"\n")
  if cut_off:  # the run was killed while it wrote; the image will be met again
    os.truncate(path, path.stat().st_size - len(cut_off))
  for number, line in enumerate(lines, 1):
    try:
      content = json.loads(line)
      if "retried" in content:
        retried += int(content["retried"])
      else:
        found[str(content["image"])] = str(content["reason"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
      raise WorkdirError(f"{path}:{number}: not a line that ltjax has written; delete the file to forget which images "
                         "were bad") from error
  return found, retried


def opened(dataset, policy: str = "error", path: pathlib.Path | None = None):
  """`dataset`, a `sources.Dataset`, with its `Files` made `Images` that share one list of bad ones; and that list."""
  splits = {split: getattr(dataset, split) for split in ("train", "test", "held_out")}
  files = {split: pair for split, pair in splits.items() if pair and not isinstance(pair[0], np.ndarray | Images)}
  log = BadImages(policy, sum(len(pair[0]) for pair in files.values()), path)
  return dataset._replace(**{split: (Images(images, log), labels) for split, (images, labels) in files.items()}), log
