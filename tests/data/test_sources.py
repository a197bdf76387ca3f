import hashlib
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from ltjax.data import longtail, sources
from ltjax.errors import ConfigError, DataError
from tests.data.test_longtail import SELECTED

PROFILE = dict(profile="exponential", subset_seed=0)
CIFAR10_TRAIN, CIFAR10_TEST = [f"data_batch_{k}.bin" for k in range(1, 6)], "test_batch.bin"
FOLDERS = {10: "cifar-10-batches-bin", 100: "cifar-100-binary"}


def in_layout(raw, label_bytes):
  """HWC images of records, pixel by pixel from the description of the format: R, G, B planes of 32 rows of 32."""
  images = np.empty((len(raw), 32, 32, 3), np.uint8)
  for y in range(32):
    for x in range(32):
      for channel in range(3):
        images[:, y, x, channel] = raw[:, label_bytes + 1024 * channel + 32 * y + x]
  return images


def write_cifar(root, classes, records):
  """{file name: records [n, bytes]} of random pixels and labels, written to `root` in the official layout."""
  rng, label_bytes = np.random.default_rng(classes), 1 if classes == 10 else 2
  files = [*CIFAR10_TRAIN, CIFAR10_TEST] if classes == 10 else ["train.bin", "test.bin"]
  folder = root / FOLDERS[classes]
  folder.mkdir(parents=True)
  written = {}
  for name in files:
    count = records[name] if isinstance(records, dict) else records
    raw = np.frombuffer(rng.bytes(count * (label_bytes + 3072)), np.uint8).reshape(count, -1).copy()
    raw[:, label_bytes - 1] = rng.permutation(np.arange(count) % classes)
    if classes == 100:
      raw[:, 0] = 19 - raw[:, 1] // 5  # coarse labels, which a reader could take for the fine ones
    raw.tofile(folder / name)
    written[name] = raw
  return written


# -- digits -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def all_digits():
  images, labels = load_digits(return_X_y=True)
  return images.reshape(-1, 8, 8, 1), labels


def test_digits_are_the_real_ones_losslessly(all_digits):
  images, labels = all_digits
  assert len(images) == 1797 and set(np.unique(images)) == set(range(17))
  dataset = sources.digits(imbalance=10.0, **PROFILE)
  train, train_labels = dataset.train
  assert train.dtype == np.uint8 and train_labels.dtype == np.int64
  np.testing.assert_array_equal(train / 15, images[dataset.selected])
  np.testing.assert_array_equal(train_labels, labels[dataset.selected])
  every = {image.tobytes(): label for image, label in zip((images * 15).astype(np.uint8), labels, strict=True)}
  assert len(every) == 1797  # no scan occurs twice, so an image's bytes identify it
  assert all(every[image.tobytes()] == label for image, label in zip(*dataset.test, strict=True))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("imbalance", "profile", "counts"), [
  (1.0, "exponential", longtail.exponential_counts(10, 134, 1)),
  (50.0, "exponential", longtail.exponential_counts(10, 134, 50)),
  (10.0, "step", longtail.step_counts(10, 134, 10)),
  (10.0, "pareto", longtail.pareto_counts(10, 134, 10)),
])
def test_digits_counts_and_no_image_both_in_train_and_in_test(imbalance, profile, counts, seed):
  dataset = sources.digits(imbalance=imbalance, profile=profile, subset_seed=seed)
  np.testing.assert_array_equal(dataset.class_counts, counts)
  assert dataset.class_counts[0] == 174 - 40  # the rarest digit has 174 scans
  np.testing.assert_array_equal(np.bincount(dataset.test[1]), np.full(10, 40))
  train, test = ({image.tobytes() for image in images} for images, _ in (dataset.train, dataset.test))
  assert (len(train), len(test)) == (counts.sum(), 400)
  assert not train & test
  assert len(np.unique(dataset.selected)) == len(dataset.selected) == counts.sum()


def test_digits_statistics_and_names():
  dataset = sources.digits(imbalance=20.0, **PROFILE)
  unit = (dataset.train[0] / 255 - dataset.mean) / dataset.std
  assert abs(unit.mean()) < 1e-12 and abs(unit.std() - 1) < 1e-12
  assert dataset.class_names == ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")


