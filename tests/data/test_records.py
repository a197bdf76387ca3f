import io
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from ltjax.commands import verify
from ltjax.data import photos, records
from ltjax.data.official import OFFICIAL
from ltjax.errors import ConfigError, DataError
from tests.photographs import jpeg, write_lines

pytest.importorskip("tensorflow_datasets", reason="TensorFlow Datasets is not installed")

WNIDS = ("n01440764", "n01443537", "n02085620")
ROOT = Path(__file__).parents[2]


def prepare(data_dir, dataset, version, feature, splits, file_format="array_record"):
  """A prepared TFDS data set: splits are {split: [(name, label, bytes)]}. TFDS shuffles them on the disk."""
  import tensorflow_datasets as tfds

  with tfds.core.registered.skip_registration():

    class Builder(tfds.core.GeneratorBasedBuilder):
      name, VERSION = dataset, tfds.core.Version(version)

      def _info(self):
        features = dict(image=tfds.features.Image(), label=tfds.features.ClassLabel(names=WNIDS))
        features |= {feature: tfds.features.Text()} if feature else {}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

      def _split_generators(self, manager):
        return {split: self._generate_examples(rows) for split, rows in splits.items()}

      def _generate_examples(self, rows):
        for name, label, data in rows:
          yield name, dict(image=io.BytesIO(data), label=label) | ({feature: name} if feature else {})

  Builder(data_dir=str(data_dir), file_format=file_format).download_and_prepare()
  return str(data_dir)


def imagenet_rows():
  train = [(f"{WNIDS[k % 3]}_{k}.JPEG", k % 3, jpeg(k)) for k in range(12)]
  return dict(train=train, validation=[(f"ILSVRC2012_val_{k:08d}.JPEG", k % 3, jpeg(100 + k)) for k in range(6)])


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
  """ImageNet of 12 + 6 images, as ArrayRecord."""
  return prepare(tmp_path_factory.mktemp("tfds"), "imagenet2012", "5.1.0", "file_name", imagenet_rows())


@pytest.fixture(scope="module")
def as_tfrecord(tmp_path_factory):
  """The same as TFRecord."""
  pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
  return prepare(tmp_path_factory.mktemp("tfds"), "imagenet2012", "5.1.0", "file_name", imagenet_rows(), "tfrecord")


def test_splits_are_read_at_random_in_the_order_of_their_names(imagenet):
  dataset = photos.tfds(builder="imagenet2012", tfds_dir=imagenet)
  rows = imagenet_rows()
  for part, split in ((dataset.train, "train"), (dataset.test, "validation")):
    expected = sorted(rows[split])
    assert len(part[0]) == len(expected) and part[1].tolist() == [label for _, label, _ in expected]
    for place in (*range(len(expected)), 0):
      assert part[0].read(place) == expected[place][2]
  assert dataset.class_names == WNIDS and dataset.held_out is None
  assert "imagenet2012/5.1.0 train record" in dataset.train[0].name(0)
  held = photos.tfds(builder="imagenet2012", tfds_dir=imagenet, holdout=0.3)
  assert held.held_out_counts.tolist() == [1, 1, 1] and held.class_counts.tolist() == [3, 3, 3]
  read = [files.read(place) for files, _ in (held.train, held.held_out) for place in range(len(files))]
  assert sorted(read) == sorted(data for _, _, data in rows["train"])


def test_many_threads_read_at_once(imagenet):
  files = photos.tfds(builder="imagenet2012", tfds_dir=imagenet).train[0]
  places = np.random.default_rng(0).integers(0, len(files), 2000).tolist()
  with ThreadPoolExecutor(16) as pool:
    assert list(pool.map(files.read, places)) == [files.read(place) for place in places]


@pytest.fixture
def lists(tmp_path):
  """Lists in ImageNet-LT's style that take part of the images: val is from the training images, too."""
  train = [f"train/{WNIDS[k % 3]}/{WNIDS[k % 3]}_{k}.JPEG {k % 3}" for k in (5, 0, 1, 3, 6)]
  test = [f"val/{WNIDS[k % 3]}/ILSVRC2012_val_{k:08d}.JPEG {k % 3}" for k in (4, 3)]
  return dict(train_list=write_lines(tmp_path / "train.txt", *train),
              val_list=write_lines(tmp_path / "val.txt", f"train/{WNIDS[1]}/{WNIDS[1]}_7.JPEG 1"),
              test_list=write_lines(tmp_path / "test.txt", *test))


