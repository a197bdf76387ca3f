import importlib
import re
from pathlib import Path

import numpy as np
import pytest

from ltjax.config import spec
from ltjax.data import listing, photos
from ltjax.errors import ConfigError, DataError
from tests.photographs import write_lines, write_tree

COUNTS = dict(bee=1, cat=10, dog=5)


def names(part):
  """Full paths of the images of one part of a data set."""
  return [part[0].name(place) for place in range(len(part[0]))]


def check_parts(dataset, root):
  """Every image is in one part only, is read as it stands on the disk, and has the label of its folder."""
  parts = [part for part in (dataset.train, dataset.test, dataset.held_out) if part is not None]
  everything = [name for part in parts for name in names(part)]
  assert len(set(everything)) == len(everything)
  for files, labels in parts:
    assert len(files) == len(labels) and labels.dtype == np.int64
    for place, label in enumerate(labels):
      path = Path(files.name(place))
      assert path.is_relative_to(root) and files.read(place) == path.read_bytes()
      assert path.parent.name == dataset.class_names[label]
  return everything


# -- a folder for each class ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("holdout", [0.0, 0.2])
def test_a_folder_without_a_test_set_is_split_in_every_class(tmp_path, holdout):
  paths = write_tree(tmp_path, COUNTS)
  dataset = photos.folder(root=str(tmp_path), val_fraction=0.3, holdout=holdout)
  assert dataset.class_names == ("bee", "cat", "dog") and (dataset.held_out is None) == (not holdout)
  assert sorted(check_parts(dataset, tmp_path)) == [f"{tmp_path}/{path}" for path in paths]
  np.testing.assert_array_equal(np.bincount(dataset.test[1]), [0, 3, 2])
  np.testing.assert_array_equal(dataset.held_out_counts, [0, 1, 1] if holdout else [0, 0, 0])
  np.testing.assert_array_equal(dataset.class_counts, [1, 6, 2] if holdout else [1, 7, 3])
  assert names(dataset.train) == [f"{tmp_path}/{paths[place]}" for place in dataset.selected]  # in the full list
  assert dataset.mean == (0.485, 0.456, 0.406) and dataset.std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.99])
def test_a_class_of_two_has_one_image_on_either_side(tmp_path, fraction):
  write_tree(tmp_path, dict(a=2, b=3, c=1))
  dataset = photos.folder(root=str(tmp_path), val_fraction=fraction)
  assert dataset.class_counts.min() == 1 and np.bincount(dataset.test[1], minlength=3).tolist()[0] == 1
  assert np.bincount(dataset.test[1], minlength=3)[2] == 0


def test_the_split_is_that_of_the_seed(tmp_path):
  write_tree(tmp_path, COUNTS)
  first, again, other = (photos.folder(root=str(tmp_path), subset_seed=seed) for seed in (0, 0, 1))
  assert names(first.test) == names(again.test) != names(other.test)
  assert first.fingerprint == again.fingerprint != other.fingerprint


@pytest.mark.parametrize("test", ["test", "val", "validation", "valid"])
def test_existing_train_and_test_folders_are_used(tmp_path, test):
  train = write_tree(tmp_path / "train", COUNTS)
  tests = write_tree(tmp_path / test, dict(dog=2, cat=1), first=100)
  dataset = photos.folder(root=str(tmp_path))
  check_parts(dataset, tmp_path)
  assert names(dataset.train) == [f"{tmp_path}/train/{path}" for path in train]
  assert names(dataset.test) == [f"{tmp_path}/{test}/{path}" for path in tests]
  assert dataset.test[1].tolist() == [1, 2, 2] and dataset.held_out is None
  np.testing.assert_array_equal(dataset.selected, np.arange(16))


def test_val_beside_test_is_held_out_unless_a_fraction_is(tmp_path):
  for split in ("train", "val", "test"):
    write_tree(tmp_path / split, dict(a=4, b=4))
  dataset = photos.folder(root=str(tmp_path))
  assert {Path(name).parents[1].name for name in names(dataset.held_out)} == {"val"}
  assert {Path(name).parents[1].name for name in names(dataset.test)} == {"test"}
  dataset = photos.folder(root=str(tmp_path), holdout=0.5)
  assert {Path(name).parents[1].name for name in names(dataset.held_out)} == {"train"}
  assert dataset.class_counts.tolist() == [2, 2]