def test_the_fingerprint_tells_selections_apart():
  fingerprints = [sources.digits(imbalance=imbalance, profile="exponential", subset_seed=seed).fingerprint
                  for imbalance, seed in ((10.0, 0), (10.0, 1), (20.0, 0), (10.0, 0))]
  assert len(set(fingerprints)) == 3 and fingerprints[0] == fingerprints[3]
  dataset = sources.digits(imbalance=10.0, **PROFILE)
  assert dataset.selection_sha256 == hashlib.sha256(dataset.selected.astype("<i8").tobytes()).hexdigest()


# -- images held out for a choice --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 0.5, 0.99])
def test_every_class_gives_its_fraction_but_not_its_last_image(fraction):
  counts = np.array([1, 2, 3, 10, 97, 1])
  labels = np.random.RandomState(3).permutation(np.repeat(np.arange(6), counts))
  kept, held = sources.hold_out(labels, fraction, 0)
  np.testing.assert_array_equal(np.sort(np.r_[kept, held]), np.arange(len(labels)))  # each index once
  for c, n in enumerate(counts):
    share = (labels[held] == c).sum()
    assert share == 0 if n == 1 else 1 <= share <= n - 1
    assert n == 1 or abs(share - np.clip(fraction * n, 1, n - 1)) <= 0.5
  assert (np.diff(kept) > 0).all() and (np.diff(held) > 0).all()
  again = sources.hold_out(labels, fraction, 0)
  np.testing.assert_array_equal(held, again[1])
  assert not np.array_equal(held, sources.hold_out(labels, fraction, 1)[1])


def test_nothing_is_held_out_by_default_and_a_holdout_must_not_be_empty():
  kept, held = sources.hold_out(np.array([1, 0, 1]), 0.0, 0)
  assert kept.tolist() == [0, 1, 2] and held.size == 0
  with pytest.raises(ConfigError, match=r"dataset\.holdout: no class has .* lower the imbalance"):
    sources.hold_out(np.arange(5), 0.5, 0)


def test_held_out_digits_are_those_of_the_long_tail_and_not_trained_on():
  whole, part = (sources.digits(imbalance=50.0, **PROFILE, holdout=holdout) for holdout in (0.0, 0.2))
  same = sources.digits(imbalance=50.0, **PROFILE)
  assert whole.fingerprint == same.fingerprint and whole.held_out is None and whole.held_out_counts.tolist() == [0] * 10
  names = {split: [image.tobytes() for image in getattr(dataset, split)[0]] for dataset, split in
           ((part, "train"), (part, "held_out"), (part, "test"))}
  assert not set(names["train"]) & set(names["held_out"])
  assert sorted(names["train"] + names["held_out"]) == sorted(image.tobytes() for image in whole.train[0])
  np.testing.assert_array_equal(part.class_counts + part.held_out_counts, whole.class_counts)
  np.testing.assert_array_equal(part.held_out_counts, np.clip(np.rint(0.2 * whole.class_counts), 1, None))
  np.testing.assert_array_equal(part.test[0], whole.test[0])
  assert len(part.selected) == len(part.train[1]) and part.fingerprint != whole.fingerprint
  assert abs(((part.train[0] / 255 - part.mean) / part.std).mean()) < 1e-12  # the statistics of the training images
  images = load_digits().images
  np.testing.assert_array_equal(part.train[0][..., 0] / 15, images[part.selected])


# -- official binary files --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def official():
  """CIFAR-10 and CIFAR-100 of random pixels in files of the official sizes, gone after the last test."""
  with tempfile.TemporaryDirectory() as folder:
    root = Path(folder)
    ten = write_cifar(root, 10, 10_000)
    hundred = write_cifar(root, 100, {"train.bin": 50_000, "test.bin": 10_000})
    yield root, {10: ten, 100: hundred}


