import lzma
import os

import numpy as np
import pytest

from ltjax.data import photos, tables
from ltjax.data.official import OFFICIAL
from ltjax.errors import DataError
from tests.data.test_photos import COUNTS, check_parts, names
from tests.photographs import write_lines, write_tree

# -- lists ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def lists(tmp_path):
  """The arguments of a split list of three parts, with the paths of each."""
  found = {}
  for split, first in (("train", 0), ("val", 100), ("test", 200)):
    paths = write_tree(tmp_path / split, COUNTS if split == "train" else dict(bee=1, cat=1), first)
    found[split] = [f"{split}/{path}" for path in paths]
    write_lines(tmp_path / f"{split}.txt", *(f"{path} {sorted(COUNTS).index(path.split('/')[1])}"
                                             for path in found[split][::-1]))
  return dict(root=str(tmp_path), train_list=str(tmp_path / "train.txt"), test_list=str(tmp_path / "test.txt")), found


def test_lists_in_their_own_order(tmp_path, lists):
  arguments, paths = lists
  dataset = photos.split_list(**arguments)
  check_parts(dataset, tmp_path)
  assert names(dataset.train) == [f"{tmp_path}/{path}" for path in paths["train"][::-1]]
  assert names(dataset.test) == [f"{tmp_path}/{path}" for path in paths["test"][::-1]]
  assert dataset.held_out is None and dataset.class_counts.tolist() == [1, 10, 5]


def test_a_list_is_held_out_unless_a_fraction_is(tmp_path, lists):
  arguments, paths = lists
  dataset = photos.split_list(**arguments, val_list=str(tmp_path / "val.txt"))
  check_parts(dataset, tmp_path)
  assert names(dataset.held_out) == [f"{tmp_path}/{path}" for path in paths["val"][::-1]]
  dataset = photos.split_list(**arguments, val_list=str(tmp_path / "val.txt"), holdout=0.2)
  check_parts(dataset, tmp_path)
  assert dataset.held_out_counts.tolist() == [0, 2, 1] and dataset.class_counts.tolist() == [1, 8, 4]


def test_class_names_come_from_a_file_or_the_folders_or_are_the_labels(tmp_path, lists):
  arguments, _ = lists
  assert photos.split_list(**arguments).class_names == ("bee", "cat", "dog")
  given = write_lines(tmp_path / "names.txt", "Biene", "Katze", "Hund")
  assert photos.split_list(**arguments, class_names=given).class_names == ("Biene", "Katze", "Hund")
  flat = write_lines(tmp_path / "flat.txt", "all/1.jpg 0", "all/2.jpg 1", "all/3.jpg 2")
  assert photos.split_list(**arguments | dict(train_list=flat)).class_names == ("0", "1", "2")
  mixed = write_lines(tmp_path / "mixed.txt", "a/1.jpg 0", "b/2.jpg 1", "c/3.jpg 2", "a/4.jpg 2")
  assert photos.split_list(**arguments | dict(train_list=mixed)).class_names == ("0", "1", "2")


@pytest.mark.parametrize(("train", "test", "class_names", "message"), [
  (("a 0", "b 2"), ("c 0",), (), r"train\.txt: class 1 has no training image, although labels go to 2"),
  (("a 1", "b 2147483646"), ("c 0",), (), r"train\.txt: class 0 has no training image, nor have 2147483644 others"),
  (("a 0", "b 1"), ("c 0",), ("x", "y", "z"), r"train\.txt: class 2 \('z'\) has no training image"),
  (("a 0", "b 2"), ("c 0",), ("x", "y"), r"train\.txt:2: label 2 is out of range, expected 0 to 1"),
  (("a 0", "b 1"), ("c 0", "d 2"), (), r"test\.txt:2: label 2 is not in .*train\.txt, .* 0 to 1; a class needs train"),
  (("a 0", "b 1"), ("c 2",), ("x", "y"), r"test\.txt:1: label 2 is out of range"),
  (("a 0", "b 1"), ("c 0", "./a 1"), (), r"test\.txt: 'a' is in .*train\.txt too; what is trained on"),
])
def test_faults_in_lists_are_named(tmp_path, train, test, class_names, message):
  arguments = dict(root=str(tmp_path), train_list=write_lines(tmp_path / "train.txt", *train),
                   test_list=write_lines(tmp_path / "test.txt", *test))
  if class_names:
    arguments["class_names"] = write_lines(tmp_path / "names.txt", *class_names)
  with pytest.raises(DataError, match=message):
    photos.split_list(**arguments)