def test_a_class_may_be_called_train(tmp_path):
  write_tree(tmp_path, dict(bus=3, test=3, train=3))
  assert photos.folder(root=str(tmp_path)).class_names == ("bus", "test", "train")


def test_a_test_set_in_another_folder(tmp_path):
  write_tree(tmp_path / "here", COUNTS)
  write_tree(tmp_path / "there", dict(dog=1))
  dataset = photos.folder(root=str(tmp_path / "here"), test_root=str(tmp_path / "there"))
  assert names(dataset.test) == [f"{tmp_path}/there/dog/000.jpg"] and dataset.test[1].tolist() == [2]
  with pytest.raises(DataError, match=r"dataset\.test_root: no folder"):
    photos.folder(root=str(tmp_path / "here"), test_root=str(tmp_path / "nowhere"))


def test_classes_that_differ_in_capitals_alone_are_reported(tmp_path):
  write_tree(tmp_path, dict(cat=2, Cat=2, dog=2))
  assert "classes that differ in capitals alone: 'Cat' and 'cat'" in photos.folder(root=str(tmp_path)).notes


def test_faults_in_a_folder_are_named(tmp_path):
  write_tree(tmp_path / "train", COUNTS)
  write_tree(tmp_path / "test", dict(dog=1, zebra=1, ant=1))
  with pytest.raises(DataError, match=r"test: class 'ant', 'zebra' is only in the test set"):
    photos.folder(root=str(tmp_path))
  write_tree(tmp_path / "one", dict(cat=3))
  with pytest.raises(DataError, match="there is one class, 'cat'"):
    photos.folder(root=str(tmp_path / "one"))
  write_tree(tmp_path / "wrapped/photos", dict(cat=1, dog=1))
  with pytest.raises(DataError, match=rf"one folder, 'photos', .*; .* give --config.dataset.root={tmp_path}/wrapped/p"):
    photos.folder(root=str(tmp_path / "wrapped"))
  write_tree(tmp_path / "singles", dict(cat=1, dog=1))
  with pytest.raises(DataError, match="no test set, and no class has the two images"):
    photos.folder(root=str(tmp_path / "singles"))
  write_tree(tmp_path / "empty", dict(cat=3, dog=0))
  with pytest.raises(DataError, match="no image in the folder of class 'dog'"):
    photos.folder(root=str(tmp_path / "empty"))


def test_an_image_that_cannot_be_read_is_an_oserror_with_its_name(tmp_path):
  write_tree(tmp_path, dict(a=2, b=2))
  dataset = photos.folder(root=str(tmp_path))
  for name in names(dataset.train):
    Path(name).unlink()
  with pytest.raises(OSError, match=re.escape(names(dataset.train)[0])):
    dataset.train[0].read(0)


@pytest.mark.parametrize(("train", "test"), [("Train", "Test"), ("TRAIN", "TEST"), ("train", "Val"),
                                             ("Training", "validation"), ("train", "Valid")])
def test_split_folders_in_any_case(tmp_path, train, test):
  write_tree(tmp_path / train, COUNTS)
  write_tree(tmp_path / test, dict(bee=1, cat=1, dog=1), first=100)
  dataset = photos.folder(root=str(tmp_path))
  assert dataset.class_names == ("bee", "cat", "dog") and dataset.class_counts.tolist() == [1, 10, 5]
  assert dataset.summary() == "3 classes, 16 training images, 3 test images"


def test_a_flat_test_folder_is_named_and_its_ways_out_work(tmp_path):
  write_tree(tmp_path / "train", COUNTS)
  write_tree(tmp_path, dict(Test=5), first=100)
  with pytest.raises(DataError, match=rf"Test: its images are in no class folder, .*--config\.dataset\.root={tmp_path}/"
                                      r"train leaves them out .*--config\.dataset\.test_root=DIR"):
    photos.folder(root=str(tmp_path))
  assert photos.folder(root=f"{tmp_path}/train").class_counts.tolist() == [1, 8, 4]
  write_tree(tmp_path / "val", dict(cat=2), first=200)
  with pytest.raises(DataError, match=rf"--config\.dataset\.test_root={tmp_path}/val tests on val/"):
    photos.folder(root=str(tmp_path))
  dataset = photos.folder(root=str(tmp_path), test_root=f"{tmp_path}/val")
  assert len(dataset.test[1]) == 2 and dataset.held_out is None


