"""Decodes images to the pixels that Pillow shows, and handles images that cannot be decoded."""

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

# An image of a few kilobytes can claim any size, so we check the size before we allocate memory. This limit, 64
# megapixels or 8192 x 8192, is below Pillow's own limit for decompression bombs; as RGBA such an image takes 256 MiB.
MAX_PIXELS = 2**26
MAX_SCANS = 64  # of a JPEG; each takes time in proportion to the image's size, and encoders write about ten
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow's other readers never see a file
PAUSES = (0.1, 0.4)  # seconds before a failed read is repeated; a network disk may be back by then
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, NotAnImageFileError)
_ORIENTATION = 0x0112
_START_OF_FRAME = frozenset((0xC0, 0xC1, 0xC2))  # baseline, extended and progressive: what every libjpeg decodes
_OTHER_FRAMES = frozenset(range(0xC0, 0xD0)) - _START_OF_FRAME - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN = b"\xff\xda"


class BadImageError(Exception):
  """An image cannot be decoded; the message says why."""


class Encoded(NamedTuple):
  """An image on its way to a batch: a JPEG that TensorFlow decodes, or the pixels of any other, uint8 [h w 3].

  `pixels` holds the result of the `reduce` that `Images.open` was given, by default the pixels themselves; height and
  width always describe the complete image.
  """

  height: int
  width: int
  jpeg: bytes | None
  pixels: Any


BLACK = np.zeros((1, 1, 3), np.uint8)  # replaces a bad image


def plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
  """(height, width) of a JPEG that TensorFlow decodes as Pillow does; None for anything else.

  TensorFlow gets 8-bit JPEGs with one or three channels that are complete and upright by their EXIF, which may come
  before or after the frame header. This reads only the headers; a JPEG with unusual ones goes to Pillow.
  """
  # decode_and_crop_jpeg stops after the crop, so only some crops would reveal a missing end.
  if data[:2] != b"\xff\xd8" or b"\xff\xd9" not in data[-64:]:
    return None
  at, end, size, has_exif = 2, len(data), None, False
  while at + 9 < end and data[at] == 0xFF:
    marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
    if marker == _START_OF_SCAN[1]:
      return size
    if marker in _START_OF_FRAME:
      precision, components = data[at + 4], data[at + 9]
      height, width = (int.from_bytes(data[start : start + 2], "big") for start in (at + 5, at + 7))
      if size or precision != 8 or components not in (1, 3) or not height or not width:
        return None
      size = height, width
    elif marker in _OTHER_FRAMES or not 0xC0 <= marker < 0xFF or 0xD0 <= marker <= 0xD9 or length < 2:
      return None
    elif marker == 0xE1:
      segment = data[at + 4 : at + 2 + length]
      is_exif = segment.startswith(b"Exif")
      if (is_exif and has_exif) or not _upright(segment):  # Pillow joins several EXIF segments
        return None
      has_exif |= is_exif
    at += 2 + length
  return None


def _upright(segment: bytes) -> bool:
  """Whether an APP1 segment leaves the image as it is, without a rotation."""
  if b"tiff:Orientation" in segment:
    return False
  if not segment.startswith(b"Exif"):
    return True
  exif = Image.Exif()
  try:
    exif.load(segment)
    return exif.get(_ORIENTATION, 1) == 1
  except Exception:  # Pillow judges damaged EXIF; it sees the complete file
    return False


def check_scans(data: bytes) -> None:
  """Raises a `BadImageError` for a JPEG of more than `MAX_SCANS` scans: a thousand take minutes to decode."""
  # Cameras append other data to an image, such as a film, which may contain the marker too. So a low count proves the
  # image harmless, and a high one needs the walk over the segments below.
  if data[:2] != b"\xff\xd8" or data.count(_START_OF_SCAN) <= MAX_SCANS:
    return
  at, scans = 2, 0
  while 0 <= (at := data.find(b"\xff", at)) < len(data) - 3:
    marker = data[at + 1]
    if marker == 0xD9:
      return
    scans += marker == _START_OF_SCAN[1]
    if scans > MAX_SCANS:
      raise BadImageError(
          f"it is a JPEG of more than {MAX_SCANS} scans, which no image needs and which take long to decode")
    if marker == 0xFF:
      at += 1
    elif marker == 0 or 0xD0 <= marker <= 0xD8:  # inside a scan
      at += 2
    else:
      at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")


def pillow(data: bytes, background: str = "white") -> np.ndarray:
  """uint8 [h w 3]: the first frame or page, turned as its EXIF says, laid on `background` where it is transparent.

  Of 16 bits a channel the upper eight count: Pillow does so for colours, TensorFlow and viewers for grey too.

  Raises:
    BadImageError: it is empty, truncated or damaged, has more than `MAX_PIXELS` pixels or `MAX_SCANS` scans, holds
      floats or 32-bit integers, or is not an image of a known kind.
  """
  with _decoded(data, background) as pixels:
    return pixels


