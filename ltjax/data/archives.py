"""Unpacks a downloaded archive; refuses one with anything but files and folders, or with a path that leads outside.

python -m ltjax unpack ARCHIVE DIR

makes DIR, which must not exist yet, from a .tar (plain, .gz, .bz2, .xz) or .zip under any file name. Everything goes
into a temporary folder beside DIR first, and one rename at the end makes it DIR: a user finds all of it, or nothing.
"""

import bz2
import contextlib
import functools
import gzip
import lzma
import os
import pathlib
import stat
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from tqdm import tqdm

from ltjax.errors import DataError

COMMAND = "python -m ltjax unpack ARCHIVE DIR"
SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
# Images hardly shrink and lists of them shrink to a tenth; an archive that exceeds both limits is not a data set.
MAX_RATIO, MAX_SMALL = 100, 2**26
MAX_BYTES = 2**40  # seven times ImageNet
_BLOCK = 2**20
_HEADER = 2**22  # bytes; a header states its own size, and tarfile would read that much into memory
_UNPACKERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
# The standard library raises all of these for archives that are damaged, cut off or of an unknown kind.
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile,
            NotImplementedError, RuntimeError, UnicodeError, ValueError, OverflowError)


class _Member(NamedTuple):
  """A file or a folder of an archive; `open` gives a file's bytes."""

  name: str
  is_folder: bool
  open: Callable[[], BinaryIO]


def extract(archive: str | os.PathLike, folder: str | os.PathLike) -> pathlib.Path:
  """Unpacks `archive` as `folder`, and returns the folder.

  Modes, owners and times are not restored. Every link is refused, wherever it leads: no data set needs one.

  Raises:
    DataError: `folder` exists already; or `archive` is not an archive, is damaged, cut off or encrypted, or unpacks to
      more than both 100 times its size and 64 MiB; or a member would land outside the folder, is neither file nor
      folder, or has the name of another member, even if case or the form of an accent differs. Nothing stays on disk.
  """
  path, target = pathlib.Path(archive).expanduser(), pathlib.Path(folder).expanduser()
  if not path.is_file():
    raise DataError(f"{path}: no such file; give an archive ({', '.join(SUFFIXES)})")
  if os.path.lexists(target):
    raise DataError(f"{target}: is there already; give another folder, or move this one away")
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
      made = pathlib.Path(temporary) / "unpacked"  # with the usual mode; the temporary folder's is 0700
      made.mkdir()
      _unpack(path, made)
      made.rename(target)
  except DataError:
    raise
  except OSError as error:
    # bz2 and gzip raise an OSError without a number for damaged data.
    reason = f"damaged ({error})" if error.errno is None else f"cannot be unpacked to {target} ({error.strerror})"
    raise DataError(f"{path}: {reason}") from error
  except _DAMAGED as error:
    raise DataError(f"{path}: damaged, cut off or of a kind that is not known ({str(error) or type(error).__name__}); "
                    "fetch it again") from error
  return target


def _unpack(path: pathlib.Path, root: pathlib.Path) -> None:
  size = path.stat().st_size
  limit = min(max(MAX_RATIO * size, MAX_SMALL), MAX_BYTES)
  names, left = _Names(path, root), limit
  with contextlib.closing(_members(path, limit)) as members:
    for member in tqdm(members, desc=path.name, unit="file", disable=None):
      destination = names.add(member)
      destination.parent.mkdir(parents=True, exist_ok=True)
      if member.is_folder:
        destination.mkdir(exist_ok=True)
        continue
      with member.open() as source, open(destination, "xb") as file:
        while block := source.read(_BLOCK):
          # Count the bytes that arrive: a header may state any size.
          left -= len(block)
          if left < 0:
            raise _too_large(path, limit, member.name)
          file.write(block)


class _Names:
  """The names that an archive has used."""

  def __init__(self, archive: pathlib.Path, root: pathlib.Path):
    self._archive, self._root = archive, os.path.realpath(root)
    # As a file system may compare names -> (the name itself, is it a folder).
    self._used: dict[str, tuple[str, bool]] = {}

  def add(self, member: _Member) -> pathlib.Path:
    """Where to write `member`; raises if that is outside the root, or if another member has the name."""
    name = member.name
    if "\0" in name or "\\" in name or name.startswith("/") or pathlib.PureWindowsPath(name).drive:
      raise self._refused(name, "is not a relative name with forward slashes")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
      raise self._refused(name, "leads outside the folder")
    destination = os.path.join(self._root, *parts)
    if os.path.commonpath((os.path.realpath(destination), self._root)) != self._root:
      raise self._refused(name, "leads outside the folder")
    if not parts and not member.is_folder:
      raise self._refused(name, "is a file without a name")
    for count in range(1, len(parts) + 1):
      self._take("/".join(parts[:count]), count < len(parts) or member.is_folder, name)
    return pathlib.Path(destination)

  def _take(self, path: str, is_folder: bool, name: str) -> None:
    # macOS and Windows ignore case, macOS also the form of accents: there the second file would replace the first.
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
    first, was_folder = self._used.get(folded, (path, True))
    if first != path:
      raise self._refused(name, f"is {first!r} where case or the form of accents does not count")
    if folded in self._used and not (is_folder and was_folder):
      raise self._refused(name, "is there twice")
    self._used[folded] = path, is_folder

  def _refused(self, name: str, reason: str) -> DataError:
    return DataError(f"{self._archive}: {name!r} {reason}; nothing was unpacked")