def test_lists_select_by_the_names_that_tfds_keeps(imagenet, lists):
  dataset = photos.tfds(builder="imagenet2012", tfds_dir=imagenet, **lists)
  for part, first, places in ((dataset.train, 0, (5, 0, 1, 3, 6)), (dataset.held_out, 0, (7,)),
                              (dataset.test, 100, (4, 3))):
    assert [part[0].read(place) for place in range(len(places))] == [jpeg(first + k) for k in places]
    assert part[1].tolist() == [k % 3 for k in places]
  assert dataset.class_names == WNIDS and dataset.selected.tolist() == [0, 1, 2, 3, 4]


def test_imagenet_lt_without_a_root_comes_from_tfds(imagenet, lists, tmp_path, monkeypatch):
  known = OFFICIAL["imagenet_lt"]
  monkeypatch.setitem(OFFICIAL, "imagenet_lt", known._replace(classes=3))
  for role, official in known.lists.items():
    path = lists[dict(train="train_list", held_out="val_list", test="test_list")[role]]
    Path(path).rename(tmp_path / f"{official.name}.txt")
  dataset = photos.imagenet_lt(lists=str(tmp_path), tfds_dir=imagenet)
  assert [dataset.train[0].read(place) for place in range(5)] == [jpeg(k) for k in (5, 0, 1, 3, 6)]
  assert dataset.held_out[0].read(0) == jpeg(7) and dataset.test[0].read(0) == jpeg(104)
  with open(tmp_path / "ImageNet_LT_test.txt", "a") as file:
    file.write("x 3\n")
  with pytest.raises(DataError, match=r"ImageNet_LT_test\.txt:3: label 3 is out of range"):
    photos.imagenet_lt(lists=str(tmp_path), tfds_dir="/nowhere")  # before TFDS is opened


@pytest.mark.parametrize("decode", [False, True])
def test_verify_reads_records_too(tmp_path, decode):
  rows = imagenet_rows()
  rows["train"][3] = (*rows["train"][3][:2], b"<html>")
  rows["validation"][2] = (*rows["validation"][2][:2], rows["train"][0][2])
  data_dir = prepare(tmp_path, "imagenet2012", "5.1.0", "file_name", rows)
  block = ConfigDict(dict(dataset=dict(name="tfds", builder="imagenet2012", tfds_dir=data_dir)))
  wrong = verify.verify(block, tmp_path / "out", decode)
  if decode:
    page, same = wrong
    assert "5.1.0 train record" in page and "not an image: it starts with b'<html>'" in page
    assert "the test set has the same image as the training set" in same
  else:
    assert wrong == []


def test_an_image_of_a_list_that_tfds_lacks_is_named(imagenet, lists):
  with open(lists["train_list"], "a") as file:
    file.write(f"train/{WNIDS[0]}/{WNIDS[0]}_99.JPEG 0\ntrain/x.JPEG 0\n")
  with pytest.raises(DataError, match=r"train\.txt:6: 'train/.*_99\.JPEG' is not in .*imagenet2012 \(2 such lines"):
    photos.tfds(builder="imagenet2012", tfds_dir=imagenet, **lists)
  with pytest.raises(ConfigError, match=r"at least dataset\.train_list and dataset\.test_list"):
    photos.tfds(builder="imagenet2012", tfds_dir=imagenet, train_list=lists["train_list"])


def test_names_of_places_agree_in_both_layouts():
  key = records.NAMED["places365_small"][1]
  pairs = [("data_256/a/airfield/00002049.jpg", "train/airfield/00002049.jpg"),
           ("data_256/b/basketball_court/indoor/00004392.jpg", "train/basketball_court-indoor/00004392.jpg"),
           ("val_256/Places365_val_00003597.jpg", "val/airfield/Places365_val_00003597.jpg")]
  for small, standard in pairs:
    assert key(small) == key(standard)
  assert len({key(path) for pair in pairs for path in pair}) == 3