def test_a_class_is_one_whether_its_accent_is_composed_or_not(tmp_path):
  write_tree(tmp_path / "train", {"cafe\u0301": 3, "tea": 2})
  write_tree(tmp_path / "test", {"caf\u00e9": 1, "tea": 1})
  dataset = photos.folder(root=str(tmp_path))
  assert dataset.class_names == ("caf\u00e9", "tea") and dataset.test[1].tolist() == [0, 1]
  assert dataset.train[0].read(0) and dataset.test[0].read(0)
  composed = write_lines(tmp_path / "t.csv", *(f"caf\u00e9/00{k}.jpg,caf\u00e9" for k in range(3)), "tea/000.jpg,tea")
  dataset = photos.csv(root=f"{tmp_path}/train", train_csv=composed)
  assert all(dataset.train[0].read(place) for place in range(len(dataset.train[0])))  # the files are decomposed
  assert "-" not in [line.split("\t")[1] for line in dataset.example_lines()]


def test_the_summary_names_omitted_files_and_classes_that_cannot_be_measured(tmp_path):
  write_tree(tmp_path, dict(a=10, b=1, c=1))
  for name in ("a/.DS_Store", "a/x.txt", "b/y.csv", "notes.txt", "top.jpg"):
    (tmp_path / name).write_bytes(b"x")
  (tmp_path / "a/.thumbs").mkdir()
  lines = photos.folder(root=str(tmp_path)).summary().splitlines()
  assert lines == [
      "3 classes, 10 training images, 2 test images; 5 files left out: 1 hidden, 3 not images (.txt, .csv), 1 image in "
      "no class folder; 1 hidden folder left out",
      "note: 2 of 3 classes have one image and get no test image ('b', 'c'), so their accuracy cannot be measured; "
      "add a second image to each, or give a test set that has them with --config.dataset.test_root=DIR; where "
      "classes have few images, the mean over other splits, too, says more than one (--config.dataset.subset_seed=1 "
      "with a --workdir of its own)"]
  lines = photos.folder(root=str(tmp_path), holdout=0.2).summary().splitlines()
  assert "2 of 3 classes have too few images for a held-out one" in lines[2]


def test_folders_beside_the_split_are_named(tmp_path):
  for name in ("train", "test", "extra"):
    write_tree(tmp_path / name, dict(a=2, b=2))
  assert photos.folder(root=str(tmp_path)).summary().splitlines()[1] == "note: left out beside train/: 'extra'"


def test_the_fingerprint_is_of_the_examples_wherever_they_are(tmp_path):
  write_tree(tmp_path / "x", COUNTS)
  before = photos.folder(root=f"{tmp_path}/x")
  fingerprint = before.fingerprint
  assert photos.folder(root=f"{tmp_path}/x/../x/").fingerprint == fingerprint
  (tmp_path / "x").rename(tmp_path / "y")
  assert photos.folder(root=f"{tmp_path}/y").fingerprint == fingerprint
  assert all("\t-\t" in line for line in before.example_lines("test"))  # of files that have gone
  (tmp_path / "y/dog").rename(tmp_path / "y/emu")
  after = photos.folder(root=f"{tmp_path}/y")
  assert after.fingerprint != fingerprint and after.selection_sha256 == before.selection_sha256
  path, size, name = next(after.example_lines()).split("\t")
  assert (path, name) == ("bee/000.jpg", "bee") and int(size) == (tmp_path / "y" / path).stat().st_size


@pytest.mark.parametrize("background", ["white", "black"])
def test_the_background_is_that_of_the_config(tmp_path, background):
  write_tree(tmp_path, COUNTS)
  read, _ = spec.dataset(dict(name="folder", root=str(tmp_path), background=background, pipeline="tf_data"))
  assert read().background == background
  with pytest.raises(ConfigError, match=r"dataset\.background: expected 'white' or 'black', got 'grey'"):
    photos.folder(root=str(tmp_path), background="grey")


# -- tables -----------------------------------------------------------------------------------------------------------


def write_table(path, rows):
  return write_lines(path, *(f"{image},{image.split('/')[0]}" for image in rows))