# -- the members of an archive -----------------------------------------------------------------------------------------


def _members(path: pathlib.Path, limit: int) -> Iterator[_Member]:
  """The members of a .zip or a .tar; the first bytes decide which it is, as a file name may be wrong."""
  with open(path, "rb") as file:
    head = file.read(512)
  if head[:4] in (b"PK\3\4", b"PK\5\6"):
    return _zip_members(path, limit)
  opens = next((opens for magic, opens in _UNPACKERS.items() if head.startswith(magic)), open)
  if opens is open and head[257:262] != b"ustar":
    raise DataError(f"{path}: no archive that can be unpacked ({', '.join(SUFFIXES)}); it starts with {head[:16]!r}")
  return _tar_members(path, opens, limit)


def _zip_members(path: pathlib.Path, limit: int) -> Iterator[_Member]:
  with zipfile.ZipFile(path) as archive:
    if sum(info.file_size for info in archive.infolist()) > limit:
      raise _too_large(path, limit, archive.infolist()[0].filename)
    for info in archive.infolist():
      mode, name = stat.S_IFMT(info.external_attr >> 16), info.orig_filename
      if info.flag_bits & 1:
        raise DataError(f"{path}: {name!r} is encrypted; unpack it by other means")
      if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _no_file(path, name)
      yield _Member(name, info.is_dir(), functools.partial(archive.open, info))


def _tar_members(path: pathlib.Path, opens, limit: int) -> Iterator[_Member]:
  with opens(path, "rb") as file, tarfile.open(fileobj=(stream := _Bounded(file, path, limit)), mode="r:") as archive:
    while member := archive.next():
      archive.members = []  # tarfile would collect every member in memory
      if member.issparse() or not (member.isreg() or member.isdir()):
        raise _no_file(path, member.name)
      stream.behind = member.name
      try:  # a second opinion; it strips a leading slash, so `_Names` checks the original name
        tarfile.data_filter(member, tempfile.gettempdir())
      except tarfile.FilterError as error:
        raise DataError(f"{path}: {member.name!r} leads outside the folder; nothing was unpacked") from error
      yield _Member(member.name, member.isdir(), functools.partial(archive.extractfile, member))
    # tarfile treats a damaged header, or the end of the file, like the end of the archive; only zeros mark a real end.
    stream.seek(archive.offset)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
      raise DataError(f"{path}: damaged or cut off behind {stream.behind!r}; fetch it again")
    while stream.read(_BLOCK):  # reaches the checksum of the compression, which Python then verifies
      pass


class _Bounded:
  """The file methods that tarfile calls, limited in position and in the bytes that one read may put into memory."""

  def __init__(self, file: BinaryIO, path: pathlib.Path, limit: int):
    self._file, self._path, self._limit, self.behind = file, path, limit, ""

  def read(self, size: int) -> bytes:
    """At most `size` bytes."""
    if size > _HEADER:
      raise DataError(f"{self._path}: a header of {size:,} bytes behind {self.behind!r}; nothing was unpacked")
    data = self._file.read(size)
    self._check(self._file.tell())
    return data

  def seek(self, place: int) -> int:
    """Goes to byte `place`."""
    self._check(place)
    return self._file.seek(place)

  def tell(self) -> int:
    """The current position."""
    return self._file.tell()

  def _check(self, place: int) -> None:
    if place > self._limit:
      raise _too_large(self._path, self._limit, self.behind)


def _too_large(path: pathlib.Path, limit: int, name: str) -> DataError:
  return DataError(f"{path}: unpacks to more than {limit:,} bytes by {name!r}, which no data set of "
                   f"{path.stat().st_size:,} bytes does; nothing was unpacked")


def _no_file(path: pathlib.Path, name: str) -> DataError:
  return DataError(f"{path}: {name!r} is neither file nor folder, but a link, a device or the like; nothing was "
                   "unpacked")
