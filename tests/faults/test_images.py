"""F8, F9: damaged images and files that are not images. See tests/data/test_decode.py for intact ones.
"""

import gzip
import io
import os
import pathlib
import resource
import socket
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ltjax.commands import verify
from ltjax.data import decode, pipeline
from ltjax.data import photos as folders
from ltjax.data.files import Paths
from ltjax.errors import DataError
from tests import photographs, photos
from tests.faults import mutants

ROOT = pathlib.Path(__file__).parents[2]

ZOO = photos.zoo()
RGB = Image.fromarray(photos.picture(30, 44))


def resized(data: bytes, at: int, width: bytes) -> bytes:
  """An image whose header claims another size."""
  return data[:at] + width + data[at + len(width):]


def scans(count: int) -> bytes:
  """A progressive JPEG with `count` more copies of its last scan."""
  data = ZOO["progressive jpeg"]
  last, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
  return data[:end] + count * data[last:end] + data[end:]


def tiff_bomb() -> bytes:
  """A TIFF whose tag 256, the width, a long integer, is 65,535 times 44."""
  tag = struct.pack("<HHII", 256, 4, 1, 44)
  assert tag in ZOO["tiff"]
  return ZOO["tiff"].replace(tag, struct.pack("<HHII", 256, 4, 1, 44 * 65_535))


BAD = {
    "empty": b"", "one byte": b"\xff", "zeros": bytes(5000), "text": b"not an image", "page": b"<!DOCTYPE html><html>",
    "packed": gzip.compress(ZOO["jpeg"]), "svg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
    "jpeg 2000": photos.encode(RGB, "JPEG2000"), "tiff of floats": photos.encode(Image.new("F", (9, 9)), "TIFF"),
    "jpeg of 1,000 scans": scans(1000), "gif of 9,400 x 9,400": resized(ZOO["gif"], 6, b"\xb8\x24\xb8\x24"),
    "bomb of a tiff": tiff_bomb(),
    "postscript": photos.encode(RGB, "EPS"), "pdf": b"%PDF-1.4\n", "icon": photos.encode(RGB, "ICO"),
    **{f"{kind}, half": ZOO[kind][: len(ZOO[kind]) // 2] for kind in (
        "jpeg", "progressive jpeg", "cmyk jpeg", "grey jpeg", "png", "rgba png", "16-bit rgb png", "webp", "bmp",
        "tiff", "packed tiff")},
    **{f"{kind}, 20 bytes": ZOO[kind][:20] for kind in ("jpeg", "png", "webp", "gif", "bmp", "tiff")},
    "jpeg without its end": ZOO["jpeg"][:-40], "png without its end": ZOO["png"][:-40],
    "jpeg, nothing behind its header": ZOO["jpeg"][: ZOO["jpeg"].index(b"\xff\xda")],
    "png with a damaged part": ZOO["png"][:200] + bytes(50) + ZOO["png"][250:],
    "png of no size": ZOO["png"].replace((44).to_bytes(4, "big"), bytes(4), 1),
    "lossless jpeg": ZOO["jpeg"].replace(b"\xff\xc0", b"\xff\xc3", 1),
    "bomb of a png": photos.bomb(),
    "bomb of a jpeg": ZOO["jpeg"].replace(b"\x08\x00\x1e\x00\x2c", b"\x08\xff\xdc\xff\xdc"),
    "bomb of a gif": resized(ZOO["gif"], 6, b"\xff\xff\xff\xff"),
    "bomb of a bmp": resized(ZOO["bmp"], 18, (60_000).to_bytes(4, "little") * 2),
    "bomb of zeros": photos.png(30_000, 30_000, 8, b""),
}


@pytest.mark.parametrize("kind", BAD)
def test_it_is_one_error_that_names_the_file(kind, tmp_path):
  images = decode.Images(photos.write(tmp_path, {"a b/ü.jpg": BAD[kind]}), log := decode.BadImages())
  memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  np.testing.assert_array_equal(images.open(0).pixels, np.zeros((1, 1, 3)))
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 300_000  # KB; a bomb would take gigabytes
  with pytest.raises(DataError, match=r"a b/ü\.jpg: the image cannot be decoded: \S") as caught:
    log.check()
  assert "\n" not in str(caught.value)


