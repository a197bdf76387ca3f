"""Encoded images to pixels: what Pillow would show, and what happens to images that nothing can be made of."""

import io
import json
import pathlib
import threading
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from ltjax.data.files import Files
from ltjax.errors import DataError

# An image of a few kilobytes can claim any size, so the size is looked at before memory is taken for it.
MAX_PIXELS = Image.MAX_IMAGE_PIXELS
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # no other reader of Pillow is let near a file
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

  Raises:
    BadImageError: it is empty, truncated, damaged, too large, or no image of a known kind.
  """
  if not data:
    raise BadImageError("the file is empty")
  try:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
      _check_size(*image.size)
      image = ImageOps.exif_transpose(image)
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
      try:
        data = self._files.read(place)
      except OSError as error:
        raise BadImageError(error.strerror or str(error)) from error
      size = plain_jpeg_size(data)
      if size and place not in self.by_pillow:
        _check_size(size[1], size[0])
        return Encoded(*size, data, None)
      pixels = pillow(data)
      return Encoded(*pixels.shape[:2], None, pixels)
    except BadImageError as error:
      self._log.add(self._files.name(place), str(error))
      return BLACK


class BadImages:
  """The bad images of a run.

  With policy "error" the first of them stops the run. With "substitute" they are replaced by black images, and so the
  order and the length of the data stay; more of them than one in a thousand, and than ten, stop the run.
  """

  POLICIES = ("error", "substitute")

  def __init__(self, policy: str = "error", size: int = 0, path: pathlib.Path | None = None):
    """`size` images there are; every bad one becomes a line of the file `path`, so that a resumed run still knows."""
    self._policy, self._limit, self._path, self._lock = policy, max(10, size // 1000), path, threading.Lock()
    self.found: dict[str, str] = {}  # name: what is wrong with it
    if path and path.is_file():
      self.found = {line["image"]: line["reason"] for line in map(json.loads, path.read_text().splitlines())}

  def add(self, name: str, reason: str) -> None:
    """Counts a bad image, once."""
    with self._lock:
      if name not in self.found:
        self.found[name] = reason
        if self._path and self._policy == "substitute":
          with self._path.open("a") as file:
            file.write(json.dumps(dict(image=name, reason=reason)) + "\n")

  def check(self) -> None:
    """Raises a `DataError` where what was found stops the run."""
    if not self.found:
      return
    name, reason = next(iter(self.found.items()))
    if self._policy == "error":
      raise DataError(f"{name}: the image cannot be decoded: {reason}; mend or remove it, or write "
                      "--config.dataset.on_bad_image=substitute to go on with a black image in its place")
    if len(self.found) > self._limit:
      raise DataError(f"{name} and {len(self.found) - 1} more images cannot be decoded, above the limit of "
                      f"{self._limit} that are replaced; the first: {reason}. `python -m ltjax.data.verify --decode` "
                      "lists all")


def opened(dataset, policy: str = "error", path: pathlib.Path | None = None):
  """`dataset`, a `sources.Dataset`, with its `Files` made `Images` that share one list of bad ones; and that list."""
  splits = {split: getattr(dataset, split) for split in ("train", "test", "held_out")}
  files = {split: pair for split, pair in splits.items() if pair and not isinstance(pair[0], np.ndarray | Images)}
  log = BadImages(policy, sum(len(pair[0]) for pair in files.values()), path)
  return dataset._replace(**{split: (Images(images, log), labels) for split, (images, labels) in files.items()}), log
