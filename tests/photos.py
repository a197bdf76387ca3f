"""Generated images: small folders of real JPEGs, and one image of every kind that a folder may hold."""

import io
import pathlib
import struct
import zlib

import numpy as np
from PIL import Image

from ltjax.data.files import Paths
from ltjax.data.sources import Dataset

ORIENTATION = 0x0112


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
  """uint8 [h w 3]: smooth colours with some texture, so that codecs keep them."""
  generator = np.random.default_rng(seed)
  coarse = Image.fromarray(generator.integers(0, 256, (5, 6, 3), dtype=np.uint8))
  smooth = np.asarray(coarse.resize((width, height), Image.BICUBIC), np.int16)
  return np.clip(smooth + generator.integers(-6, 7, (height, width, 1)), 0, 255).astype(np.uint8)


def encode(image: Image.Image, format: str = "JPEG", **options) -> bytes:
  buffer = io.BytesIO()
  image.save(buffer, format, **options)
  return buffer.getvalue()


def jpeg(height: int, width: int, seed: int = 0, **options) -> bytes:
  return encode(Image.fromarray(picture(height, width, seed)), quality=90, **options)


def turned(orientation: int) -> bytes:
  exif = Image.Exif()
  exif[ORIENTATION] = orientation
  return jpeg(24, 40, exif=exif)


def zoo() -> dict[str, bytes]:
  """Images of every kind that decodes, by name."""
  rgb = Image.fromarray(picture(30, 44))
  rgba = rgb.convert("RGBA")
  rgba.putalpha(Image.fromarray(picture(30, 44, 1)[..., 0]))
  grey16 = Image.fromarray((picture(30, 44)[..., 0].astype(np.uint16) << 8) + 7)
  frames = [Image.fromarray(picture(30, 44, seed)).convert("P") for seed in (3, 4)]
  found = {
      "jpeg": jpeg(30, 44), "jpeg 4:4:4": jpeg(30, 44, subsampling=0),
      "progressive jpeg": jpeg(30, 44, progressive=True),
      "grey jpeg": encode(rgb.convert("L")), "cmyk jpeg": encode(rgb.convert("CMYK")), "1x1 jpeg": jpeg(1, 1),
      "ycck jpeg": ycck(encode(rgb.convert("CMYK"))), "odd sizes": jpeg(17, 31), "wide jpeg": jpeg(3, 400),
      "png": encode(rgb, "PNG"), "grey png": encode(rgb.convert("L"), "PNG"),
      "1-bit png": encode(rgb.convert("1"), "PNG"),
      "grey and alpha png": encode(rgba.convert("LA"), "PNG"), "rgba png": encode(rgba, "PNG"),
      "palette png": encode(rgb.convert("P"), "PNG"), "16-bit grey png": encode(grey16, "PNG"),
      "palette and alpha png": encode(rgba.quantize(16), "PNG"), "16-bit rgb png": png16(picture(30, 44)),
      "webp": encode(rgb, "WEBP"), "webp with alpha": encode(rgba, "WEBP", lossless=True), "bmp": encode(rgb, "BMP"),
      "gif": encode(frames[0], "GIF", save_all=True, append_images=frames[1:]),
      "palette png with a clear colour": encode(rgb.quantize(16), "PNG", transparency=3),
      "rgb png with a clear colour": encode(rgb.quantize(16).convert("RGB"), "PNG", transparency=rgb.quantize(
          16).convert("RGB").getpixel((0, 0))),
      "gif with a clear colour": encode(rgb.quantize(16), "GIF", transparency=3),
      "tiff": encode(rgb, "TIFF"), "packed tiff": encode(rgb, "TIFF", compression="tiff_lzw"),
      "jpeg in a tiff": encode(rgb, "TIFF", compression="jpeg"), "rgba tiff": encode(rgba, "TIFF"),
      "cmyk tiff": encode(rgb.convert("CMYK"), "TIFF"),
      "1-bit tiff": encode(rgb.convert("1"), "TIFF", compression="group4"),
      "16-bit grey tiff": encode(grey16, "TIFF"), "turned tiff": encode(rgb, "TIFF", tiffinfo={ORIENTATION: 6}),
      "tiff of two pages": encode(rgb, "TIFF", save_all=True, append_images=frames),
      "animated webp": encode(rgb, "WEBP", save_all=True, append_images=frames, lossless=True),
      "animated png": encode(rgb, "PNG", save_all=True, append_images=frames),
      "jpeg with bytes behind its end": jpeg(30, 44) + bytes(500),
      "turned behind the frame": exif_behind_the_frame(turned(6))}
  return found | {f"turned {number}": turned(number) for number in range(1, 9)}


def exif_behind_the_frame(data: bytes) -> bytes:
  """A JPEG whose EXIF stands between its frame's header and its scan."""
  segments, place = [], 2
  while data[place + 1] != 0xDA:
    length = 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    segments.append(data[place : place + length])
    place += length
  segments.sort(key=lambda segment: segment[1] == 0xE1)  # stable: the others keep their order
  return data[:2] + b"".join(segments) + data[place:]


def ycck(cmyk: bytes) -> bytes:
  """A four-channel JPEG whose Adobe marker says that its first three are YCbCr."""
  at = cmyk.index(b"Adobe") + 11
  return cmyk[:at] + b"\x02" + cmyk[at + 1 :]


def png16(pixels: np.ndarray) -> bytes:
  """A PNG of 16 bits a channel, which Pillow reads but does not write."""
  height, width, _ = pixels.shape
  rows = (pixels.astype(">u2") * 257).reshape(height, -1)
  return png(height, width, 16, b"".join(b"\0" + row.tobytes() for row in rows))


def bomb() -> bytes:
  """A PNG of less than a hundred bytes that claims 60,000 x 60,000 pixels."""
  return png(60000, 60000, 8, bytes(9))


def png(height: int, width: int, bits: int, rows: bytes) -> bytes:
  def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

  return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0))
          + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def write(root: pathlib.Path, images: dict[str, bytes]) -> Paths:
  """The `Files` of images written under `root`, in their order."""
  for name, data in images.items():
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(data)
  return Paths(str(root), list(images))


def dataset(root: pathlib.Path, train_counts=(9, 6, 5), test_count: int = 3) -> Dataset:
  """JPEGs of many sizes with as many classes as counts, whose colours say the class."""
  splits = {}
  for split, counts in (("train", train_counts), ("test", [test_count] * len(train_counts))):
    labels = np.repeat(np.arange(len(counts)), counts)
    images = {f"{split}/{label}/{number}.jpg": jpeg(20 + 3 * (number % 5), 50 - 4 * (number % 7), 100 * label + number)
              for number, label in enumerate(labels.tolist())}
    splits[split] = write(root, images), labels
  return Dataset(**splits, selected=np.arange(sum(train_counts)), class_names=tuple(map(str, range(len(train_counts)))),
                 mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
