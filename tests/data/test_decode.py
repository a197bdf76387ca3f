import errno
import io
import os
import socket
import subprocess
import sys
import threading
import time
import zlib
from concurrent import futures

import numpy as np
import pytest
from PIL import Image, ImageOps

from ltjax.data import decode, pipeline
from ltjax.data.files import Paths
from ltjax.errors import DataError, WorkdirError
from tests import photos

ZOO = photos.zoo()
PLAIN = {"jpeg", "jpeg 4:4:4", "progressive jpeg", "grey jpeg", "1x1 jpeg", "odd sizes", "wide jpeg", "turned 1"}


def is_transparent(data: bytes) -> bool:
  return Image.open(io.BytesIO(data)).has_transparency_data


def shown(data: bytes, background: int = 255) -> np.ndarray:
  """Pillow's pixels, on a grey background."""
  image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
  if image.has_transparency_data:
    image = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, (background,) * 3)
    canvas.paste(image, mask=image.getchannel("A"))
    return np.asarray(canvas)
  if image.mode.startswith("I;16"):  # Pillow would convert it to white, but makes 8 bits of 16 in colour
    image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
  return np.asarray(image.convert("RGB"))


def decoded(data: bytes) -> np.ndarray:
  """The pipeline's pixels of a complete image at its own size."""
  tf = pipeline.tensorflow()
  files = type("One", (), dict(__len__=lambda self: 1, read=lambda self, place: data, name=lambda self, place: "one"))()
  image = decode.Images(files, log := decode.BadImages()).open(0)
  log.check()
  if image.jpeg is None:
    return image.pixels
  return tf.io.decode_jpeg(image.jpeg, channels=3, dct_method="INTEGER_ACCURATE").numpy()


@pytest.mark.parametrize("kind", ZOO)
def test_every_kind_decodes_to_what_pillow_shows(kind):
  found, expected = decoded(ZOO[kind]), shown(ZOO[kind])
  assert (found.shape, found.dtype) == (expected.shape, np.uint8)
  # Two builds of the same JPEG library; Pillow itself decodes all other formats.
  assert np.abs(found.astype(int) - expected).max() <= (2 if kind in PLAIN else is_transparent(ZOO[kind]))
  assert expected.std() > 5 or kind == "1x1 jpeg"


@pytest.mark.parametrize("kind", ZOO)
def test_tensorflow_is_given_the_plain_jpegs_and_their_size(kind):
  size = decode.plain_jpeg_size(ZOO[kind])
  assert size == (shown(ZOO[kind]).shape[:2] if kind in PLAIN else None)


@pytest.mark.parametrize("kind", [kind for kind in ZOO if is_transparent(ZOO[kind]) and kind != "animated webp"])
def test_transparent_images_are_laid_on_white_or_black(kind):
  assert kind in ("grey and alpha png", "rgba png", "palette and alpha png", "webp with alpha", "rgba tiff") or (
      "clear colour" in kind)
  images = {colour: decode.pillow(ZOO[kind], colour).astype(int) for colour in ("white", "black")}
  assert (images["white"] >= images["black"]).all() and (images["white"] > images["black"]).any()
  for colour, value in (("white", 255), ("black", 0)):
    assert np.abs(images[colour] - shown(ZOO[kind], value)).max() <= 1
  np.testing.assert_array_equal(decode.pillow(ZOO[kind]), images["white"])


@pytest.mark.parametrize("format", ["PNG", "WEBP", "GIF", "TIFF"])
def test_transparent_pixels_show_the_background_and_opaque_ones_themselves(format):
  pixels = np.zeros((6, 8, 4), np.uint8)
  pixels[:, 4:] = 10, 200, 30, 255
  options = dict(WEBP=dict(lossless=True)).get(format, {})
  data = photos.encode(Image.fromarray(pixels), format, **options)
  for colour, value in (("white", 255), ("black", 0)):
    found = decode.pillow(data, colour)
    assert (found[:, :4] == value).all() and (found[:, 4:] == (10, 200, 30)).all()


def test_a_clear_grey_of_16_bits():
  grey = np.full((4, 4), 300, np.uint16)
  grey[0] = 40_000
  data = photos.encode(Image.fromarray(grey), "PNG")
  at = data.index(b"IDAT") - 4
  chunk = b"tRNS" + (300).to_bytes(2, "big")
  data = data[:at] + (2).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + data[at:]
  for colour, value in (("white", 255), ("black", 0)):
    found = decode.pillow(data, colour)
    assert (found[0] == 40_000 >> 8).all() and (found[1:] == value).all()


