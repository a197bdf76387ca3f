"""Encoded images, read one by one from a disk or a bucket. A `Dataset` of image files holds them instead of arrays."""

import errno
import os
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from concurrent import futures
from typing import BinaryIO, Protocol

from etils import epath

# Remote file systems raise their own errors; these are permanent, so a repeated read would not help.
_REMOTE = dict(NotFoundError=FileNotFoundError, PermissionDeniedError=PermissionError,
               UnauthenticatedError=PermissionError)
MAX_BYTES = 2**29  # twice the largest image that we decode, uncompressed
_KINDS = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
_STATS = 8, 4096  # threads that ask for file sizes, and files that a thread asks for at a time


class NotAnImageFileError(OSError):
  """The file is not a regular file, or too long for an image."""


class Files(Protocol):
  """n encoded images (JPEG, PNG, ...), read by their index."""

  def __len__(self) -> int:
    """n."""

  def read(self, place: int) -> bytes:
    """The bytes of image number `place`; raises an OSError if they cannot be read. Many threads call it."""

  def name(self, place: int) -> str:
    """The name of image number `place` in messages."""

  def entries(self) -> Iterator[tuple[str, int]]:
    """(a name that is the same wherever the data are, bytes or -1) of every image; a fingerprint hashes these."""


class Paths:
  """Files of a folder, local or gs://."""

  def __init__(self, root: str, paths: Sequence[str]):
    """`paths` are relative to `root`, with forward slashes."""
    self._root, self._paths = root.rstrip("/"), paths

  def __len__(self) -> int:
    return len(self._paths)

  def read(self, place: int) -> bytes:
    """The bytes of image number `place`."""
    try:
      with self.open(place) as file:
        return file.read()
    except OSError:
      raise
    except Exception as error:
      if "://" not in self.name(place):
        raise
      raise _REMOTE.get(type(error).__name__, OSError)(f"{self.name(place)}: {str(error)[:300]}") from error

  def open(self, place: int) -> BinaryIO:
    """Image number `place` as an open file, for callers that need only a part of it.

    Raises:
      NotAnImageFileError: a FIFO, a socket, a device, or a file of more than `MAX_BYTES`.
    """
    name = self.name(place)
    # epath takes twice as long (32 us) for a local file of 40 KB that is in memory.
    if "://" in name:
      return epath.Path(name).open("rb")
    try:
      return _open_regular(name)
    except FileNotFoundError:
      # A list from one system may spell accents otherwise than the disk of another.
      for other in _spellings(self._paths[place]):
        if os.path.exists(found := f"{self._root}/{other}"):
          return _open_regular(found)
      raise

  def name(self, place: int) -> str:
    """The full path of image number `place`."""
    return f"{self._root}/{self._paths[place]}"

  def take(self, places: Iterable[int]) -> "Paths":
    """The images with indices `places`, in that order."""
    return Paths(self._root, [self._paths[place] for place in places])

  def entries(self) -> Iterator[tuple[str, int]]:
    """(path relative to the root in composed Unicode, bytes) of every image; -1 bytes on gs:// and for a lost file."""
    threads, size = _STATS
    chunks = [range(start, min(start + size, len(self))) for start in range(0, len(self), size)]
    # A network disk answers slowly, but it answers many requests at a time.
    with futures.ThreadPoolExecutor(threads, "sizes") as pool:
      for chunk, sizes in zip(chunks, pool.map(lambda chunk: [*map(self._size, chunk)], chunks), strict=True):
        for place, size in zip(chunk, sizes, strict=True):
          yield unicodedata.normalize("NFC", self._paths[place]), size

  def _size(self, place: int) -> int:
    name = self.name(place)
    if "://" in name:
      return -1
    try:
      return os.stat(name).st_size
    except OSError:
      for other in _spellings(self._paths[place]):
        if os.path.exists(found := f"{self._root}/{other}"):
          return os.stat(found).st_size
      return -1


def _open_regular(name: str) -> BinaryIO:
  info = os.stat(name)
  # Check before opening: to open a device may already have an effect, and to open a FIFO waits.
  if stat.S_ISDIR(info.st_mode):
    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
  if not stat.S_ISREG(info.st_mode):
    raise NotAnImageFileError(errno.EINVAL, f"it is {_KINDS.get(stat.S_IFMT(info.st_mode), 'something')}, "
                              "not a regular file", name)
  if info.st_size > MAX_BYTES:
    raise NotAnImageFileError(errno.EFBIG, f"it has {info.st_size:,} bytes, more than the {MAX_BYTES:,} that an image "
                              "may have", name)
  return open(name, "rb", buffering=0)


def _spellings(path: str) -> Iterator[str]:
  """`path` with its accents composed and decomposed, if that changes it: macOS writes the second form."""
  for form in ("NFC", "NFD"):
    if (other := unicodedata.normalize(form, path)) != path:
      yield other