@pytest.mark.parametrize(("classes", "imbalance"), [(10, 100.0), (100, 100.0), (10, 1000.0)])
def test_cifar_lt_from_the_official_files(official, classes, imbalance):
  root, written = official
  source = sources.cifar10 if classes == 10 else sources.cifar100
  dataset = source(imbalance=imbalance, **PROFILE, dir=str(root))
  label_bytes = 1 if classes == 10 else 2
  train = np.concatenate([written[classes][name] for name in (CIFAR10_TRAIN if classes == 10 else ["train.bin"])])
  test = written[classes][CIFAR10_TEST if classes == 10 else "test.bin"]
  labels = train[:, label_bytes - 1].astype(int)
  counts = longtail.exponential_counts(classes, 50_000 // classes, imbalance)
  np.testing.assert_array_equal(dataset.selected, longtail.long_tailed_subset(labels, counts))
  np.testing.assert_array_equal(dataset.class_counts, counts)
  some = np.r_[0:20, len(dataset.selected) - 20 : len(dataset.selected)]
  np.testing.assert_array_equal(dataset.train[0][some], in_layout(train[dataset.selected[some]], label_bytes))
  np.testing.assert_array_equal(dataset.train[1], labels[dataset.selected])
  assert (dataset.test[0].shape, dataset.test[0].dtype) == ((10_000, 32, 32, 3), np.uint8)
  some = np.r_[0:5, 9_995:10_000]
  np.testing.assert_array_equal(dataset.test[0][some], in_layout(test[some], label_bytes))
  np.testing.assert_array_equal(dataset.test[1], test[:, label_bytes - 1])
  assert dataset.mean == (0.4914, 0.4822, 0.4465) and dataset.std == (0.2023, 0.1994, 0.2010)
  assert len(dataset.class_names) == classes


def test_cifar_holds_out_too(official):
  root, _ = official
  whole, part = (sources.cifar100(imbalance=100.0, **PROFILE, dir=str(root), holdout=share) for share in (0.0, 0.1))
  np.testing.assert_array_equal(part.class_counts + part.held_out_counts, whole.class_counts)
  assert part.held_out_counts.min() == 1 and part.held_out_counts.max() == 50
  assert not {image.tobytes() for image in part.train[0]} & {image.tobytes() for image in part.held_out[0]}
  assert set(part.selected) < set(whole.selected) and len(part.selected) == len(part.train[1])


def test_the_folder_of_the_files_itself_is_accepted_too(official):
  root, _ = official
  outer, inner = (sources.cifar10(imbalance=1000.0, **PROFILE, dir=str(path)) for path in (root, root / FOLDERS[10]))
  np.testing.assert_array_equal(outer.train[0], inner.train[0])
  np.testing.assert_array_equal(outer.test[1], inner.test[1])


def test_class_names(official):
  root, _ = official
  assert sources.cifar10(imbalance=1000.0, **PROFILE, dir=str(root)).class_names == (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
  assert sources.cifar100(imbalance=100.0, **PROFILE, dir=str(root)).class_names == tuple(map(str, range(100)))
  names = root / FOLDERS[100] / "fine_label_names.txt"
  names.write_text("\n".join(f"class_{k}" for k in range(100)) + "\n\n")
  try:
    found = sources.cifar100(imbalance=100.0, **PROFILE, dir=str(root)).class_names
  finally:
    names.unlink()
  assert found == tuple(f"class_{k}" for k in range(100))


@pytest.mark.parametrize(("classes", "label_bytes"), [(10, 1), (100, 2)])
def test_one_file(tmp_path, classes, label_bytes):
  written = write_cifar(tmp_path, classes, 30)
  for name, raw in written.items():
    images, labels = sources._cifar_file(tmp_path / FOLDERS[classes] / name, 30, classes)
    np.testing.assert_array_equal(images, in_layout(raw, label_bytes))
    np.testing.assert_array_equal(labels, raw[:, label_bytes - 1])
    assert (images.dtype, labels.dtype) == (np.uint8, np.int64)


def test_a_missing_folder_is_named(tmp_path):
  with pytest.raises(DataError, match=r"dataset\.dir: no folder '.*nowhere'.*cifar-100-binary/.*TFDS"):
    sources.cifar100(imbalance=10.0, **PROFILE, dir=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(("classes", "size"), [(10, "30,730,000"), (100, "153,700,000")])
def test_a_missing_file_is_named(tmp_path, classes, size):
  (tmp_path / FOLDERS[classes]).mkdir()
  first = "data_batch_1.bin" if classes == 10 else "train.bin"
  with pytest.raises(DataError, match=rf"{FOLDERS[classes]}/{first}: missing; .*CIFAR-{classes} .*{size} bytes"):
    getattr(sources, f"cifar{classes}")(imbalance=10.0, **PROFILE, dir=str(tmp_path))


@pytest.mark.parametrize("size", [0, 3073 * 10_000 - 1, 3073 * 10_000 + 1, 3074 * 10_000])
def test_a_file_of_the_wrong_size_is_named_with_both_sizes(tmp_path, size):
  (tmp_path / FOLDERS[10]).mkdir()
  with open(tmp_path / FOLDERS[10] / "data_batch_1.bin", "wb") as file:
    file.truncate(size)
  with pytest.raises(DataError, match=rf"data_batch_1\.bin: {size:,} bytes, expected 30,730,000 \(10,000 records of "):
    sources.cifar10(imbalance=10.0, **PROFILE, dir=str(tmp_path))


@pytest.mark.parametrize(("classes", "label"), [(10, 10), (100, 100), (100, 255)])
def test_a_label_out_of_range_is_named_with_its_record(tmp_path, classes, label):
  write_cifar(tmp_path, classes, 20)
  path = tmp_path / FOLDERS[classes] / ("data_batch_1.bin" if classes == 10 else "train.bin")
  raw = np.fromfile(path, np.uint8).reshape(20, -1)
  raw[17, 0 if classes == 10 else 1] = label
  raw.tofile(path)
  with pytest.raises(DataError, match=rf"{path.name}: record 17 has label {label}, expected 0\.\.{classes - 1}"):
    sources._cifar_file(path, 20, classes)


# -- errors in a config, before anything is read -----------------------------------------------------------------------


SOURCES = {"digits": (sources.digits, {}), "cifar10": (sources.cifar10, dict(dir="nowhere")),
           "cifar100": (sources.cifar100, dict(dir="nowhere"))}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize(("profile", "imbalance", "message"), [
  ("exponential", 0.5, "imbalance.* at least 1, got 0.5"),
  ("exponential", float("nan"), "imbalance.* at least 1, got nan"),
  ("exponential", 6000.0, r"class \d+ would have 0 images"),
  ("step", 6000.0, r"class \d+ would have 0 images"),
  ("pareto", 6000.0, r"class \d+ would have 0 images"),
  ("zipf", 10.0, r"dataset\.profile: .*'zipf'; there are \['exponential', 'pareto', 'step'\]"),
])
def test_impossible_long_tails_are_named(name, profile, imbalance, message):
  source, more = SOURCES[name]
  with pytest.raises(ConfigError, match=message):
    source(imbalance=imbalance, profile=profile, subset_seed=0, **more)


# -- TFDS, on small files of the official layout ----------------------------------------------------------------------


@pytest.fixture
def tfds(tmp_path, monkeypatch):
  """TensorFlow Datasets that keeps its data in `tmp_path`."""
  pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
  module = pytest.importorskip("tensorflow_datasets", reason="TensorFlow Datasets is not installed")
  monkeypatch.setattr(module.core.constants, "DATA_DIR", str(tmp_path / "tfds"))
  return module


def downloads(tfds, monkeypatch, answer):
  monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", answer)


@pytest.mark.parametrize("classes", [10, 100])
def test_tfds_gives_the_files_in_their_order(tfds, tmp_path, monkeypatch, classes):
  written = write_cifar(tmp_path, classes, 20 if classes == 10 else 100)
  names = [f"class_{k}" for k in range(classes)]
  label_file = "batches.meta.txt" if classes == 10 else "fine_label_names.txt"
  (tmp_path / FOLDERS[classes] / label_file).write_text("\n".join(names) + "\n\n")
  if classes == 100:
    (tmp_path / FOLDERS[100] / "coarse_label_names.txt").write_text("\n".join(f"coarse_{k}" for k in range(20)))
  asked = []
  downloads(tfds, monkeypatch, lambda self, url: asked.append(url) or str(tmp_path))

  train, test, found = sources._cifar_tfds(classes)
  assert asked == [f"https://www.cs.toronto.edu/~kriz/cifar-{classes}-binary.tar.gz"]
  assert found == tuple(names)
  train_files, test_file = (CIFAR10_TRAIN, CIFAR10_TEST) if classes == 10 else (["train.bin"], "test.bin")
  for (images, labels), files in ((train, train_files), (test, [test_file])):
    raw = np.concatenate([written[name] for name in files])
    np.testing.assert_array_equal(images, in_layout(raw, 1 if classes == 10 else 2))
    np.testing.assert_array_equal(labels, raw[:, 0 if classes == 10 else 1])
    assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
  # On the disk they are in another order, or this test would say nothing.
  stored = tfds.as_numpy(tfds.builder(f"cifar{classes}").as_dataset(split="train", batch_size=-1))
  assert sorted(stored["id"]) != stored["id"].tolist()

  again, *_ = sources._cifar_tfds(classes)
  np.testing.assert_array_equal(again[0], train[0])
  assert len(asked) == 1  # prepared once


def test_a_failed_download_points_to_the_files(tfds, monkeypatch):
  def offline(self, url):
    raise ConnectionError("no route to host")

  downloads(tfds, monkeypatch, offline)
  with pytest.raises(DataError, match=r"CIFAR-100 .*no route to host.*--config\.dataset\.dir=DIR"):
    sources.cifar100(imbalance=100.0, **PROFILE, dir="")


@pytest.mark.parametrize("module", ["tensorflow", "tensorflow_datasets"])
def test_without_tensorflow_the_files_are_the_way(monkeypatch, module):
  if module == "tensorflow_datasets":
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
  monkeypatch.setitem(sys.modules, module, None)  # `import` raises
  with pytest.raises(DataError, match=rf"CIFAR-10 .*{module}.*--config\.dataset\.dir=DIR"):
    sources.cifar10(imbalance=100.0, **PROFILE, dir="")


def test_a_bad_imbalance_costs_no_download(tfds, monkeypatch):
  downloads(tfds, monkeypatch, lambda self, url: pytest.fail("downloaded"))
  with pytest.raises(ConfigError, match="imbalance"):
    sources.cifar10(imbalance=0.1, **PROFILE, dir="")


# -- the real data ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cifar_dir():
  if not os.environ.get("LTJAX_CIFAR_DIR"):
    pytest.skip("LTJAX_CIFAR_DIR names no folder with cifar-10-batches-bin/ and cifar-100-binary/")
  return os.environ["LTJAX_CIFAR_DIR"]


@pytest.mark.full_data
@pytest.mark.parametrize(("name", "mean", "std"), [
  ("cifar10", (0.491400, 0.482158, 0.446531), (0.247032, 0.243485, 0.261588)),
  ("cifar100", (0.507075, 0.486549, 0.440918), (0.267334, 0.256438, 0.276150)),
])
def test_real_cifar_has_the_known_statistics(cifar_dir, name, mean, std):
  dataset = getattr(sources, name)(imbalance=1.0, **PROFILE, dir=cifar_dir)
  images, labels = dataset.train
  assert len(images) == len(set(dataset.selected.tolist())) == 50_000
  np.testing.assert_array_equal(np.bincount(labels), 50_000 // len(dataset.class_names))
  np.testing.assert_array_equal(np.bincount(dataset.test[1]), 10_000 // len(dataset.class_names))
  histograms = np.stack([np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(3)])
  shares, values = histograms / histograms.sum(axis=1, keepdims=True), np.arange(256) / 255
  np.testing.assert_allclose(shares @ values, mean, atol=1e-6)
  np.testing.assert_allclose(np.sqrt(shares @ values**2 - (shares @ values) ** 2), std, atol=1e-6)


@pytest.mark.full_data
def test_real_cifar_pixels_are_the_published_ones(cifar_dir):
  (train, labels), (test, test_labels), names = sources._cifar_binary(100, cifar_dir)
  for array, digest in (
      (train, "4e457917601a66aed021f5fa37957b56c6319557c0a8ed5484de3c390af45430"),
      (test, "4cb8e5d9309da489bf6b19cc10cd96c3ae6f8daf225380b605aaee4c0d6aee19"),
      (labels.astype(np.uint8), "9f11b9f97aad759ba6df0a33e3218b01d8deaf4ed3a14aa1185d69b9ad7ebcb3"),
      (test_labels.astype(np.uint8), "4dad7d09c7c97d33f6cb928d705cf4196221316fd6e31bdd978a08ed9103ee0b")):
    assert hashlib.sha256(np.ascontiguousarray(array)).hexdigest() == digest
  assert names[:4] == ("apple", "aquarium_fish", "baby", "bear") and names[-1] == "worm"


@pytest.mark.full_data
@pytest.mark.parametrize(("name", "imbalance"), SELECTED)
def test_real_cifar_lt_has_the_field_s_images(cifar_dir, name, imbalance):
  dataset = getattr(sources, name)(imbalance=float(imbalance), **PROFILE, dir=cifar_dir)
  assert dataset.fingerprint == SELECTED[name, imbalance]