def test_the_background_of_a_data_set_reaches_its_images(tmp_path):
  dataset = photos.dataset(tmp_path)
  (tmp_path / "train/0/0.jpg").write_bytes(photos.encode(Image.new("RGBA", (8, 8), (9, 9, 9, 0)), "PNG"))
  for colour, value in (("white", 255), ("black", 0)):
    opened, _ = decode.opened(dataset._replace(background=colour))
    assert (opened.train[0].open(0).pixels == value).all()


def test_an_orientation_after_the_frames_header_counts():
  data = photos.exif_behind_the_frame(photos.turned(6))
  assert data.index(b"Exif") > data.index(b"\xff\xc0") and shown(data).shape == (40, 24, 3)
  assert decode.plain_jpeg_size(data) is None and decoded(data).shape == (40, 24, 3)
  upright = photos.exif_behind_the_frame(photos.turned(1))
  assert decode.plain_jpeg_size(upright) == (24, 40)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_without_a_known_brightness_are_named(mode):
  data = photos.encode(Image.new(mode, (8, 8), 1), "TIFF")
  with pytest.raises(decode.BadImageError, match="floats or 32-bit integers.*8 or 16 bits"):
    decode.pillow(data)


def test_first_frames_and_pages():
  for kind in ("animated webp", "animated png", "tiff of two pages"):
    assert Image.open(io.BytesIO(ZOO[kind])).n_frames > 1
    np.testing.assert_array_equal(decode.pillow(ZOO[kind]), decode.pillow(ZOO["png"]))


def test_images_decoded_together_are_bounded_by_their_pixels(monkeypatch):
  monkeypatch.setattr(decode, "MAX_PIXELS", 100)
  gate, most, inside, lock = decode._Gate(), [], [0], threading.Lock()

  def hold(pixels):
    with gate.hold(pixels):
      with lock:
        inside[0] += pixels
        most.append(inside[0])
      time.sleep(0.002)
      with lock:
        inside[0] -= pixels

  with futures.ThreadPoolExecutor(16) as pool:
    list(pool.map(hold, [40, 60, 100, 1, 30] * 12))
  assert len(most) == 60 and 40 < max(most) <= 100 and gate._used == 0


def test_the_zoo_has_what_its_names_say():
  modes = {kind: Image.open(io.BytesIO(data)).mode for kind, data in ZOO.items()}
  assert (modes["cmyk jpeg"], modes["ycck jpeg"]) == ("CMYK", "CMYK")
  assert (modes["16-bit grey png"], modes["grey and alpha png"], modes["palette png"]) == ("I;16", "LA", "P")
  assert (shown(ZOO["cmyk jpeg"]) != shown(ZOO["ycck jpeg"])).any()
  assert Image.open(io.BytesIO(ZOO["gif"])).n_frames == 2
  assert shown(ZOO["turned 6"]).shape == (40, 24, 3)
  assert b"\x10\x02" in ZOO["16-bit rgb png"][:30]  # 16 bits, RGB


def test_the_first_frame_of_a_gif():
  first = Image.open(io.BytesIO(ZOO["gif"])).convert("RGB")
  np.testing.assert_array_equal(decode.pillow(ZOO["gif"]), np.asarray(first))


@pytest.mark.parametrize("turn", [1, 6])
def test_16_bits_of_grey_show_the_upper_8(turn):
  grey, exif = photos.picture(30, 44)[..., 0], Image.Exif()
  exif[photos.ORIENTATION] = turn
  data = photos.encode(Image.fromarray(grey.astype(np.uint16) * 256 + 255), "PNG", exif=exif)
  expected = np.rot90(grey, -1) if turn == 6 else grey
  np.testing.assert_array_equal(decode.pillow(data), np.stack([expected] * 3, axis=-1))
  tf = pipeline.tensorflow()
  np.testing.assert_array_equal(tf.io.decode_png(data, channels=3), np.stack([grey] * 3, axis=-1))


def test_an_exif_without_orientation_keeps_a_jpeg_plain_and_a_damaged_one_does_not():
  exif = Image.Exif()
  exif[0x010F] = "camera"
  data = photos.jpeg(24, 40, exif=exif)
  assert decode.plain_jpeg_size(data) == (24, 40)
  assert decode.plain_jpeg_size(data.replace(b"MM\x00*", b"??\x00*").replace(b"II*\x00", b"??*\x00")) is None


def test_an_orientation_in_xmp_counts_too():
  xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF tiff:Orientation="6"/></x:xmpmeta>'
  data = photos.jpeg(24, 40, xmp=xmp)
  assert decode.plain_jpeg_size(data) is None
  np.testing.assert_array_equal(decoded(data), shown(data))


