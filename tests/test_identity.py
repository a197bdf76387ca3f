import json
import os
import shutil

import numpy as np
import pytest

from ltjax.data import photos, sources
from ltjax.workdir import identity
from tests.photographs import jpeg, write_lines, write_tree

COUNTS = dict(apple=8, fig=6, pear=5)


@pytest.fixture
def tree(tmp_path):
  write_tree(tmp_path / "d/train", COUNTS)
  write_tree(tmp_path / "d/test", dict(apple=2, fig=2, pear=2), first=100)
  return tmp_path / "d"


def described(root) -> dict:
  """As it is read from a file."""
  return json.loads(json.dumps(identity.describe(photos.folder(root=str(root)))))


def test_an_identity_is_small_json_and_equal_to_itself(tree):
  found = described(tree)
  assert found["class_names"] == list(COUNTS) and found["class_counts"] == list(COUNTS.values())
  assert found["fingerprint"] == photos.folder(root=str(tree)).fingerprint
  assert len(json.dumps(found)) < 1500
  assert identity.differences(found, described(tree)) == []


def test_the_location_and_spelling_of_the_path_do_not_matter(tree, tmp_path):
  before = described(tree)
  assert identity.differences(before, described(f"{tree}/../d/")) == []
  (tmp_path / "link").symlink_to(tree)
  assert identity.differences(before, described(tmp_path / "link")) == []
  shutil.move(tree, tmp_path / "elsewhere")
  assert identity.differences(before, described(tmp_path / "elsewhere")) == []
  for folder, _, files in os.walk(tmp_path / "elsewhere"):
    for name in files:
      os.utime(os.path.join(folder, name), (1, 1))
  assert identity.differences(before, described(tmp_path / "elsewhere")) == []


def test_removed_and_added_images_are_counted_and_named(tree):
  before = described(tree)
  for k in range(4):
    (tree / f"train/apple/00{k}.jpg").unlink()
  (tree / "train/fig/new.jpg").write_bytes(jpeg(7))
  (tree / "test/pear/new.jpg").write_bytes(jpeg(8))
  assert identity.differences(before, described(tree)) == [
      "4 training images are removed: 'apple/000.jpg', 'apple/001.jpg', 'apple/002.jpg' and 1 more",
      "1 training image is added: 'fig/new.jpg'", "1 test image is added: 'pear/new.jpg'"]


def test_a_renamed_class_is_named_by_both_names(tree):
  before = described(tree)
  for split in ("train", "test"):
    (tree / split / "apple").rename(tree / split / "quince")
  assert identity.differences(before, described(tree)) == [
      "class 'apple' is now called 'quince'",
      "the classes are in another order: class 0 was 'quince' and is 'fig'",
      "the training images are in another order: image 0 was 'quince/000.jpg' and is 'fig/000.jpg'",
      "the test images are in another order: image 0 was 'quince/000.jpg' and is 'fig/000.jpg'"]
  for split in ("train", "test"):
    (tree / split / "quince").rename(tree / split / "apples")  # which sorts as before
  assert identity.differences(before, described(tree)) == ["class 'apple' is now called 'apples'"]


def test_a_class_is_recognised_although_its_name_changes_the_split(tmp_path):
  write_tree(tmp_path, dict(apple=8, fig=6, pear=5))
  before = described(tmp_path)
  (tmp_path / "apple").rename(tmp_path / "quince")
  first, *rest = identity.differences(before, described(tmp_path))
  assert first == "class 'apple' is now called 'quince'" and not any("removed" in line for line in rest)


def test_swapped_class_folders_are_noticed_by_the_lengths(tree):
  before = described(tree)
  for one, other in (("apple", "x"), ("fig", "apple"), ("x", "fig")):
    (tree / "train" / one).rename(tree / "train" / other)
  lines = identity.differences(before, described(tree))
  assert "2 training images are removed: 'apple/006.jpg', 'apple/007.jpg'" in lines
  assert any("training images are replaced by other bytes: 'apple/000.jpg'" in line for line in lines)


def test_classes_that_are_gone_and_new(tree):
  before = described(tree)
  for split in ("train", "test"):
    shutil.rmtree(tree / split / "fig")
  write_tree(tree / "train", dict(kiwi=3, lime=2), first=500)
  lines = identity.differences(before, described(tree))
  assert lines[:2] == ["1 class is gone: 'fig'", "2 classes are new: 'kiwi', 'lime'"]


