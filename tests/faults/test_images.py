"""F8, F9: images that are none, or are damaged. For what is whole see tests/data/test_decode.py, for runs test_feed.py.
"""

import gzip
import io
import resource
import time

import numpy as np
import pytest
from PIL import Image

from ltjax.data import decode, pipeline
from ltjax.errors import DataError
from tests import photos

ZOO = photos.zoo()
RGB = Image.fromarray(photos.picture(30, 44))


def resized(data: bytes, at: int, width: bytes) -> bytes:
  """An image whose header claims another size."""
  return data[:at] + width + data[at + len(width):]


def tiff() -> bytes:
  return photos.encode(RGB, "TIFF")


BAD = {
    "empty": b"", "one byte": b"\xff", "zeros": bytes(5000), "text": b"not an image", "page": b"<!DOCTYPE html><html>",
    "packed": gzip.compress(ZOO["jpeg"]), "svg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
    "tiff": tiff(), "postscript": photos.encode(RGB, "EPS"), "pdf": b"%PDF-1.4\n", "icon": photos.encode(RGB, "ICO"),
    **{f"{kind}, half": ZOO[kind][: len(ZOO[kind]) // 2] for kind in (
        "jpeg", "progressive jpeg", "cmyk jpeg", "grey jpeg", "png", "rgba png", "16-bit rgb png", "webp", "bmp")},
    **{f"{kind}, 20 bytes": ZOO[kind][:20] for kind in ("jpeg", "png", "webp", "gif", "bmp")},
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
  began, memory = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  np.testing.assert_array_equal(images.open(0).pixels, np.zeros((1, 1, 3)))
  assert time.perf_counter() - began < 2
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 300_000  # KB; a bomb would take gigabytes
  with pytest.raises(DataError, match=r"a b/ü\.jpg: the image cannot be decoded: \S") as caught:
    log.check()
  assert "\n" not in str(caught.value)


def test_the_order_stays_and_the_good_images_too(tmp_path):
  """Bad images between good ones, in batches: black squares at their places, and the others as without them."""
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
    "jpeg", "progressive jpeg", "cmyk jpeg", "png", "16-bit grey png", "webp", "gif", "bmp", "turned 6"])
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