@pytest.mark.parametrize(("dataset", "feature", "stored", "listed", "name"), [
  ("places365_small", "filename", "data_256/b/bar/indoor/{}.jpg", "train/bar-indoor/{}.jpg", "val_256/v{}.jpg"),
  ("i_naturalist2018", "id", "9f8ecb39e{}", "train_val2018/Plantae/7291/9f8ecb39e{}.jpg", "a{}"),
])
def test_lists_select_from_the_other_data_sets(tmp_path, dataset, feature, stored, listed, name):
  rows = dict(train=[(stored.format(k), k % 3, jpeg(k)) for k in range(6)],
              validation=[(name.format(k), k % 3, jpeg(50 + k)) for k in range(3)])
  prepare(tmp_path, dataset, "1.0.0", feature, rows)
  train = write_lines(tmp_path / "train.txt", *(f"{listed.format(k)} {k % 2}" for k in (4, 1)))
  test = write_lines(tmp_path / "test.txt", f"val/x/{Path(name).name.format(2)} 0")
  found = photos.tfds(builder=dataset, tfds_dir=str(tmp_path), train_list=train, test_list=test)
  assert [found.train[0].read(place) for place in range(2)] == [jpeg(4), jpeg(1)]
  assert found.test[0].read(0) == jpeg(52)
  if dataset == "i_naturalist2018":
    assert found.mean == (0.466, 0.471, 0.380)
    assert photos.inat2018(tfds_dir=str(tmp_path)).class_counts.tolist() == [2, 2, 2]


def test_a_data_set_with_unknown_names_is_read_but_not_selected_from(tmp_path, lists):
  rows = imagenet_rows()
  prepare(tmp_path, "another", "1.0.0", None, rows)
  dataset = photos.tfds(builder="another", tfds_dir=str(tmp_path))
  read = [dataset.train[0].read(place) for place in range(12)]
  assert sorted(read) == sorted(data for _, _, data in rows["train"])
  labels = {data: label for _, label, data in rows["train"]}
  assert dataset.train[1].tolist() == [labels[data] for data in read]
  with pytest.raises(ConfigError, match=r"'another' cannot be selected by a list; .*imagenet2012"):
    photos.tfds(builder="another", tfds_dir=str(tmp_path), **lists)


def test_labels_are_read_once(imagenet, tmp_path, monkeypatch):
  first = records.open_split("imagenet2012", "train", imagenet, tmp_path / "cache")
  monkeypatch.setattr(records, "_collect", lambda *_: pytest.fail("read again"))
  again = records.open_split("imagenet2012", "train", imagenet, tmp_path / "cache")
  np.testing.assert_array_equal(first.labels, again.labels)
  assert list(first.names) == list(again.names) and first.files.read(3) == again.files.read(3)


def test_the_newest_version_is_read(tmp_path):
  rows = imagenet_rows()
  for version, count in (("1.9.0", 12), ("1.10.0", 9)):
    prepare(tmp_path, "imagenet2012", version, "file_name", rows | dict(train=rows["train"][:count]))
  assert len(photos.tfds(builder="imagenet2012", tfds_dir=str(tmp_path)).train[1]) == 9


def test_an_unprepared_data_set_is_named(imagenet, tmp_path):
  with pytest.raises(DataError, match=r"no prepared 'imagenet2012' in .*tfds build imagenet2012 .*array_record"):
    photos.tfds(builder="imagenet2012", tfds_dir=str(tmp_path))
  with pytest.raises(DataError, match=r"no split 'valid' \(did you mean 'validation'\?\); there are train, validation"):
    records.open_split("imagenet2012", "valid", imagenet)