@pytest.mark.parametrize("cut", range(0, 700, 7))
def test_no_beginning_of_a_jpeg_is_plain(cut):
  assert decode.plain_jpeg_size(ZOO["jpeg"][:cut]) is None


BAD = {
    "empty": (b"", "the file is empty"),
    "text": (b"<html>not found</html>", "not an image of a known kind"),
    "truncated": (photos.jpeg(60, 80)[:-400], "truncated"),
    "truncated png": (ZOO["png"][:-900], "truncated|broken"),
    "header only": (photos.jpeg(60, 80)[:30], ""),
    "bomb": (photos.bomb(), "more than the .* pixels that are allowed"),
    "huge jpeg": (ZOO["jpeg"].replace(b"\x08\x00\x1e\x00\x2c", b"\x08\xff\xdc\xff\xdc"), "65500 x 65500 pixels"),
    "encapsulated postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "known kind")}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_is_one_error_that_names_the_file(kind, tmp_path):
  data, reason = BAD[kind]
  files = photos.write(tmp_path, {"class a/ü 1.jpg": data})
  images = decode.Images(files, log := decode.BadImages())
  image = images.open(0)
  np.testing.assert_array_equal(image.pixels, np.zeros((1, 1, 3)))
  with pytest.raises(DataError, match=f"class a/ü 1.jpg: the image cannot be decoded: .*{reason}.*on_bad_image"):
    log.check()


def test_a_missing_file_is_a_bad_image(tmp_path):
  log = decode.BadImages()
  decode.Images(Paths(str(tmp_path), ["nowhere.jpg"]), log).open(0)
  with pytest.raises(DataError, match=r"nowhere\.jpg: the image cannot be decoded: .*(o such|not)"):
    log.check()


def test_replaced_images_are_counted_once_and_remembered_by_the_next_run(tmp_path):
  files = photos.write(tmp_path, {"a": b"", "b": photos.jpeg(8, 8), "c": b"text"})
  path = tmp_path / "bad.jsonl"
  images = decode.Images(files, log := decode.BadImages("substitute", 3, path))
  for place in (0, 1, 2, 0, 2):
    images.open(place)
  log.check()
  assert [name.rsplit("/")[-1] for name in log.found] == ["a", "c"] and len(path.read_text().splitlines()) == 2
  assert decode.BadImages("substitute", 3, path).found == log.found
  with path.open("a") as file:
    file.write('{"image": "d", "rea')  # the run is killed
  assert decode.BadImages("substitute", 3, path).found == log.found
  assert path.read_text().count("\n") == len(path.read_text().splitlines()) == 2
  for line in ("[1]\n", "{}\n", '{"retried": "x"}\n', "\xff\n"):
    path.write_text(line)
    with pytest.raises(WorkdirError, match=r"bad\.jsonl:1: not a line that ltjax wrote"):
      decode.BadImages("substitute", 3, path)


def test_too_many_bad_images_stop_the_run():
  log = decode.BadImages("substitute", 12_345)
  for number in range(12):
    log.add(f"image {number}", "no reason")
  log.check()
  log.add("image 12", "no reason")
  with pytest.raises(DataError, match="image 0 and 12 more images cannot be decoded, above the limit of 12 .*--decode"):
    log.check()


def test_the_splits_of_a_data_set_report_to_one_list(tmp_path):
  dataset = photos.dataset(tmp_path)
  (tmp_path / "train/0/0.jpg").write_bytes(b"")
  (tmp_path / "test/0/0.jpg").write_bytes(b"")
  opened, log = decode.opened(dataset, "substitute")
  for images, _ in (opened.train, opened.test):
    images.open(0)
  assert len(log.found) == 2 and len(opened.train[0]) == 20
  assert opened.held_out is None and decode.opened(opened)[0].train[0] is opened.train[0]


# -- reads that are repeated -------------------------------------------------------------------------------------------


class Flaky:
  """Images whose reads fail: `errors` are raised in turn, of every image."""

  def __init__(self, *errors: Exception, count: int = 1):
    self._errors, self._count, self.reads = errors, count, [0] * count

  def __len__(self):
    return self._count

  def read(self, place):
    self.reads[place] += 1
    if self.reads[place] <= len(self._errors):
      raise self._errors[self.reads[place] - 1]
    return photos.jpeg(9 + place, 8)

  def name(self, place):
    return f"image {place}"


@pytest.fixture
def pauses(monkeypatch):
  slept = []
  monkeypatch.setattr(decode.time, "sleep", slept.append)
  return slept


PASSING = [OSError(number, os.strerror(number)) for number in (
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.ECONNRESET)] + [
    ConnectionError("gone"), TimeoutError("late"), OSError("of a library")]


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_a_read_that_fails_twice_is_repeated_and_counted(error, pauses, tmp_path):
  images = decode.Images(files := Flaky(error, error), log := decode.BadImages("error", 1, tmp_path / "bad.jsonl"))
  assert images.open(0).height == 9
  log.check()
  assert (files.reads, log.retried, log.found, pauses) == ([3], 2, {}, [0.1, 0.4])
  assert decode.BadImages("error", 1, tmp_path / "bad.jsonl").retried == 2  # a run that is resumed


@pytest.mark.parametrize(("errors", "reads"), [
    ([PASSING[0]] * 3, 3), ([FileNotFoundError(2, "gone")], 1), ([PermissionError(13, "no")], 1),
    ([IsADirectoryError(21, "a folder")], 1), ([PASSING[1], FileNotFoundError(2, "gone")], 2)])
def test_a_lasting_read_error_is_a_bad_image(errors, reads, pauses):
  decode.Images(files := Flaky(*errors), log := decode.BadImages()).open(0)
  assert (files.reads, log.retried) == ([reads], reads - 1)
  with pytest.raises(DataError, match=f"image 0: the image cannot be decoded: {errors[-1].strerror}"):
    log.check()


def test_the_order_does_not_depend_on_reads_that_are_repeated(pauses):
  labels, order = np.arange(8), np.array([5, 2, 7, 1])
  batches = [pipeline.Pipeline(
      decode.Images(Flaky(*errors, count=8), decode.BadImages()), labels, lambda step: order, 1,
      crop=pipeline.CentralCrops(8)).batch(0) for errors in ([], PASSING[:2])]
  np.testing.assert_array_equal(batches[0]["images"], batches[1]["images"])
  np.testing.assert_array_equal(batches[1]["labels"], order)
  assert len(pauses) == 8


def test_errors_of_a_bucket_are_oserrors(monkeypatch):
  tf, files = pipeline.tensorflow(), Paths("gs://bucket", ["a.jpg"])
  for name, kind in (("UnavailableError", OSError), ("NotFoundError", FileNotFoundError),
                     ("PermissionDeniedError", PermissionError)):
    def fail(place, name=name):
      raise getattr(tf.errors, name)(None, None, "the bucket's reason")

    monkeypatch.setattr(files, "open", fail)
    with pytest.raises(OSError, match=r"gs://bucket/a\.jpg: the bucket's reason") as caught:
      files.read(0)
    assert type(caught.value) is kind


def test_a_list_that_cannot_be_written_is_an_error(tmp_path, pauses):
  log = decode.BadImages("substitute", 1, tmp_path / "nowhere" / "bad.jsonl")
  decode.Images(Flaky(PASSING[0]), log).open(0)
  with pytest.raises(WorkdirError, match=r"bad\.jsonl: .*cannot be kept .No such file"):
    log.check()


# -- several processes -------------------------------------------------------------------------------------------------


PROCESS = """
import pathlib, sys
from ltjax.distributed import processes
from ltjax.data.decode import BadImages
processes.start()
number, log = int(sys.argv[1]), BadImages("substitute", 100, pathlib.Path(sys.argv[2]))
for round in range(2):
  log.add(f"{number} of {round}", "empty" * (1 + number))
  for _ in range(1 + number):
    log.retry()
  log.gather()
  log.gather()  # no news
  print(sorted(log.found), log.retried, flush=True)
"""


def test_processes_tell_each_other_and_the_first_keeps_it(tmp_path):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  path = tmp_path / "bad.jsonl"
  path.write_text('{"retried": 4}\n')  # of a run that is resumed
  started = [subprocess.Popen(
      [sys.executable, "-c", PROCESS, str(number), str(path)], text=True, stdout=subprocess.PIPE,
      stderr=subprocess.PIPE, env=os.environ | dict(
          JAX_PLATFORMS="cpu", LTJAX_COORDINATOR=f"localhost:{port}", LTJAX_PROCESSES="2",
          LTJAX_PROCESS_ID=str(number))) for number in range(2)]
  try:
    for process in started:
      out, err = process.communicate(timeout=120)
      *_, first, second = out.splitlines() or pytest.fail(err[-2000:])
      assert first == "['0 of 0', '1 of 0'] 7"
      assert second == "['0 of 0', '0 of 1', '1 of 0', '1 of 1'] 10"
  finally:
    for process in started:
      process.kill()
  kept = decode.BadImages("substitute", 100, path)
  assert (sorted(kept.found), kept.retried) == (["0 of 0", "0 of 1", "1 of 0", "1 of 1"], 10)
