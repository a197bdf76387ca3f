"""Encoded images to pixels: what Pillow would show, and what happens to images that nothing can be made of."""

import contextlib
import io
import json
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from ltjax.data.files import Files, NotAnImageFileError
from ltjax.distributed import processes
from ltjax.errors import DataError, WorkdirError

# An image of a few kilobytes can claim any size, so the size is looked at before memory is taken for it. This limit, 64
# megapixels of 8192 x 8192, is below Pillow's own against decompression bombs: as RGBA such an image takes 256 MiB.
MAX_PIXELS = 2**26
MAX_SCANS = 64  # of a JPEG, each of which takes as long as the image is large; encoders write about ten
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # no other reader of Pillow is let near a file
PAUSES = (0.1, 0.4)  # seconds before a read that has failed is repeated, as a disk in the network may be back by then
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, NotAnImageFileError)
_ORIENTATION = 0x0112
_START_OF_FRAME = frozenset((0xC0, 0xC1, 0xC2))  # baseline, extended and progressive: what every libjpeg decodes
_OTHER_FRAMES = frozenset(range(0xC0, 0xD0)) - _START_OF_FRAME - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN = b"\xff\xda"


class BadImageError(Exception):
  """Why an image cannot be decoded."""


class Encoded(NamedTuple):
  """An image on its way to a batch: a JPEG that TensorFlow decodes, or the pixels of any other, uint8 [h w 3].

  Instead of the pixels, there may be what `Images.open` was told to make of them at once; height and width are still
  those of the complete image.
  """

  height: int
  width: int
  jpeg: bytes | None
  pixels: Any


BLACK = np.zeros((1, 1, 3), np.uint8)  # in place of a bad image


def plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
  """(height, width) of a JPEG that TensorFlow decodes as Pillow does, None of anything else.

  That is 8 bits of grey or three channels, complete, and upright by its EXIF, which may stand before or behind the
  frame's header. Only the headers are read; what is odd about them is left to Pillow.
  """
  # decode_and_crop_jpeg stops behind the crop, so a missing end would show for some crops only.
  if data[:2] != b"\xff\xd8" or b"\xff\xd9" not in data[-64:]:
    return None
  place, end, size, has_exif = 2, len(data), None, False
  while place + 9 < end and data[place] == 0xFF:
    marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
    if marker == _START_OF_SCAN[1]:
      return size
    if marker in _START_OF_FRAME:
      precision, components = data[place + 4], data[place + 9]
      height, width = (int.from_bytes(data[at : at + 2], "big") for at in (place + 5, place + 7))
      if size or precision != 8 or components not in (1, 3) or not height or not width:
        return None
      size = height, width
    elif marker in _OTHER_FRAMES or not 0xC0 <= marker < 0xFF or 0xD0 <= marker <= 0xD9 or length < 2:
      return None
    elif marker == 0xE1:
      segment = data[place + 4 : place + 2 + length]
      is_exif = segment.startswith(b"Exif")
      if (is_exif and has_exif) or not _upright(segment):  # Pillow joins several
        return None
      has_exif |= is_exif
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
  except Exception:  # damaged EXIF is Pillow's to judge, which then sees the complete file
    return False


def check_scans(data: bytes) -> None:
  """Raises a `BadImageError` for a JPEG of more than `MAX_SCANS` scans: a thousand take minutes to decode."""
  # The marker may also be part of what a camera has put behind the image, a film for example: only many are looked at.
  if data[:2] != b"\xff\xd8" or data.count(_START_OF_SCAN) <= MAX_SCANS:
    return
  place, scans = 2, 0
  while 0 <= (place := data.find(b"\xff", place)) < len(data) - 3:
    marker = data[place + 1]
    if marker == 0xD9:
      return
    scans += marker == _START_OF_SCAN[1]
    if scans > MAX_SCANS:
      raise BadImageError(f"it is a JPEG of more than {MAX_SCANS} scans, which nobody needs and which take long")
    if marker == 0xFF:
      place += 1
    elif marker == 0 or 0xD0 <= marker <= 0xD8:  # inside of a scan
      place += 2
    else:
      place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")


def pillow(data: bytes, background: str = "white") -> np.ndarray:
  """uint8 [h w 3]: the first frame or page, turned as its EXIF says, laid on `background` where it is transparent.

  Of 16 bits a channel the upper eight are used: Pillow does so with colours, TensorFlow and viewers with grey too.

  Raises:
    BadImageError: it is empty, truncated, damaged, of more than `MAX_PIXELS` pixels or `MAX_SCANS` scans, of floats or
      32-bit integers, or no image of a known kind.
  """
  with _decoded(data, background) as pixels:
    return pixels


@contextlib.contextmanager
def _decoded(data: bytes, background: str) -> Iterator[np.ndarray]:
  """The pixels of an image, while they are counted among those that are in memory."""
  if not data:
    raise BadImageError("the file is empty")
  check_scans(data)
  with contextlib.ExitStack() as stack:
    try:
      with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check_size(*image.size)
        stack.enter_context(_GATE.hold(image.width * image.height))
        pixels = _pixels(image, background)
    except Image.UnidentifiedImageError as error:
      raise BadImageError(f"it is not an image of a known kind ({', '.join(FORMATS)})") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
      raise BadImageError(f"it has more than the {MAX_PIXELS:,} pixels that are allowed") from error
    except BadImageError:
      raise
    except MemoryError as error:
      raise BadImageError("there is not enough memory for its pixels") from error
    except Exception as error:  # Pillow's readers raise whatever the damage leads to
      raise BadImageError(" ".join(str(error).split()) or type(error).__name__) from error
    yield pixels