@pytest.mark.parametrize(("first", "second", "does"), [
    ("val", "test", "chosen on cannot be tested on"), ("train", "val", "trained on cannot be chosen on"),
    ("train", "test", "trained on cannot be tested on")])
def test_the_same_images_in_two_roles_are_refused_by_what_the_lists_hold(tmp_path, lists, first, second, does):
  arguments, paths = lists
  text = "".join(f"./{line}\n" for line in (tmp_path / f"{first}.txt").read_text().splitlines()[:2])
  (tmp_path / f"{second}.txt").write_text(text)
  message = rf"{second}\.txt: '{first}/.*' is in .*{first}\.txt too, and 1 more are; what is {does}"
  with pytest.raises(DataError, match=message):
    photos.split_list(**arguments, val_list=str(tmp_path / "val.txt"))


def test_one_list_in_two_roles_is_refused(lists):
  arguments, _ = lists
  with pytest.raises(DataError, match="what is chosen on cannot be tested on"):
    photos.split_list(**arguments, val_list=arguments["test_list"])
  assert photos.split_list(**arguments, val_list=arguments["test_list"], holdout=0.2).held_out_counts.sum() == 3


# -- the field's data sets --------------------------------------------------------------------------------------------


def official_lists(folder, name, path, packed=False):
  """Lists of the official names with a line a class, two in the training set."""
  known = OFFICIAL[name]
  for role, official in known.lists.items():
    lines = [f"{path(role, c, k)} {c}" for c in range(known.classes) for k in range(2 if role == "train" else 1)]
    data = ("\n".join(lines) + "\n").encode()
    (folder / f"{official.name}.txt{'.xz' if packed else ''}").write_bytes(lzma.compress(data) if packed else data)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", OFFICIAL)
def test_official_lists_by_their_names(tmp_path, name, packed):
  official_lists(tmp_path, name, lambda role, c, k: f"{role}/n{c:04d}/{k}.jpg", packed)
  dataset = getattr(photos, name)(root="/", lists=str(tmp_path))
  classes = OFFICIAL[name].classes
  assert dataset.class_names == tuple(f"n{c:04d}" for c in range(classes))
  assert dataset.class_counts.tolist() == [2] * classes and len(dataset.test[1]) == classes
  assert (dataset.held_out is None) == (name == "inat2018")
  assert names(dataset.train)[-1] == f"/train/n{classes - 1:04d}/1.jpg"
  assert dataset.mean == ((0.466, 0.471, 0.380) if name == "inat2018" else (0.485, 0.456, 0.406))


def test_official_lists_know_their_classes(tmp_path):
  official_lists(tmp_path, "places_lt", lambda role, c, k: f"{role}/{c}/{k}.jpg")
  (tmp_path / "Places_LT_val.txt").unlink()  # nothing is held out without it
  assert photos.places_lt(root="/", lists=str(tmp_path)).held_out is None
  with open(tmp_path / "Places_LT_test.txt", "a") as file:
    file.write("x.jpg 365\n")
  with pytest.raises(DataError, match=r"Places_LT_test\.txt:366: label 365 is out of range, expected 0 to 364"):
    photos.places_lt(root="/", lists=str(tmp_path))
  (tmp_path / "Places_LT_train.txt").unlink()
  with pytest.raises(DataError, match=r"dataset\.lists: no Places_LT_train\.txt or .*\.xz in .* 62,500 lines .*726c"):
    photos.places_lt(root="/", lists=str(tmp_path))
  with pytest.raises(DataError, match=r"dataset\.lists: empty"):
    photos.imagenet_lt(root="/", lists="")


@pytest.fixture
def real_lists():
  if not os.environ.get("LTJAX_SPLITS_DIR"):
    pytest.skip("LTJAX_SPLITS_DIR names no folder with the official lists")
  return os.environ["LTJAX_SPLITS_DIR"]


@pytest.mark.full_data
def test_the_real_lists_of_places_lt(real_lists):
  from ltjax.commands import verify

  dataset = photos.places_lt(root="/", lists=real_lists)
  assert dataset.class_names[:2] == ("airfield", "airplane_cabin") and len(set(dataset.class_names)) == 365
  assert verify.official_faults("places_lt", dict(lists=real_lists), dataset) == []
  for stem in ("Places_LT_256", "Places_LT"):
    parts = {split: tables.split_list(f"{real_lists}/{stem}_{split}.txt.xz", "x") for split in ("train", "test")}
    np.testing.assert_array_equal(parts["train"].labels, dataset.train[1])
