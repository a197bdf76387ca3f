import contextlib
import functools
import io
import sys
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from ltjax.augment import crops
from ltjax.data import decode, pipeline, samplers
from ltjax.data.files import Paths
from ltjax.data.order import Order
from ltjax.errors import DataError
from tests import photos

BATCH, STEPS = 8, 12


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return photos.dataset(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
  """The `Files` of images of every kind."""
  folder = tmp_path_factory.mktemp("zoo")
  return photos.write(folder, photos.zoo())


def order(labels, sampler=None, seed=0):
  return Order(labels, 3, batch_size=BATCH, epochs=9, seed=seed, stage="stage", samplers=(sampler,))


def training(split, *, size=16, seed=0, **options):
  images, labels = split
  found = order(labels, seed=seed)
  return pipeline.Pipeline(images, labels, found.batch, found.steps,
                           crop=pipeline.RandomCrops(size, seed, "stage", BATCH), **options)


def evaluation(files, size=16, batch=None):
  count = len(files)
  batch = batch or count
  return pipeline.Pipeline(files, np.arange(count), lambda step: np.minimum(step * batch + np.arange(batch), count - 1),
                           -(-count // batch), crop=pipeline.CentralCrops(size))


@pytest.fixture(scope="module")
def batches(data):
  """The first batches of the training set."""
  made = training(data.train)
  return [made.batch(step) for step in range(STEPS)]


def assert_equal(found, expected):
  for key in ("images", "labels"):
    np.testing.assert_array_equal(found[key], expected[key])


def test_a_batch_has_the_examples_of_the_order(data, batches):
  for step, batch in enumerate(batches):
    assert (batch["images"].shape, batch["images"].dtype) == ((BATCH, 16, 16, 3), np.uint8)
    np.testing.assert_array_equal(batch["labels"], data.train[1][order(data.train[1]).batch(step)])
  assert batches[0]["labels"].dtype == np.int32
  assert len({batch["images"].tobytes() for batch in batches}) == STEPS


def test_an_image_is_its_box_resized(data, batches):
  """Against Pillow; where a crop shrinks, averages over areas stand for Pillow's wider triangles."""
  images, labels = data.train
  step, differences, grown = 3, [], []
  draws = pipeline.prng.host_uniform(0, "stage", "crop", counter=step, size=BATCH * crops.DRAWS).reshape(BATCH, -1)
  for place, index in enumerate(order(labels).batch(step)):
    shown = Image.open(io.BytesIO(images.read(index)))
    top, left, height, width = crops.random_resized(np.array([shown.size[::-1]]), draws[place : place + 1])[0]
    box = shown.crop((left, top, left + width, top + height))
    expected = np.asarray(box.resize((16, 16), Image.BILINEAR), int)
    differences.append(np.abs(batches[step]["images"][place] - expected))
    grown.append(height <= 16 and width <= 16)
  assert 0 < sum(grown) < BATCH
  for difference, grows in zip(differences, grown, strict=True):
    assert difference.max() <= (2 if grows else 24) and difference.mean() < (0.6 if grows else 3)


def test_bicubic_crops_are_pillow_s(data):
  images, labels = data.train
  found, differences = training(data.train, interpolation="bicubic").batch(3)["images"], []
  draws = pipeline.prng.host_uniform(0, "stage", "crop", counter=3, size=BATCH * crops.DRAWS).reshape(BATCH, -1)
  for place, index in enumerate(order(labels).batch(3)):
    shown = Image.open(io.BytesIO(images.read(index)))
    top, left, height, width = crops.random_resized(np.array([shown.size[::-1]]), draws[place : place + 1])[0]
    box = shown.crop((left, top, left + width, top + height)).resize((16, 16), Image.BICUBIC)
    differences.append(np.abs(found[place] - np.asarray(box, int)))
  # A decoder that starts at the box interpolates its colours at the border otherwise; where it does not, all is equal.
  assert sum(difference.max() <= 1 for difference in differences) >= BATCH / 2
  assert max(difference.mean() for difference in differences) < 1


def test_crops_can_change_in_the_course_of_a_stage(data):
  draws = functools.partial(crops.random_resized, area=(0.1, 1.0), ratio=(1.0, 1.0), final_area=1.0)
  crop = pipeline.RandomCrops(16, 0, "stage", BATCH, draws, steps=5)
  sizes, rows = np.full((BATCH, 2), 50), np.arange(BATCH)
  least = [crop(step, rows, sizes).boxes[:, 2:].prod(axis=1).min() for step in range(5)]
  assert least[0] < 1500 and least[-1] == 2500


def five_crops(files, size, interpolation):
  count = len(files)
  return pipeline.Pipeline(files, np.arange(count), lambda step: np.repeat(np.arange(count)[:, None], 5, axis=1), 1,
                           crop=pipeline.FiveCrops(size), interpolation=interpolation).batch(0)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_five_crops_are_those_of_torchvision(kinds, interpolation):
  """The shorter side becomes 28 + 24; squares at the corners and in the middle."""
  found = five_crops(kinds, 28, interpolation)
  assert found["images"].shape == (len(kinds), 5, 28, 28, 3)
  np.testing.assert_array_equal(found["labels"], np.repeat(np.arange(len(kinds))[:, None], 5, axis=1))
  for place in range(len(kinds)):
    whole = Image.fromarray(decode.pillow(kinds.read(place)))
    scale = 52 / min(whole.size)
    width, height = (52 if side == min(whole.size) else int(52 * side / min(whole.size)) for side in whole.size)
    resized = np.asarray(whole.resize((width, height), Image.Resampling[interpolation.upper()]), int)
    lefts, tops = (0, width - 28, 0, width - 28, round((width - 28) / 2)), (
        0, 0, height - 28, height - 28, round((height - 28) / 2))
    for view, (top, left) in enumerate(zip(tops, lefts, strict=True)):
      difference = np.abs(found["images"][place, view] - resized[top:top + 28, left:left + 28])
      assert difference.max() <= 3 and difference.mean() < 0.6, (kinds.name(place), scale)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_same_bytes(data, batches, processes):
  rows = BATCH // processes
  parts = [training(data.train, rows=slice(start, start + rows)) for start in range(0, BATCH, rows)]
  for step in (0, 1, 7):
    found = [part.batch(step) for part in parts]
    assert_equal({key: np.concatenate([part[key] for part in found]) for key in found[0]}, batches[step])


def test_a_process_reads_only_its_rows(data):
  class Recorded:
    def __init__(self, files):
      self.files, self.asked, self.name = files, [], files.name

    def __len__(self):
      return len(self.files)

    def read(self, place):
      self.asked.append(place)
      return self.files.read(place)

  recorded = Recorded(data.train[0])
  images, labels = recorded, data.train[1]
  made = pipeline.Pipeline(images, labels, order(labels).batch, 1, crop=pipeline.RandomCrops(16, 0, "stage", BATCH),
                           rows=slice(2, 4))
  made.batch(0)
  assert sorted(recorded.asked) == sorted(order(labels).batch(0)[2:4])


@pytest.mark.parametrize("threads", [1, 7])
def test_the_number_of_threads_changes_nothing(data, batches, threads):
  made = training(data.train, threads=threads)
  for step in range(4):
    assert_equal(made.batch(step), batches[step])


def test_any_step_can_be_had_at_any_time(data, batches):
  made = training(data.train)
  for step in (5, 6, 2, 2, 11, 0):
    assert_equal(made.batch(step), batches[step])


def test_the_first_batch_after_a_resume_is_the_first_that_is_drawn(data):
  labels = np.arange(437_513) % 8142
  place = len(data.train[0])
  found = Order(labels, 8142, batch_size=BATCH, epochs=90, seed=0, stage="stage")
  drawn = []

  def batch(step):
    drawn.append(step)
    return found.batch(step) % place

  made = pipeline.Pipeline(data.train[0], data.train[1], batch, found.steps,
                           crop=pipeline.RandomCrops(16, 0, "stage", BATCH))
  made.batch(found.steps - 1)
  assert set(drawn) == {found.steps - 1}  # of five million steps


def test_another_seed_and_another_stage_crop_otherwise(data, batches):
  images, labels = data.train
  for other in (pipeline.RandomCrops(16, 1, "stage", BATCH), pipeline.RandomCrops(16, 0, "classifier", BATCH)):
    found = pipeline.Pipeline(images, labels, order(labels).batch, 1, crop=other).batch(0)
    np.testing.assert_array_equal(found["labels"], batches[0]["labels"])
    assert (found["images"] != batches[0]["images"]).any(axis=(1, 2, 3)).all()


def test_the_same_example_is_cut_anew_at_every_place(data):
  images, labels = data.train
  crop = pipeline.RandomCrops(16, 0, "stage", BATCH)
  made = pipeline.Pipeline(images, labels, lambda step: np.full(BATCH, 4), 2, crop=crop)
  found = np.concatenate([made.batch(step)["images"] for step in range(2)])
  assert len({image.tobytes() for image in found}) == 2 * BATCH


@pytest.mark.parametrize("branches", [1, 2])
def test_streams_keep_their_shape(data, branches):
  images, labels = data.train
  indices = np.arange(2 * branches).reshape(2, branches) if branches > 1 else np.arange(2)
  made = pipeline.Pipeline(images, labels, lambda step: indices, 1,
                           crop=pipeline.RandomCrops(8, 0, "s", indices.size), rows=slice(1, 2))
  found = made.batch(0)
  assert found["images"].shape == (1, *indices.shape[1:], 8, 8, 3)
  np.testing.assert_array_equal(found["labels"], labels[indices[1:2]])


def test_class_balanced_batches_over_8142_classes(data):
  classes = 8142
  counts = np.r_[np.full(classes - 1, 2), 1000]
  labels = np.repeat(np.arange(classes), counts)
  found = Order(labels, classes, batch_size=64, epochs=1, seed=0, stage="stage",
                samplers=(lambda clock: samplers.class_balanced(counts),))
  files = Paths("", ())
  first = data.train[0].read(0)
  files.read, files.name = lambda place: first, str
  made = pipeline.Pipeline(files, labels, found.batch, found.steps, crop=pipeline.RandomCrops(8, 0, "stage", 64))
  seen = np.concatenate([made.batch(step)["labels"] for step in range(10)])
  np.testing.assert_array_equal(seen, np.concatenate([labels[found.batch(step)] for step in range(10)]))
  assert len(np.unique(seen)) > 600 and (seen == classes - 1).sum() < 5


@pytest.mark.parametrize("shape", [(BATCH,), (BATCH, 2)])
def test_arrays_are_batched_as_they_are(shape):
  images = np.random.default_rng(0).integers(0, 256, (50, 4, 5, 1), dtype=np.uint8)
  indices = np.random.default_rng(1).integers(0, 50, (3, *shape))
  made = pipeline.Pipeline(images, np.arange(50), lambda step: indices[step], 3, rows=slice(2, 6))
  for step in (0, 1, 2, 1):
    assert_equal(made.batch(step), dict(images=images[indices[step, 2:6]], labels=indices[step, 2:6]))


def test_test_images_are_resized_and_cut_as_torchvision_does(kinds):
  found = evaluation(kinds, size=28).batch(0)
  np.testing.assert_array_equal(found["labels"], np.arange(len(kinds)))
  for place, image in enumerate(found["images"]):
    shown = Image.fromarray(decode.pillow(kinds.read(place)))
    width, height = shown.size
    resized = (32, int(32 * height / width)) if width <= height else (int(32 * width / height), 32)
    left, top = (round((side - 28) / 2) for side in resized)
    expected = shown.resize(resized, Image.BILINEAR).crop((left, top, left + 28, top + 28))
    # 1: Pillow rounds between its two passes; 2: and decoders of JPEG differ
    assert np.abs(image - np.asarray(expected, int)).max() <= 3, kinds.name(place)


def test_every_kind_can_be_trained_on(kinds):
  count = len(kinds)
  made = pipeline.Pipeline(kinds, np.arange(count), lambda step: np.arange(count), 3,
                           crop=pipeline.RandomCrops(16, 0, "stage", count))
  found = np.stack([made.batch(step)["images"] for step in range(3)])
  assert found.shape == (3, count, 16, 16, 3)
  means = np.stack([decode.pillow(kinds.read(place)).mean(axis=(0, 1)) for place in range(count)])
  assert np.corrcoef(found.mean(axis=(0, 2, 3)).ravel(), means.ravel())[0, 1] > 0.8


def damaged(tmp_path, policy):
  """Ten images, of which one is empty and one truncated."""
  images = {f"{number}.jpg": photos.jpeg(40, 40 + number, number) for number in range(10)}
  images["3.jpg"], images["5.jpg"] = b"", images["5.jpg"][:-300]
  files = photos.write(tmp_path, images)
  return decode.Images(files, log := decode.BadImages(policy, 10)), log


def test_a_bad_image_stops_the_run_and_is_named(tmp_path):
  images, _ = damaged(tmp_path, "error")
  with pytest.raises(DataError, match=r"3\.jpg: the image cannot be decoded: the file is empty"):
    evaluation(images, batch=2).batch(1)


def test_bad_images_are_replaced_and_the_others_stay_as_they_are(tmp_path):
  images, log = damaged(tmp_path, "substitute")
  found = evaluation(images, batch=4)
  seen = np.concatenate([found.batch(step)["images"] for step in range(3)])[:10]
  assert [place for place in range(10) if not seen[place].any()] == [3, 5]
  assert {name.rsplit("/")[-1] for name in log.found} == {"3.jpg", "5.jpg"}
  clean = {f"{number}.jpg": photos.jpeg(40, 40 + number, number) for number in range(10)}
  expected = evaluation(photos.write(tmp_path / "clean", clean), batch=10).batch(0)["images"]
  np.testing.assert_array_equal(np.delete(seen, [3, 5], axis=0), np.delete(expected, [3, 5], axis=0))


def test_what_only_tensorflow_cannot_decode_is_left_to_pillow(tmp_path, monkeypatch):
  data = photos.jpeg(40, 50, 1)
  broken = data.replace(b"\xff\xdb", b"\xff\xe4")  # a plain JPEG by its headers, but without tables to scale it
  files = photos.write(tmp_path, {"good.jpg": photos.jpeg(40, 40), "broken.jpg": broken})
  images = decode.Images(files, log := decode.BadImages("substitute", 2))
  asked, whole = [], decode.pillow(photos.jpeg(40, 50, 1))

  @contextlib.contextmanager
  def tolerant(data, background):
    asked.append(data)
    yield whole

  monkeypatch.setattr(decode, "_decoded", tolerant)
  found = evaluation(images).batch(0)["images"]
  assert asked == [broken] and not log.found
  complete = photos.write(tmp_path / "complete", {"a.jpg": photos.jpeg(40, 40), "b.jpg": data})
  expected = evaluation(complete).batch(0)["images"]
  assert np.abs(found.astype(int) - expected).max() <= 2


def test_what_neither_decodes_is_a_bad_image(tmp_path):
  broken = photos.jpeg(40, 50, 1).replace(b"\xff\xdb", b"\xff\xe4")
  files = photos.write(tmp_path, {"good.jpg": photos.jpeg(40, 40), "broken.jpg": broken})
  images = decode.Images(files, log := decode.BadImages("substitute", 2))
  found = evaluation(images, batch=1)
  assert [found.batch(step)["images"].any() for step in (0, 1, 1, 0)] == [True, False, False, True]
  assert list(log.found) == [str(tmp_path / "broken.jpg")]


def test_tensorflow_sees_no_accelerator():
  assert pipeline.tensorflow().config.get_visible_devices("GPU") == []


def test_without_tensorflow_there_is_one_error(monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorflow", None)
  with pytest.raises(DataError, match=r"dataset\.pipeline: 'tf_data' needs TensorFlow.*pipeline=resident"):
    pipeline.tensorflow()


def test_the_order_of_inaturalist_takes_less_than_16_megabytes():
  labels = (np.arange(437_513) % 8142).astype(np.int32)
  tracemalloc.start()
  found = Order(labels, 8142, batch_size=512, epochs=90, seed=0, stage="stage")
  found.batch(0)
  held, _ = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert held < 16e6
