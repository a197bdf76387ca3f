"""F17: archives that lie. Each is one error that names the member, and leaves nothing, inside the folder or outside."""

import bz2
import gzip
import io
import lzma
import os
import pathlib
import stat
import subprocess
import sys
import tarfile
import unicodedata
import warnings
import zipfile

import pytest

from ltjax.data import archives, photos
from ltjax.errors import DataError
from tests.photographs import jpeg

ROOT = pathlib.Path(__file__).parents[2]
GOOD = {"set/cat/0.jpg": jpeg(0), "set/cat/1.jpg": jpeg(1), "set/dog/ü 0.jpg": jpeg(2),
        "set/list.txt": b"cat/0.jpg 0\n"}


def member(name: str, data: bytes = b"", **fields) -> tuple[tarfile.TarInfo, bytes]:
  info = tarfile.TarInfo(name)
  info.size = len(data)
  for key, value in fields.items():
    setattr(info, key, value)
  return info, data


def tar(*members, format=tarfile.PAX_FORMAT) -> bytes:
  data = io.BytesIO()
  with tarfile.open(fileobj=data, mode="w", format=format) as archive:
    for name, content in GOOD.items():
      archive.addfile(member(name)[0] if content is None else member(name, content)[0], io.BytesIO(content))
    for info, content in members:
      archive.addfile(info, io.BytesIO(content))
  return data.getvalue()


def link(name: str, to: str, kind=tarfile.SYMTYPE):
  return member(name, type=kind, linkname=to)


def zipped(*entries: tuple[str | zipfile.ZipInfo, bytes], **options) -> bytes:
  data = io.BytesIO()
  with zipfile.ZipFile(data, "w", **options) as archive, warnings.catch_warnings():
    warnings.simplefilter("ignore")  # about duplicate names
    for name, content in (*GOOD.items(), *entries):
      archive.writestr(name, content)
  return data.getvalue()


def zip_link(name: str, to: str) -> tuple[zipfile.ZipInfo, bytes]:
  info = zipfile.ZipInfo(name)
  info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
  return info, to.encode()


def encrypted() -> bytes:
  """A .zip with its first file marked as encrypted."""
  data = bytearray(zipped())
  for at in (data.index(b"PK\3\4") + 6, data.index(b"PK\1\2") + 8):
    data[at] |= 1
  return bytes(data)


def lying_zip() -> bytes:
  """A .zip with a file of 3,000 times the size that its directory says."""
  data = bytearray(zipped(("bomb", bytes(3 * 10**6)), compression=zipfile.ZIP_DEFLATED))
  at = data.rindex(b"PK\1\2") + 24
  data[at : at + 4] = (1000).to_bytes(4, "little")
  return bytes(data)


def bomb_tar() -> bytes:
  info = tarfile.TarInfo("set/zeros")
  info.size = 2**28
  packed = io.BytesIO()
  with lzma.open(packed, "wb", preset=0) as file:
    file.write(info.tobuf())
    for _ in range(2**8):
      file.write(bytes(2**20))
    file.write(bytes(1024))
  return packed.getvalue()


def bomb_header() -> bytes:
  """A .tar.gz whose pax header, which a reader holds in memory, has 512 MiB."""
  info = tarfile.TarInfo("pax")
  info.size, info.type = 2**29, tarfile.XHDTYPE
  return gzip.compress(info.tobuf() + bytes(2**20))


def sparse() -> bytes:
  """A file that claims 2^40 bytes and stores none."""
  header = bytearray(tarfile.TarInfo("set/sparse").tobuf(tarfile.GNU_FORMAT))
  header[156:157] = tarfile.GNUTYPE_SPARSE
  header[386:410] = b"00000000000\0" * 2
  header[483:495] = b"\x80" + (2**40).to_bytes(11, "big")
  header[148:156] = b" " * 8
  header[148:156] = b"%06o\0 " % sum(header)
  return bytes(header) + bytes(1024)


COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "set/é.jpg") for form in ("NFC", "NFD"))
ZOO = {  # fault: the archive, parts of the message
    "tar, parent": (tar(member("../evil", b"x")), "'../evil' leads outside"),
    "tar, parent in the middle": (tar(member("set/../../evil", b"x")), "'set/../../evil'"),
    "tar, absolute": (tar(member("/tmp/evil", b"x")), "'/tmp/evil' is not a relative name"),
    "tar, drive": (tar(member("C:/evil", b"x")), "'C:/evil' is not a relative name"),
    "tar, backslash": (tar(member("..\\evil", b"x")), "is not a relative name"),
    "tar, folder outside": (tar(member("../evil", type=tarfile.DIRTYPE)), "'../evil'"),
    "tar, link outside": (tar(link("set/l", "../../evil")), "'set/l' is neither file nor folder"),
    "tar, absolute link": (tar(link("set/l", "/etc")), "'set/l' is neither"),
    "tar, file through a link": (tar(link("set/l", "/tmp"), member("set/l/evil", b"x")), "'set/l' is neither"),
    "tar, link inside": (tar(link("set/l", "cat")), "'set/l' is neither"),
    "tar, hard link": (tar(link("set/l", "/etc/passwd", tarfile.LNKTYPE)), "'set/l' is neither"),
    "tar, device": (tar(member("set/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3)), "'set/null' is neither"),
    "tar, block device": (tar(member("set/disk", type=tarfile.BLKTYPE)), "'set/disk' is neither"),
    "tar, fifo": (tar(member("set/pipe", type=tarfile.FIFOTYPE)), "'set/pipe' is neither"),
    "tar, sparse": (sparse(), "'set/sparse' is neither"),
    "tar, twice": (tar(member("set/list.txt", b"other")), "'set/list.txt' is there twice"),
    "tar, twice by a dot": (tar(member("set/./list.txt", b"other")), "'set/./list.txt' is there twice"),
    "tar, case": (tar(member("set/LIST.txt", b"other")), "'set/LIST.txt' is 'set/list.txt' where case"),
    "tar, case of a folder": (tar(member("SET/new.txt", b"other")), "'SET/new.txt' is 'set' where case"),
    "tar, accent": (tar(member(COMPOSED, b"1"), member(DECOMPOSED, b"2")), "the form of accents"),
    "tar, file in a file": (tar(member("set/list.txt/x", b"1")), "'set/list.txt/x' is there twice"),
    "tar, long name": (tar(member("set/" + "x" * 300, b"1")), "cannot be unpacked to"),
    "tar, bomb": (bomb_tar(), "unpacks to more than 67,108,864 bytes by 'set/zeros'"),
    "tar, bomb of a header": (bomb_header(), "a header of 536,870,912 bytes"),
    "tar, cut in a file": (tar()[:600], "damaged, cut off"),
    "tar, cut between files": (tar()[: 512 + 1024], "cut off behind 'set/cat/0.jpg'"),
    "tar, damaged header": (tar().replace(b"set/cat/1.jpg", b"set/cat/9.jpg"), "cut off behind 'set/cat/0.jpg'"),
    "tar.gz, cut off": (gzip.compress(tar())[:-100], "damaged, cut off"),
    "tar.gz, last check sum": (gzip.compress(tar())[:-8] + bytes(8), "damaged"),
    "tar.bz2, damaged": (bz2.compress(tar())[:-20] + bytes(20), "damaged"),
    "tar.xz, cut off": (lzma.compress(tar())[:-30], "damaged, cut off"),
    "gz of no tar": (gzip.compress(b"cat/0.jpg 0\n" * 100), "damaged, cut off or of a kind that is not known"),
    "web page": (b"<!DOCTYPE html><title>Quota exceeded</title>", "it starts with b'<!DOCTYPE html><'"),
    "empty": (b"", "no archive that can be unpacked"),
    "zip, parent": (zipped(("../evil", b"x")), "'../evil' leads outside"),
    "zip, absolute": (zipped(("/tmp/evil", b"x")), "'/tmp/evil' is not a relative name"),
    "zip, backslash": (zipped(("set\\..\\..\\evil", b"x")), "is not a relative name"),
    "zip, zero byte": (zipped()[:].replace(b"set/list.txt", b"set/li\0t.txt"), "is not a relative name"),
    "zip, link": (zipped(zip_link("set/l", "/tmp")), "'set/l' is neither"),
    "zip, twice": (zipped(("set/list.txt", b"other")), "'set/list.txt' is there twice"),
    "zip, case": (zipped(("set/LIST.TXT", b"other")), "where case"),
    "zip, encrypted": (encrypted(), "'set/cat/0.jpg' is encrypted"),
    "zip, bomb": (zipped(("bomb", bytes(10**8)), compression=zipfile.ZIP_DEFLATED), "unpacks to more than 67,108,864"),
    "zip, bomb that lies": (lying_zip(), "damaged"),
    "zip, cut off": (zipped()[:-30], "damaged, cut off"),
    "zip, check sum": (zipped().replace(b"cat/0.jpg 0\n", b"cat/0.jpg 1\n"), "damaged"),
}


def contents(folder: pathlib.Path) -> dict[str, bytes | None]:
  return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("kind", ZOO)
def test_it_is_refused_and_nothing_is_left(kind, tmp_path):
  data, reason = ZOO[kind]
  archive = tmp_path / "photographs.archive"
  archive.write_bytes(data)
  (tmp_path / "here").mkdir()
  with pytest.raises(DataError) as caught:
    archives.extract(archive, tmp_path / "here" / "photographs")
  message = str(caught.value)
  assert reason in message and str(archive) in message and "\n" not in message
  assert contents(tmp_path) == {"photographs.archive": data, "here": None}
  assert not pathlib.Path("/tmp/evil").exists()


PACKED = {".tar": tar(), ".tar.gz": gzip.compress(tar()), ".tar.bz2": bz2.compress(tar()),
          ".tar.xz": lzma.compress(tar()), ".zip": zipped(compression=zipfile.ZIP_DEFLATED),
          "ustar": tar(format=tarfile.USTAR_FORMAT), "gnu": tar(format=tarfile.GNU_FORMAT),
          "folders first": tar(member("set", type=tarfile.DIRTYPE), member("set/none", type=tarfile.DIRTYPE)),
          "dots": tar(member("./set/dots.txt", b"x"), member(".", type=tarfile.DIRTYPE))}


@pytest.mark.parametrize("kind", PACKED)
def test_valid_archives_are_unpacked(kind, tmp_path):
  archive = tmp_path / "archive"
  archive.write_bytes(PACKED[kind])
  assert archives.extract(archive, tmp_path / "below" / "it") == tmp_path / "below" / "it"
  found = contents(tmp_path / "below" / "it")
  assert {name: data for name, data in found.items() if name in GOOD} == GOOD
  assert not {name for name, data in found.items() if data is not None} - {*GOOD, "set/dots.txt"}
  assert [path.name for path in (tmp_path / "below").iterdir()] == ["it"]
  mode = stat.S_IMODE((tmp_path / "below").stat().st_mode)
  assert stat.S_IMODE((tmp_path / "below" / "it").stat().st_mode) == mode
  if kind != "folders first":  # which has a class without an image
    assert photos.folder(root=str(tmp_path / "below" / "it" / "set")).class_names == ("cat", "dog")


def test_existing_files_are_not_touched(tmp_path):
  archive, target = tmp_path / "a.tar", tmp_path / "it"
  archive.write_bytes(tar())
  for make in (target.mkdir, target.rmdir, target.touch, target.unlink, lambda: target.symlink_to("nowhere")):
    make()
    if os.path.lexists(target):
      with pytest.raises(DataError, match="is there already"):
        archives.extract(archive, target)
  with pytest.raises(DataError, match="no such file"):
    archives.extract(tmp_path, tmp_path / "new")


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
  (tmp_path / "a.tar").write_bytes(tar())

  def full(*args):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(pathlib.Path, "rename", full)
  with pytest.raises(DataError, match="cannot be unpacked to .* .No space left on device."):
    archives.extract(tmp_path / "a.tar", tmp_path / "it")
  assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def command(*arguments) -> subprocess.CompletedProcess:
  return subprocess.run([sys.executable, "-m", "ltjax", "unpack", *map(str, arguments)], cwd=ROOT, text=True,
                        capture_output=True, timeout=60)


def test_the_command(tmp_path):
  archive = tmp_path / "a.tgz"
  archive.write_bytes(gzip.compress(tar()))
  done = command(archive, tmp_path / "it")
  assert (done.returncode, done.stdout) == (0, f"written: {tmp_path / 'it'}\n"), done.stderr
  for arguments, reason in (((archive, tmp_path / "it"), "is there already"), ((archive,), "expected an archive and")):
    failed = command(*arguments)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.startswith("error: ") and reason in failed.stderr and failed.stderr.count("\n") == 1