@contextlib.contextmanager
def _decoded(data: bytes, background: str) -> Iterator[np.ndarray]:
  """The pixels of an image; as long as the context is open, they count against the limit on pixels in memory."""
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
    except Exception as error:  # Pillow's readers raise errors of any class for damaged files
      raise BadImageError(" ".join(str(error).split()) or type(error).__name__) from error
    yield pixels


def _pixels(image: Image.Image, background: str) -> np.ndarray:
  ImageOps.exif_transpose(image, in_place=True)  # without a copy
  if image.mode.startswith("I;16"):  # 16-bit grey, which Pillow would reduce to its low eight bits, or to white
    values, clear = np.asarray(image), image.info.get("transparency")
    grey = (values >> 8).astype(np.uint8)
    if isinstance(clear, int):
      grey[values == clear] = 255 if background == "white" else 0
    return np.repeat(grey[..., None], 3, axis=2)
  if image.mode in ("F", "I"):
    raise BadImageError("its pixels are floats or 32-bit integers without a known range of brightness; save it "
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
  """Limits the pixels of all images that are decoded at the same time to those of the largest single image."""

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
# Many threads read, but only one for each core decodes: each retains memory for its next image.
_DECODERS = futures.ThreadPoolExecutor(cores(), "decoder")


class Images:
  """`Files`, decoded; a bad image raises an error, or is counted and replaced by a black one."""

  def __init__(self, files: Files, log: "BadImages", background: str = "white"):
    """Transparent images are laid on `background`, "white" or "black"."""
    self._files, self._log, self._background = files, log, background
    self.by_pillow = set()  # indices of plain JPEGs that TensorFlow has failed to decode
    self.check = log.check

  def __len__(self) -> int:
    return len(self._files)

  def entries(self) -> Iterator[tuple[str, int]]:
    """The entries of the `Files`."""
    return self._files.entries()

  def name(self, place: int) -> str:
    """The name of image number `place` in messages."""
    return self._files.name(place)

  def open(self, place: int, reduce: Callable[[np.ndarray], Any] = lambda pixels: pixels) -> Encoded:
    """Image number `place`, or a black one if it is bad. Many threads call this.

    `reduce` turns the pixels of any image but a plain JPEG into something smaller. It runs while the gate holds, so the
    pixels in memory stay within `MAX_PIXELS` for any batch size and any number of threads.
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

  With policy "error" the first bad image stops the run. With "substitute" black images replace the bad ones, so the
  order and the length of the data stay; more than ten, and more than one in a thousand, stop the run. A process knows
  the bad images it has met itself, and after `gather` those of all processes; its limit counts what it knows.
  """

  POLICIES = ("error", "substitute")

  def __init__(self, policy: str = "error", size: int = 0, path: pathlib.Path | None = None,
               limit: int | None = None):
    """Starts from the lines of the file `path`, and appends what is counted there, so that a resumed run still knows.

    Only the first process of a run reads or writes the file. `size` is the number of images; `limit` replaces the limit
    of one in a thousand, or ten.
    """
    self._policy, self._lock = policy, threading.Lock()
    self._limit = max(10, size // 1000) if limit is None else limit
    self._path = path if path and processes.is_first() else None
    self.found: dict[str, str] = {}  # name: reason
    self.retried = 0
    self._fresh = 0  # the repeated reads of this process since the last `gather`
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
    """Tells every process of a run what all processes have met; all must call it, at the same point."""
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
    """Raises a `DataError` if the bad images stop the run, a `WorkdirError` if they could not be written down."""
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
  """Reads a file that `BadImages` has written: reasons by image, and the number of repeated reads."""
  found, retried = {}, 0
  *lines, cut_off = path.read_bytes().split(b"\n")
  if cut_off:  # the run was killed while it wrote; it will meet the image again
    os.truncate(path, path.stat().st_size - len(cut_off))
  for number, line in enumerate(lines, 1):
    try:
      content = json.loads(line)
      if "retried" in content:
        retried += int(content["retried"])
      else:
        found[str(content["image"])] = str(content["reason"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
      raise WorkdirError(f"{path}:{number}: not a line that ltjax wrote; delete the file to forget which images "
                         "were bad") from error
  return found, retried


def opened(dataset, policy: str = "error", path: pathlib.Path | None = None):
  """`dataset`, a `sources.Dataset`, with `Images` for its `Files`; and the list of bad images that they share."""
  splits = {split: getattr(dataset, split) for split in dataset.splits}
  files = {split: pair for split, pair in splits.items() if not isinstance(pair[0], np.ndarray | Images)}
  log = BadImages(policy, sum(len(pair[0]) for pair in files.values()), path)
  return dataset._replace(**{split: (Images(images, log, dataset.background), labels)
                             for split, (images, labels) in files.items()}), log
