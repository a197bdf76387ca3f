import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from ltjax.commands import verify
from ltjax.data import files
from ltjax.data.official import OFFICIAL, Official, SplitList, is_official
from tests.photographs import jpeg, write_lines, write_tree

ROOT = Path(__file__).parents[2]
COUNTS = dict(bee=2, cat=120, dog=30)


def config(**dataset):
  return ConfigDict(dict(dataset=dataset))


@pytest.fixture
def tree(tmp_path):
  """A data set without a fault."""
  write_tree(tmp_path / "root" / "train", COUNTS)
  write_tree(tmp_path / "root" / "test", dict(bee=2, cat=2, dog=2), first=1000)
  return tmp_path / "root"


@pytest.mark.parametrize("decode", [False, True])
def test_all_is_well(tree, tmp_path, capsys, decode):
  assert verify.verify(config(name="folder", root=str(tree), pipeline="tf_data"), tmp_path / "out", decode) == []
  lines = {line[:20].strip(): line[20:].split() for line in capsys.readouterr().out.splitlines() if line}
  assert lines["images"] == ["152", "6"] and lines["classes"] == ["3", "3"]
  assert lines["largest class"] == ["120", "2"] and lines["smallest class"] == ["2", "2"]
  assert lines["imbalance"] == ["60", "1"] and lines["with a fault"] == ["0", "0"]
  assert lines["many / medium / few"] == ["1", "/", "1", "/", "1"]
  assert [lines[name] for name in COUNTS] == [["2", "2"], ["120", "2"], ["30", "2"]]
  with open(tmp_path / "out" / "class_counts.csv", newline="") as file:
    assert list(csv.reader(file)) == [["label", "class", "training", "test"], ["0", "bee", "2", "2"],
                                      ["1", "cat", "120", "2"], ["2", "dog", "30", "2"]]
  with Image.open(tmp_path / "out" / "long_tail.png") as picture:
    assert picture.size == (900, 504) and np.asarray(picture.convert("L")).std() > 10


def test_many_classes_show_the_largest_and_the_smallest(tmp_path, capsys):
  lists = {key: write_lines(tmp_path / f"{key}.txt", *(f"{key}/{c}/{k} {c}" for c in range(50) for k in range(51 - c)))
           for key in ("train", "test")}
  verify.verify(config(name="split_list", root=str(tmp_path), train_list=lists["train"], test_list=lists["test"]),
                tmp_path / "out")
  shown = [line.split()[0] for line in capsys.readouterr().out.split("class  ")[-1].splitlines()[1:22]]
  assert shown == [*map(str, range(10)), "...", *map(str, range(40, 50))]


def faults(tree, tmp_path, decode=False):
  return verify.verify(config(name="folder", root=str(tree)), tmp_path / "out", decode)


FAULTS = dict(
    missing=(lambda path: (path.unlink(), path.symlink_to("/nowhere")), "No such file or directory"),
    empty=(lambda path: path.write_bytes(b""), "empty file"),
    page=(lambda path: path.write_bytes(b"<!DOCTYPE html>"), "not an image: it starts with b'<!DOCTYPE ht', expected"),
    too_short=(lambda path: path.write_bytes(b"\xff"), r"not an image: it starts with b'\xff'"))


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_an_unreadable_image_is_named(tree, tmp_path, capsys, split, fault, decode):
  path = tree / split / "cat" / "001.jpg"
  FAULTS[fault][0](path)
  (line,) = faults(tree, tmp_path, decode)
  assert line.startswith(f"{path}: ") and FAULTS[fault][1] in line
  row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("with a fault"))
  assert row.split()[3:] == (["1", "0"] if split == "train" else ["0", "1"])


def test_a_file_that_may_not_be_read_is_named(tree, tmp_path, monkeypatch):
  path, real = tree / "train" / "dog" / "003.jpg", open

  def refused(name, *args, **kwargs):
    if name == str(path):
      raise PermissionError(13, "Permission denied", name)
    return real(name, *args, **kwargs)

  monkeypatch.setattr(files, "open", refused, raising=False)
  assert faults(tree, tmp_path) == [f"{path}: Permission denied"]


def test_only_decoding_finds_cut_off_or_damaged_images(tree, tmp_path):
  cut = tree / "train" / "dog" / "003.jpg"
  cut.write_bytes(jpeg(3, size=64)[:-300])
  assert faults(tree, tmp_path) == []
  (line,) = faults(tree, tmp_path, decode=True)
  assert line.startswith(f"{cut}: cannot be decoded (") and "truncated" in line


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "WEBP", "JPEG"])
def test_every_kind_of_image_is_known(tree, tmp_path, kind):
  data = io.BytesIO()
  Image.new("RGB", (8, 8), (1, 2, 3)).save(data, kind)
  (tree / "train" / "dog" / "003.jpg").write_bytes(data.getvalue())
  assert faults(tree, tmp_path, decode=True) == []


@pytest.mark.parametrize("size", [8, 200])
def test_the_same_image_in_two_splits_is_named(tree, tmp_path, size):
  """Also for files that are read only in part: equal beginnings are not enough."""
  data = jpeg(5000, size)
  assert (len(data) > verify._HEAD) == (size == 200)
  inside, other = tree / "train" / "dog" / "003.jpg", tree / "test" / "bee" / "001.jpg"
  for path in (inside, other, tree / "train" / "dog" / "004.jpg"):  # twice in one split is not a fault
    path.write_bytes(data)
  (line,) = faults(tree, tmp_path)
  assert line == f"{other}: the test set has the same image as the training set, {inside}"
  other.write_bytes(data[:-1] + b"\0")  # of the same length
  assert faults(tree, tmp_path) == []