def _pixels(image: Image.Image, background: str) -> np.ndarray:
  ImageOps.exif_transpose(image, in_place=True)  # without a copy
  if image.mode.startswith("I;16"):  # grey, of which Pillow would take the low eight bits, or white
    values, clear = np.asarray(image), image.info.get("transparency")
    grey = (values >> 8).astype(np.uint8)
    if isinstance(clear, int):
      grey[values == clear] = 255 if background == "white" else 0
    return np.repeat(grey[..., None], 3, axis=2)
  if image.mode in ("F", "I"):
    raise BadImageError("its pixels are floats or 32-bit integers, of which nothing says how bright they are; save it "
                        "with 8 or 16 bits a channel")
  if image.has_transparency_data:
    image = image.convert("LA") if image.mode == "La" else image
    image = image.convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, background), image).convert("RGB"))
  return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _check_size(width: int, height: int) -> None:
  if width * height > MAX_PIXELS:
    raise BadImageError(f"it has {width} x {height} pixels, more than the {MAX_PIXELS:,} that are allowed")


class _Gate:
  """Lets images be decoded together as long as their pixels are no more than those of the largest single one."""

  def __init__(self):
    self._used, self._changed = 0, threading.Condition()

  @contextlib.contextmanager
  def hold(self, pixels: int) -> Iterator[None]:
    """Waits until there is room for `pixels`."""
    with self._changed:
      self._changed.wait_for(lambda: self._used + pixels <= MAX_PIXELS)
      self._used += pixels
    try:
      yield
    finally:
      with self._changed:
        self._used -= pixels
        self._changed.notify_all()


def cores() -> int:
  """How many cores this process may use, as far as the system says."""
  return len(getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0))


_GATE = _Gate()
# Many threads read, but a thread that decodes retains memory for the next image, so only as many as there are cores do.
_DECODERS = futures.ThreadPoolExecutor(cores(), "decoder")


class Images:
  """`Files`, decoded; bad images are an error, or are replaced by black ones and counted."""

  def __init__(self, files: Files, log: "BadImages", background: str = "white"):
    """Transparent images are laid on `background`, "white" or "black"."""
    self._files, self._log, self._background = files, log, background
    self.by_pillow = set()  # places of plain JPEGs that TensorFlow has failed on
    self.check = log.check

  def __len__(self) -> int:
    return len(self._files)

  def entries(self) -> Iterator[tuple[str, int]]:
    """As of the `Files`."""
    return self._files.entries()

  def open(self, place: int, reduce: Callable[[np.ndarray], Any] = lambda pixels: pixels) -> Encoded:
    """Image `place`, a black one where it is bad. Many threads call it.

    `reduce` makes less of the pixels of any image but a plain JPEG. It is called while no more images are in
    memory than `MAX_PIXELS` allows, whatever the batch and however many the threads.
    """
    try:
      data = self._read(place)
      size = plain_jpeg_size(data)
      if size and place not in self.by_pillow:
        _check_size(size[1], size[0])
        check_scans(data)
        return Encoded(*size, data, None)
      return _DECODERS.submit(self._reduced, data, reduce).result()
    except BadImageError as error:
      self._log.add(self._files.name(place), str(error))
      return Encoded(1, 1, None, reduce(BLACK))

  def _reduced(self, data: bytes, reduce: Callable[[np.ndarray], Any]) -> Encoded:
    with _decoded(data, self._background) as pixels:
      return Encoded(*pixels.shape[:2], None, reduce(pixels))

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

  def __init__(self, policy: str = "error", size: int = 0, path: pathlib.Path | None = None,
               limit: int | None = None):
    """Of `size` images; what is counted becomes lines of the file `path`, so that a resumed run still knows.

    Only the first process of a run reads or writes the file. `limit` takes the place of one in a thousand, or ten.
    """
    self._policy, self._lock = policy, threading.Lock()
    self._limit = max(10, size // 1000) if limit is None else limit
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
      raise DataError(f"{name}: the image cannot be decoded: {reason}; repair or remove it, or give "
                      "--config.dataset.on_bad_image=substitute to continue with a black image in its place")
    if len(self.found) > self._limit:
      raise DataError(f"{name} and {len(self.found) - 1} more images cannot be decoded, above the limit of "
                      f"{self._limit} that are replaced; the first: {reason}. `python -m ltjax verify --decode` "
                      "with the same --config lists all")


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
  splits = {split: getattr(dataset, split) for split in dataset.splits}
  files = {split: pair for split, pair in splits.items() if not isinstance(pair[0], np.ndarray | Images)}
  log = BadImages(policy, sum(len(pair[0]) for pair in files.values()), path)
  return dataset._replace(**{split: (Images(images, log, dataset.background), labels)
                             for split, (images, labels) in files.items()}), log