@pytest.mark.parametrize("damage", ["cut off", "overwritten", "gone"])
def test_a_damaged_file_is_named_with_the_record(tmp_path, damage):
  data_dir = prepare(tmp_path, "imagenet2012", "5.1.0", "file_name", imagenet_rows())
  dataset = photos.tfds(builder="imagenet2012", tfds_dir=data_dir, cache=tmp_path / "cache")
  dataset = photos.tfds(builder="imagenet2012", tfds_dir=data_dir, cache=tmp_path / "cache")  # with no file open yet
  (path,) = tmp_path.glob("imagenet2012/5.1.0/*train.array_record*")
  data = path.read_bytes()
  path.unlink()
  if damage != "gone":
    path.write_bytes(data[: len(data) // 2] if damage == "cut off" else bytes(len(data)))
  with pytest.raises(OSError, match=r"imagenet2012/5\.1\.0 train record \d+ (cannot be read|holds no image)"):
    dataset.train[0].read(3)
  with pytest.raises(DataError, match=r"imagenet2012/5\.1\.0 train: record"):
    photos.tfds(builder="imagenet2012", tfds_dir=data_dir)


# -- TFRecord ---------------------------------------------------------------------------------------------------------


def test_tfrecord_names_the_command_that_converts_it(as_tfrecord):
  with pytest.raises(DataError, match=r"tfrecord, which has no random access; .*ltjax convert --dataset=i"):
    photos.tfds(builder="imagenet2012", tfds_dir=as_tfrecord)


def test_conversion_gives_the_same_images(as_tfrecord, imagenet, tmp_path):
  before = sorted(path.name for path in Path(as_tfrecord).rglob("*"))
  target = records.convert("imagenet2012", as_tfrecord, str(tmp_path))
  assert target == tmp_path / "imagenet2012" / "5.1.0" and not list(target.glob("*.partial"))
  converted, original = (photos.tfds(builder="imagenet2012", tfds_dir=folder) for folder in (str(tmp_path), imagenet))
  for one, other in ((converted.train, original.train), (converted.test, original.test)):
    np.testing.assert_array_equal(one[1], other[1])
    assert [one[0].read(k) for k in range(len(one[1]))] == [other[0].read(k) for k in range(len(one[1]))]
  assert converted.class_names == WNIDS
  assert sorted(path.name for path in Path(as_tfrecord).rglob("*")) == before
  with pytest.raises(DataError, match="--out: .* is there already"):
    records.convert("imagenet2012", as_tfrecord, str(tmp_path))
  with pytest.raises(DataError, match="array_record, so there is nothing to convert"):
    records.convert("imagenet2012", str(tmp_path), str(tmp_path / "again"))


def test_an_interrupted_conversion_continues(as_tfrecord, tmp_path):
  target = records.convert("imagenet2012", as_tfrecord, str(tmp_path))
  (done,), (lost,) = target.glob("*train*"), target.glob("*validation*")
  lost.rename(f"{lost}.partial")
  (target / "dataset_info.json").unlink()
  with pytest.raises(DataError, match="no prepared"):
    photos.tfds(builder="imagenet2012", tfds_dir=str(tmp_path))
  written = done.stat().st_mtime_ns
  records.convert("imagenet2012", as_tfrecord, str(tmp_path))
  assert done.stat().st_mtime_ns == written and not list(target.glob("*.partial"))
  assert len(photos.tfds(builder="imagenet2012", tfds_dir=str(tmp_path)).test[1]) == 6


def test_a_shard_with_missing_records_is_named(as_tfrecord, tmp_path):
  info = Path(as_tfrecord) / "imagenet2012" / "5.1.0" / "dataset_info.json"
  text = info.read_text()
  content = json.loads(text)
  content["splits"][0]["shardLengths"] = ["13"]
  try:
    info.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"train\.tfrecord-00000-of-00001: 12 records, expected 13"):
      records.convert("imagenet2012", as_tfrecord, str(tmp_path))
  finally:
    info.write_text(text)
  assert not list(tmp_path.rglob("*.array_record-00000-of-00001"))


def test_the_command(as_tfrecord, tmp_path):
  arguments = "--dataset=imagenet2012", f"--data_dir={as_tfrecord}", f"--out={tmp_path}"
  done = subprocess.run([sys.executable, "-m", "ltjax", "convert", *arguments], cwd=ROOT, capture_output=True,
                        text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  assert f"--config.dataset.tfds_dir={tmp_path}" in done.stdout