def test_a_refusal_of_the_source_is_one_line(tree, tmp_path):
  (tree / "train" / "eel").mkdir()
  (line,) = faults(tree, tmp_path)
  assert "no image in the folder of class 'eel'" in line


def test_arrays_are_checked_too(tmp_path, capsys):
  block = dict(name="digits", imbalance=10.0, profile="exponential", subset_seed=0, holdout=0.2)
  assert verify.verify(config(**block), tmp_path / "out") == []
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].startswith("10 classes, ") and lines[2].split() == ["training", "held-out", "test"]


# -- official data sets -----------------------------------------------------------------------------------------------


def test_digests_of_lists():
  known = SplitList("x", 1, ("557db03de997c86a4a028e1ebd3a1ceb225be238",))  # git hash-object of "Hello World\n"
  assert is_official(b"Hello World\n", known) and not is_official(b"Hello World\r\n", known)
  known = SplitList("x", 1, ("d2a84f4b8b650937ec8f73cd8be2c74add5a911ba64df27458ed8229da804a26",))  # sha256sum
  assert is_official(b"Hello World\n", known) and not is_official(b"Hello World", known)


def test_official_totals_are_those_of_the_papers():
  totals = {name: tuple(part.lines for part in known.lists.values()) for name, known in OFFICIAL.items()}
  assert totals == dict(imagenet_lt=(115_846, 20_000, 50_000), places_lt=(62_500, 7_300, 36_500),
                        inat2018=(437_513, 24_426))
  for known in OFFICIAL.values():
    assert known.groups is None or sum(known.groups.values()) == known.classes
    assert all(len(digest) in (40, 64) for part in known.lists.values() for digest in part.digests)


@pytest.fixture
def official(tmp_path, monkeypatch):
  """A data set that is official here: three classes, lists of the digests written down beforehand."""
  import hashlib

  lists = {}
  for role, split, counts in (("train", "train", (120, 30, 2)), ("held_out", "val", (1, 1, 1)),
                              ("test", "test", (2, 2, 2))):
    paths = write_tree(tmp_path / "root" / split, dict(zip("abc", counts, strict=True)), first=1000 * len(lists))
    write_lines(tmp_path / f"tiny_{split}.txt", *(f"{split}/{path} {'abc'.index(path[0])}" for path in paths))
    digest = hashlib.sha256((tmp_path / f"tiny_{split}.txt").read_bytes()).hexdigest()
    lists[role] = SplitList(f"tiny_{split}", len(paths), (digest,))
  monkeypatch.setitem(OFFICIAL, "imagenet_lt", Official(3, lists, 120, 2, dict(many=1, medium=1, few=1)))
  return dict(name="imagenet_lt", root=str(tmp_path / "root"), lists=str(tmp_path))


@pytest.mark.parametrize("holdout", [0.0, 0.2])
def test_an_official_data_set_is_as_published(official, tmp_path, holdout):
  assert verify.verify(config(**official, holdout=holdout), tmp_path / "out") == []


def test_differences_from_an_official_data_set_are_named(official, tmp_path):
  path = tmp_path / "tiny_train.txt"
  path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
  wrong = verify.verify(config(**official), tmp_path / "out")
  assert wrong[0] == "imagenet_lt: 151 training images, the official number is 152"
  assert wrong[1] == "imagenet_lt: 1 training images of the smallest class, the official number is 2"
  assert wrong[2].startswith(f"{path}: not the official list, whose digest is ") and len(wrong) == 3
  path.write_text("".join(f"train/a/{k:03d}.jpg 0\n" for k in range(100)) + "train/b/000.jpg 1\ntrain/c/000.jpg 2\n")
  wrong = verify.verify(config(**official), tmp_path / "out")
  assert "imagenet_lt: many / medium / few are 0 / 1 / 2 classes, officially 1 / 1 / 1" in wrong


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_and_its_exit_codes(tree, tmp_path):
  write_lines(tmp_path / "photos.py", "from ltjax import recipes", "", "def get_config():",
              "  return recipes.folder(root='', augment={}, backbone={})")

  def run(*arguments):
    command = [sys.executable, "-m", "ltjax", "verify", f"--config={tmp_path / 'photos.py'}",
               f"--out={tmp_path / 'out'}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300,
                          env=os.environ | dict(JAX_PLATFORMS="cpu"))

  well = run(f"--config.dataset.root={tree}", "--decode")
  assert well.returncode == 0 and well.stdout.endswith("all is well\n"), well.stderr
  for name in ("003.jpg", "004.jpg"):
    (tree / "train" / "dog" / name).write_bytes(b"")
  wrong = run(f"--config.dataset.root={tree}", "--shown=1")
  assert wrong.returncode == 1 and "wrong: ... and 1 more; --shown=2 lists all" in wrong.stderr
  assert f"wrong: {tree}/train/dog/003.jpg: empty file" in wrong.stderr and "Traceback" not in wrong.stderr
  misspelt = run("--config.dataset.rot=x")
  assert misspelt.returncode == 2 and "did you mean 'root'?" in misspelt.stderr