def test_another_class_of_the_same_image_in_a_table(tmp_path):
  paths = write_tree(tmp_path, COUNTS)
  rows = [f"{path},{path.split('/')[0]}" for path in paths]
  table = dict(root=str(tmp_path), train_csv=write_lines(tmp_path / "a.csv", *rows))
  before = identity.describe(photos.csv(**table, subset_seed=1))
  rows[0] = f"{paths[0]},fig"
  write_lines(tmp_path / "a.csv", *rows)
  lines = identity.differences(before, identity.describe(photos.csv(**table, subset_seed=1)))
  assert any("of another class: 'apple/000.jpg'; the first was 'apple' and is 'fig'" in line for line in lines)


def test_another_split_of_the_same_images_is_noticed(tmp_path):
  write_tree(tmp_path, COUNTS)
  found = [identity.describe(photos.folder(root=str(tmp_path), subset_seed=seed, holdout=holdout))
           for seed, holdout in ((0, 0.0), (1, 0.0), (0, 0.2))]
  (line,) = identity.differences(found[0], found[1])
  assert "images are in another set" in line and "was a training image and is a test image" in line
  assert "the held-out set of 3 images is new" in identity.differences(found[0], found[2])
  assert "the held-out set of 3 images is gone" in identity.differences(found[2], found[0])


def test_an_image_removed_before_a_split_is_distinguished_from_those_that_change_sides(tmp_path):
  write_tree(tmp_path, COUNTS)
  before = described(tmp_path)
  (tmp_path / "apple/000.jpg").unlink()
  removed, moved = identity.differences(before, described(tmp_path))
  assert removed in ("1 training image is removed: 'apple/000.jpg'", "1 test image is removed: 'apple/000.jpg'")
  assert "in another set, because a set that is drawn from the images changes" in moved


def test_other_bytes_of_the_same_length_go_unnoticed_as_documented(tree):
  before, path = described(tree), tree / "train/apple/000.jpg"
  path.write_bytes(path.read_bytes()[:-10] + bytes(10))
  assert identity.differences(before, described(tree)) == []
  path.write_bytes(path.read_bytes() + b"\0")
  assert identity.differences(before, described(tree)) == [
      "1 training image is replaced by other bytes: 'apple/000.jpg'"]


def test_every_byte_of_arrays_counts():
  def made(pixel=0, label=1, names=("a", "b")):
    images = np.arange(48, dtype=np.uint8).reshape(4, 2, 2, 3)
    images[1, 0, 0, 0] += pixel
    labels = np.array([0, 0, label, 1])
    part = images, labels
    return sources.Dataset(part, part, np.array([7, 3, 9, 4]), names, (0.5,), (0.5,))

  before = identity.describe(made())
  assert identity.differences(before, identity.describe(made())) == []
  for changed in (made(pixel=1), made(label=0)):
    (line,) = identity.differences(before, identity.describe(changed))
    assert line == "the images or their order differ: 4 training images then, 4 now"
  assert identity.differences(before, identity.describe(made(names=("a", "c"))))[:2] == [
      "1 class is gone: 'b'", "1 class is new: 'c'"]


@pytest.mark.parametrize("name", ["a\tb", "a\nb", "a\\tb", os.fsdecode(b"k\xe4fer"), "翘头剪", "a\\"])
def test_any_name_of_a_class_or_an_image(tmp_path, name):
  write_tree(tmp_path / "train", {name: 4, "z": 3})
  write_tree(tmp_path / "test", {"z": 1}, first=50)
  (tmp_path / "train" / name / f"{name}.jpg").write_bytes(jpeg(99))
  before = described(tmp_path)
  assert set(before["class_names"]) == {name, "z"} and identity.differences(before, described(tmp_path)) == []
  (tmp_path / "train" / name / f"{name}.jpg").unlink()
  (line,) = identity.differences(before, described(tmp_path))
  assert line.startswith("1 training image is removed: ") and len(line.splitlines()) == 1
  before = described(tmp_path)
  (tmp_path / "train" / name).rename(tmp_path / "train" / "new")
  assert identity.differences(before, described(tmp_path))[0] == f"class {name!r} is now called 'new'"


def test_the_order_of_a_list_counts(tmp_path):
  paths = write_tree(tmp_path, COUNTS)
  lines = [f"{path} {list(COUNTS).index(path.split('/')[0])}" for path in paths]
  test = write_lines(tmp_path / "test.txt", "x.jpg 0")

  def read(lines):
    return identity.describe(photos.split_list(root=str(tmp_path), test_list=test, train_list=write_lines(
        tmp_path / "train.txt", *lines)))

  assert identity.differences(read(lines), read(lines[1:] + lines[:1])) == [
      "the training images are in another order: image 0 was 'apple/000.jpg' and is 'apple/001.jpg'"]
