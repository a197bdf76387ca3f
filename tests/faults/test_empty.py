"""F15: data that are not there, are empty or too few, or are listed twice: one error in seconds, nothing written."""


import pytest
from ml_collections import ConfigDict

from ltjax import recipes
from ltjax.errors import LtjaxError
from tests import photographs, tiny


def lists(root, train="a/000.jpg 0\nb/000.jpg 1\n", test="a/001.jpg 0\n", **more) -> dict:
  photographs.write_tree(root, dict(a=3, b=3))
  for name, text in (("train", train), ("test", test)):
    if text is not None:
      (root / f"{name}.txt").write_text(text)
  return dict(dict(name="split_list", root=str(root), train_list=str(root / "train.txt"),
                   test_list=str(root / "test.txt")), **more)


def table(root, text: str) -> dict:
  photographs.write_tree(root, dict(a=3, b=3))
  (root / "train.csv").write_text(text)
  return dict(name="csv", root=str(root), train_csv=str(root / "train.csv"))


def folder(root, **counts) -> dict:
  root.mkdir()
  photographs.write_tree(root, counts)
  return dict(name="folder", root=str(root))


def file(root) -> dict:
  root.write_bytes(b"x")
  return dict(name="folder", root=str(root))


CASES = {  # the data set, and the message about it
    "no root": (lambda root: dict(name="folder", root=""), "dataset.root: empty; say where the images are"),
    "root is not there": (lambda root: dict(name="folder", root=str(root)), "dataset.root: no folder"),
    "root is a file": (file, "is a file, expected a folder"),
    "empty root": (folder, "dataset.root: no folder in .*, expected one for each class"),
    "empty classes": (lambda root: folder(root, a=0, b=0), "no image in the folder of class 'a', 'b'"),
    "one image a class": (lambda root: folder(root, a=1, b=1), "no class has the two images"),
    "fewer images than a batch": (lambda root: folder(root, a=3, b=3), "only.batch_size: 8 does not fit 4 training"),
    "no list": (lambda root: lists(root, train=None), "dataset.train_list: no file"),
    "no list of tests": (lambda root: lists(root, test=None), "dataset.test_list: no file"),
    "list not named": (lambda root: lists(root, train_list=""), "dataset.train_list: empty"),
    "list is a folder": (lambda root: lists(root, train_list=str(root)), "dataset.train_list: no file"),
    "root of lists": (lambda root: lists(root) | dict(root=str(root / "y")), "dataset.root: no folder"),
    "empty list": (lambda root: lists(root, train=""), "train.txt: no image is listed"),
    "list of blanks": (lambda root: lists(root, train="\n\n"), "train.txt: no image is listed"),
    "empty list of tests": (lambda root: lists(root, test=""), "test.txt: no image is listed"),
    "empty line": (lambda root: lists(root, train="a/000.jpg 0\n\nb/000.jpg 1\n"), "train.txt:2: blank line"),
    "line of a path": (lambda root: lists(root, train="a/000.jpg\n"), "train.txt:1: expected '<path> <label>'"),
    "twice": (lambda root: lists(root, train="a/000.jpg 0\nb/000.jpg 1\n./a/000.jpg 0\n"),
              "train.txt:3: './a/000.jpg' stands in line 1 already"),
    "trained and tested": (lambda root: lists(root, test="a/000.jpg 0\n"), "is in .*train.txt too"),
    "empty table": (lambda root: table(root, ""), "train.csv: no image is listed"),
    "heading alone": (lambda root: table(root, "path,class\n"), "train.csv: no image is listed"),
    "empty row": (lambda root: table(root, "a/000.jpg,a\n\nb/000.jpg,b\n"), "train.csv:2: blank line"),
    "row without a path": (lambda root: table(root, "path,class\n,a\n"), "train.csv:2: the path is missing"),
    "row without a class": (lambda root: table(root, "path,class\na/000.jpg,\n"), "train.csv:2: the class name is"),
    "flat test": (lambda root: folder(root, **{"train/a": 3, "train/b": 3, "test": 2}), "are in no class folder"),
    "empty test": (lambda root: folder(root, **{"train/a": 3, "train/b": 3, "test": 0}), "no folder in .*test"),
    "only hidden": (lambda root: folder(root, **{".a": 3, "__MACOSX": 3}), "no folder in .*, expected one for each"),
    "hidden in a class": (lambda root: folder(root, **{"a/.thumbs": 3, "b": 3}), "no image in the folder of class 'a'"),
    "twice in a table": (lambda root: table(root, "a/000.jpg,a\na/000.jpg,b\n"), "train.csv:2: .* line 1 already"),
    "no lists there": (lambda root: dict(name="places_lt", root="/usr", lists=str(root)), "dataset.lists: no folder"),
    "nothing of TFDS": (lambda root: dict(name="inat2018", tfds_dir=str(root)), "TFDS has no prepared"),
}


@pytest.mark.parametrize("case", CASES)
def test_empty_data_are_one_error(case, tmp_path):
  make, message = CASES[case]
  config = recipes.folder(root="", augment=recipes.crop_flip(16),
                          backbone=recipes.resnet("resnet10"))
  config.dataset = ConfigDict(dict(make(tmp_path / "data"), pipeline="tf_data", on_bad_image="error"))
  config.stages = ("only",)
  config.only = recipes.stage(epochs=1, batch_size=8, lr=0.1, optimizer=recipes.sgd(0.0),
                              loss=dict(name="cross_entropy"))
  with pytest.raises(LtjaxError, match=message) as caught:
    tiny.run(config, tmp_path / "run")
  assert "\n" not in str(caught.value)
  assert not (tmp_path / "run").exists()
