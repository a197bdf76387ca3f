import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from ltjax.data import decode, pipeline
from ltjax.data.files import Paths
from ltjax.errors import DataError
from tests import photos

ZOO = photos.zoo()
PLAIN = {"jpeg", "jpeg 4:4:4", "progressive jpeg", "grey jpeg", "1x1 jpeg", "odd sizes", "wide jpeg", "turned 1"}


def shown(data: bytes) -> np.ndarray:
  """What Pillow shows."""
  image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
  if image.mode == "P":
    image = image.convert("RGBA")
  return np.asarray(image.convert("RGB"))


def decoded(data: bytes) -> np.ndarray:
  """What the pipeline makes of an image, whole and at its own size."""
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
  # Two builds of the same JPEG library; all else is Pillow itself.
  assert np.abs(found.astype(int) - expected).max() <= (2 if kind in PLAIN else 0)
  assert expected.std() > 5 or kind in ("1x1 jpeg", "16-bit grey png")


@pytest.mark.parametrize("kind", ZOO)
def test_tensorflow_is_given_the_plain_jpegs_and_their_size(kind):
  size = decode.plain_jpeg_size(ZOO[kind])
  assert size == (shown(ZOO[kind]).shape[:2] if kind in PLAIN else None)


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


def test_replaced_images_are_counted_once_and_kept_for_the_next_run(tmp_path):
  files = photos.write(tmp_path, {"a": b"", "b": photos.jpeg(8, 8), "c": b"text"})
  path = tmp_path / "bad.jsonl"
  images = decode.Images(files, log := decode.BadImages("substitute", 3, path))
  for place in (0, 1, 2, 0, 2):
    images.open(place)
  log.check()
  assert [name.rsplit("/")[-1] for name in log.found] == ["a", "c"] and len(path.read_text().splitlines()) == 2
  assert decode.BadImages("substitute", 3, path).found == log.found


def test_too_many_bad_images_stop_the_run():
  log = decode.BadImages("substitute", 12_345)
  for number in range(12):
    log.add(f"image {number}", "no reason")
  log.check()
  log.add("image 12", "no reason")
  with pytest.raises(DataError, match="image 0 and 12 more images cannot be decoded, above the limit of 12 .*--decode"):
    log.check()


def test_the_splits_of_a_data_set_share_one_list(tmp_path):
  dataset = photos.dataset(tmp_path)
  (tmp_path / "train/0/0.jpg").write_bytes(b"")
  (tmp_path / "test/0/0.jpg").write_bytes(b"")
  opened, log = decode.opened(dataset, "substitute")
  for images, _ in (opened.train, opened.test):
    images.open(0)
  assert len(log.found) == 2 and len(opened.train[0]) == 20
  assert opened.held_out is None and decode.opened(opened)[0].train[0] is opened.train[0]