def test_the_order_stays_and_the_good_images_too(tmp_path):
  """Bad images between good ones, in batches: black squares at their indices, and no effect on the others."""
  names = [f"{number:02d}" for number in range(2 * len(BAD))]
  good = {name: photos.jpeg(20, 24, number) for number, name in enumerate(names)}
  mixed = good | {f"{2 * number:02d}": data for number, data in enumerate(BAD.values())}
  batches, logs = [], []
  for folder, files in (("good", good), ("mixed", mixed)):
    log = decode.BadImages("substitute", 1000 * len(names))
    images = decode.Images(photos.write(tmp_path / folder, files), log)
    stream = pipeline.Pipeline(images, np.arange(len(names)), lambda step: np.arange(8 * step, 8 * step + 8),
                               len(names) // 8, crop=pipeline.CentralCrops(16))
    batches.append([stream.batch(step) for step in range(len(names) // 8)])
    logs.append(log)
  seen = 8 * (len(names) // 8)
  for before, after in zip(*batches, strict=True):
    np.testing.assert_array_equal(before["labels"], after["labels"])
    np.testing.assert_array_equal(before["images"][1::2], after["images"][1::2])
    assert not after["images"][::2].any() and before["images"][::2].any()
  assert logs[0].found == {} and len(logs[1].found) == seen // 2


@pytest.mark.parametrize("kind", [
    "jpeg", "progressive jpeg", "cmyk jpeg", "png", "16-bit grey png", "webp", "gif", "bmp", "turned 6", "tiff",
    "packed tiff"])
def test_no_damage_is_a_crash(kind):
  """Bytes changed at random: an image, or one reason; never anything else, and never a warning."""
  generator = np.random.default_rng(0)
  for _ in range(60):
    data = bytearray(ZOO[kind])
    for at in generator.integers(0, len(data), generator.integers(1, 8)):
      data[at] = generator.integers(256)
    try:
      decode.plain_jpeg_size(bytes(data))
      assert decode.pillow(bytes(data)).dtype == np.uint8
    except decode.BadImageError as error:
      assert str(error)


def test_the_bombs_are_bombs():
  with Image.open(io.BytesIO(ZOO["jpeg"])) as image:
    assert image.size == (44, 30)
  assert all(len(data) < 10_000 for kind, data in BAD.items() if kind.startswith("bomb"))


# -- anything but a regular file ---------------------------------------------------------------------------------------


def fifo(path):
  os.mkfifo(path)


def device(path):
  path.symlink_to("/dev/zero")


def sockets(path):
  with socket.socket(socket.AF_UNIX) as server:
    os.chdir(path.parent)  # the address may not be long
    server.bind(path.name)


def long_file(path):
  with open(path, "wb") as file:
    file.truncate(2**40)


NO_FILES = {"FIFO": (fifo, "it is a FIFO, not a regular file"), "device": (device, "it is a device, not a regular"),
            "socket": (sockets, "it is a socket, not a regular file"),
            "folder": (lambda path: path.mkdir(), "directory"),
            "terabyte": (long_file, "1,099,511,627,776 bytes, more than the 536,870,912 that an image may have"),
            "link to nothing": (lambda path: path.symlink_to("nowhere"), "No such file")}


@pytest.mark.parametrize("kind", NO_FILES)
def test_anything_but_a_regular_file_is_one_error_without_a_wait(kind, tmp_path, monkeypatch):
  make, reason = NO_FILES[kind]
  monkeypatch.chdir(tmp_path)
  make(tmp_path / "x.jpg")
  monkeypatch.setattr(decode.time, "sleep", lambda seconds: pytest.fail("asked again"))
  images = decode.Images(Paths(str(tmp_path), ["x.jpg"]), log := decode.BadImages())
  images.open(0)
  with pytest.raises(DataError, match=f"x.jpg: the image cannot be decoded: .*{reason}"):
    log.check()


@pytest.mark.parametrize("kind", ["FIFO", "device", "socket"])
def test_verify_names_it_too(kind, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  photographs.write_tree(tmp_path / "d", dict(a=4, b=4))
  NO_FILES[kind][0](tmp_path / "d/a/x.jpg")
  dataset = folders.folder(root=str(tmp_path / "d"), val_fraction=0.5)
  for decoded in (False, True):
    _, lines = verify.faults(dataset, decoded)
    assert [line for line in lines if "x.jpg" in line] == [f"{tmp_path}/d/a/x.jpg: {NO_FILES[kind][1]}" + (
        " file" if kind == "device" else "")]


# -- much memory, much time -------------------------------------------------------------------------------------------


def test_many_scans_are_counted_as_markers_not_as_bytes():
  assert decode.pillow(scans(20)).shape == (30, 44, 3)
  film = ZOO["jpeg"] + 1000 * b"\xff\xda\0\4aaaa"  # after the end of the image, as phones store it
  np.testing.assert_array_equal(decode.pillow(film), decode.pillow(ZOO["jpeg"]))
  comment = b"\xff\xfe" + (2 + 600).to_bytes(2, "big") + 300 * b"\xff\xda"
  for data in (ZOO["jpeg"][:2] + comment + ZOO["jpeg"][2:], film):
    decode.check_scans(data)
  for data in (scans(1000), scans(100)[:2] + comment + scans(100)[2:], scans(decode.MAX_SCANS)):
    with pytest.raises(decode.BadImageError, match="a JPEG of more than 64 scans"):
      decode.check_scans(data)


MEMORY = """
import resource, sys
import numpy as np
from ltjax.data import decode, pipeline
from ltjax.data.files import Paths
pipeline.tensorflow()
count = 12
def batch(name, crop):
  files = Paths(sys.argv[1], [name] * count)
  images = decode.Images(files, log := decode.BadImages())
  found = pipeline.Pipeline(images, np.arange(count), lambda step: np.arange(count), 1, crop=crop).batch(0)["images"]
  log.check()
  return found
batch("small.png", pipeline.CentralCrops(32))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert batch("large.png", pipeline.CentralCrops(32)).std() > 1
assert batch("large.gif", pipeline.RandomCrops(32, 0, "stage", count)).std() > 1
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_batch_of_large_images_does_not_hold_their_pixels(tmp_path):
  """12 images of 12 megapixels are 432 MB as RGB, and several copies of that on their way."""
  picture = Image.fromarray(photos.picture(300, 400))
  picture.save(tmp_path / "small.png")
  picture.resize((4000, 3000), Image.NEAREST).save(tmp_path / "large.png", compress_level=1)
  picture.resize((4000, 3000), Image.NEAREST).convert("P").save(tmp_path / "large.gif")
  done = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, timeout=300,
                        env=os.environ | dict(JAX_PLATFORMS="cpu", PYTHONPATH=str(ROOT)))
  assert done.returncode == 0, done.stderr[-3000:]
  assert int(done.stdout) < 700


def test_damaged_images_in_short():
  """The long form is `python -m tests.faults.mutants`."""
  outcomes = mutants.run(60, seed=1)
  assert len(outcomes) == 60 and mutants.bad(outcomes) == []
  assert {outcome["format"] for outcome in outcomes} == set(mutants.FORMATS)
  assert {outcome["outcome"] for outcome in outcomes} == {"image", "named error"}