def test_a_table_with_and_without_one_for_the_test_set(tmp_path):
  paths = write_tree(tmp_path, COUNTS)
  train, test = write_table(tmp_path / "train.csv", paths[::-1]), write_table(tmp_path / "test.csv", paths[1:3])
  dataset = photos.csv(root=str(tmp_path), train_csv=train, val_fraction=0.3)
  check_parts(dataset, tmp_path)
  assert dataset.class_names == ("bee", "cat", "dog") and dataset.class_counts.tolist() == [1, 7, 3]
  with pytest.raises(DataError, match=r"test\.csv: 'cat/000\.jpg' is in .*train\.csv too, and 1 more are"):
    photos.csv(root=str(tmp_path), train_csv=train, test_csv=test)
  train = write_table(tmp_path / "train.csv", [paths[0], *paths[3:]])
  dataset = photos.csv(root=str(tmp_path), train_csv=train, test_csv=test)
  check_parts(dataset, tmp_path)
  assert names(dataset.test) == [f"{tmp_path}/{path}" for path in paths[1:3]]
  with pytest.raises(DataError, match=r"test\.csv: class 'emu' is only in the test set"):
    photos.csv(root=str(tmp_path), train_csv=train, test_csv=write_lines(tmp_path / "test.csv", "x.jpg,emu"))


def test_integer_names_are_in_the_order_of_their_values(tmp_path):
  paths = write_tree(tmp_path, {"2": 2, "10": 2, "-1": 2})
  dataset = photos.csv(root=str(tmp_path), train_csv=write_table(tmp_path / "train.csv", paths))
  assert dataset.class_names == ("-1", "2", "10")
  check_parts(dataset, tmp_path)
  paths += write_tree(tmp_path, {"9a": 2}, 50)
  dataset = photos.csv(root=str(tmp_path), train_csv=write_table(tmp_path / "train.csv", paths))
  assert dataset.class_names == ("-1", "10", "2", "9a")


def test_a_table_with_headings_and_its_note(tmp_path):
  paths = write_tree(tmp_path, COUNTS)
  rows = [f"{k};{path};40;{path.split('/')[0]}" for k, path in enumerate(paths)]
  dataset = photos.csv(root=str(tmp_path), train_csv=write_lines(tmp_path / "t.csv", "id;where;size;class", *rows),
                       image_column="where")
  check_parts(dataset, tmp_path)
  assert "1 of 3 classes have" not in dataset.summary() and "1 of 3 classes has one image" in dataset.summary()
  assert "--config.dataset.test_csv=FILE" in dataset.summary()


# -- from a config ----------------------------------------------------------------------------------------------------


def run(**dataset):
  config = importlib.import_module("configs.gcl_folder").get_config()
  config.dataset = dataset
  return spec.parse(config)


def test_a_config_finds_the_sources_and_gives_them_the_cache(tmp_path):
  write_tree(tmp_path / "root", COUNTS)
  read = run(name="folder", root=str(tmp_path / "root"), pipeline="tf_data").read
  assert read()[0].class_names == ("bee", "cat", "dog") and not (tmp_path / "cache").exists()
  assert read(tmp_path / "cache")[0].class_names == ("bee", "cat", "dog")
  assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npz"]


@pytest.mark.parametrize(("block", "message"), [
  (dict(name="folder"), "dataset: folder needs root"),
  (dict(name="foldr", root="x"), "no 'foldr' .*did you mean 'folder'.*cifar10, .*imagenet_lt"),
  (dict(name="folder", root="x", cache="y"), r"dataset\.cache: folder has no such argument"),
  (dict(name="folder", root="x", val_fraction=0.0), r"dataset\.val_fraction: expected a number in \(0, 1\), got 0"),
  (dict(name="folder", root="x", holdout=1.0), r"dataset\.holdout: expected a number in \[0, 1\)"),
  (dict(name="split_list", root="x", train_list="y"), "dataset: split_list needs test_list"),
])
def test_a_wrong_block_is_named_before_anything_is_read(block, message):
  with pytest.raises(ConfigError, match=message):
    spec.dataset(block)


def test_a_folder_that_may_not_be_read_is_one_error(tmp_path, monkeypatch):
  write_tree(tmp_path, COUNTS)

  def refused(path):
    raise PermissionError(13, "Permission denied", str(path))

  monkeypatch.setattr(listing.os, "scandir", refused)
  with pytest.raises(DataError, match=rf"dataset: {re.escape(str(tmp_path))} cannot be read \(Permission denied\)"):
    run(name="folder", root=str(tmp_path)).read()
