import os

import numpy as np
import pytest
from etils import epath

from ltjax.data import listing, tables
from ltjax.data.cache import load_arrays, store_arrays
from ltjax.errors import DataError
from tests.photographs import write_tree

# -- folders ----------------------------------------------------------------------------------------------------------


def test_class_folders_sorted_at_any_depth_without_what_is_no_image(tmp_path):
  write_tree(tmp_path, {"zebra": 2, "Ant": 1, "bee/deep/er": 2})
  for name in (".hidden/a.jpg", "zebra/.a.jpg", "zebra/notes.txt", "README.jpg.txt", "top.jpg", "Ant/B.WebP"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
  found, names = listing.class_folders(epath.Path(tmp_path), "root")
  assert names == ("Ant", "bee", "zebra")
  assert found.paths == ["Ant/000.jpg", "Ant/B.WebP", "bee/deep/er/000.jpg", "bee/deep/er/001.jpg", "zebra/000.jpg",
                         "zebra/001.jpg"]
  assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_links_to_classes_and_images_are_followed_but_no_others(tmp_path):
  write_tree(tmp_path / "real", {"cat": 2, "dog": 1})
  (tmp_path / "root" / "ant").mkdir(parents=True)
  (tmp_path / "root" / "cat").symlink_to(tmp_path / "real" / "cat")
  (tmp_path / "root" / "ant" / "1.jpg").symlink_to(tmp_path / "real" / "dog" / "000.jpg")
  found, names = listing.class_folders(epath.Path(tmp_path / "root"), "root")
  assert names == ("ant", "cat") and found.paths == ["ant/1.jpg", "cat/000.jpg", "cat/001.jpg"]
  (tmp_path / "root" / "ant" / "loop").symlink_to(tmp_path / "root")
  with pytest.raises(DataError, match="ant/loop: a linked folder inside a class folder"):
    listing.class_folders(epath.Path(tmp_path / "root"), "root")


def test_empty_classes_are_all_named(tmp_path):
  write_tree(tmp_path, {"cat": 1, **{f"empty {k}": 0 for k in range(7)}})
  (tmp_path / "empty 0" / "drawing.svg").write_bytes(b"x")
  with pytest.raises(DataError, match=r"no image in the folder of class 'empty 0', .*'empty 4' and 2 more of .*\.webp"):
    listing.class_folders(epath.Path(tmp_path), "root")
  with pytest.raises(DataError, match=r"dataset\.root: no folder in .*cat, expected one for each class"):
    listing.class_folders(epath.Path(tmp_path / "cat"), "root")


def test_what_stands_in_place_of_a_folder_is_named(tmp_path):
  (tmp_path / "images.zip").write_bytes(b"PK")
  (tmp_path / "images.tar.gz").write_bytes(b"x")
  (tmp_path / "notes").write_bytes(b"x")
  for path, message in (("", "empty; .*--config.dataset.root=DIR"), ("nowhere", "no folder '.*nowhere'"),
                        ("images.zip", "is an archive; unpack it"), ("images.tar.gz", "is an archive; unpack it"),
                        ("notes", "is a file, expected a folder")):
    with pytest.raises(DataError, match=rf"dataset\.root: .*{message}"):
      listing.existing_folder(str(tmp_path / path) if path else "", "root")
  assert listing.existing_folder(str(tmp_path), "root") == epath.Path(tmp_path)


def translated(tmp_path):
  """epath with gs:// in `tmp_path`, and no question about single files, of which gs:// would make a request each."""
  def local(path):
    return os.fspath(path).replace("gs://", f"{tmp_path}/")

  def remote(path):
    return path.replace(f"{tmp_path}/", "gs://")

  return epath.testing.mock_epath(
      isdir=lambda real, path: real(local(path)), exists=lambda real, path: real(local(path)),
      open=lambda real, path, mode: real(local(path), mode),
      listdir=lambda real, path: real(local(path)), glob=lambda real, path: map(remote, real(local(path))),
      walk=lambda *_, **__: pytest.fail("walked"), stat=lambda *_: pytest.fail("asked about one file"))


def test_class_folders_of_a_bucket(tmp_path, monkeypatch):
  monkeypatch.setattr(epath.gpath, "_is_tf_installed", lambda: False)  # which would be asked before the stand-in
  write_tree(tmp_path / "bucket" / "root", {"zebra": 2, "ant": 1})
  (tmp_path / "bucket" / "root" / "notes.jpg").write_bytes(b"x")
  with translated(tmp_path):
    root = listing.existing_folder("gs://bucket/root", "root")
    found, names = listing.class_folders(root, "root")
    assert listing.has_images(root / "ant")
  assert names == ("ant", "zebra") and found.paths == ["ant/000.jpg", "zebra/000.jpg", "zebra/001.jpg"]
  assert found.labels.tolist() == [0, 1, 1]


def test_a_bucket_that_cannot_be_reached_is_named(monkeypatch):
  def offline(real, path):
    raise RuntimeError("no route\nto host")

  monkeypatch.setattr(epath.gpath, "_is_tf_installed", lambda: False)
  with epath.testing.mock_epath(exists=offline):
    for read in (listing.existing_folder, tables.read_bytes):
      with pytest.raises(DataError, match=r"dataset\.root: gs://bucket/x cannot be reached \(no route\)"):
        read("gs://bucket/x", "root")


# -- the cache --------------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path):
  """A tree whose folders are a day old, and its listing in a cache."""
  write_tree(tmp_path / "root", {"cat": 2, "dog/deep": 1})
  for folder, _, _ in os.walk(tmp_path / "root"):
    os.utime(folder, (1, 1))
  found, names = listing.class_folders(epath.Path(tmp_path / "root"), "root", tmp_path / "cache")
  return tmp_path, found, names


def test_a_listing_is_kept_outside_the_data_and_used_again(kept, monkeypatch):
  tmp_path, found, names = kept
  assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npz"]
  monkeypatch.setattr(os, "walk", lambda *_, **__: pytest.fail("walked"))
  again, same = listing.class_folders(epath.Path(tmp_path / "root"), "root", tmp_path / "cache")
  assert same == names and again.paths == found.paths
  np.testing.assert_array_equal(again.labels, found.labels)


@pytest.mark.parametrize("change", ["cat/new.jpg", "dog/deep/new.jpg", "eel/new.jpg"])
def test_a_changed_folder_is_listed_again(kept, change):
  tmp_path, found, _ = kept
  (tmp_path / "root" / change).parent.mkdir(exist_ok=True)
  (tmp_path / "root" / change).write_bytes(b"x")
  again, _ = listing.class_folders(epath.Path(tmp_path / "root"), "root", tmp_path / "cache")
  assert set(again.paths) - set(found.paths) == {change}


@pytest.mark.parametrize("damage", [b"", b"PK\3\4", "cut", "pickle"])
def test_a_damaged_cache_is_no_cache(kept, damage, tmp_path):
  _, found, _ = kept
  (path,) = (tmp_path / "cache").iterdir()
  data = path.read_bytes()
  if damage == "pickle":
    np.savez(path, paths=np.array([print], object))
  else:
    path.write_bytes(data[: len(data) // 2] if damage == "cut" else damage)
  again, _ = listing.class_folders(epath.Path(tmp_path / "root"), "root", tmp_path / "cache")
  assert again.paths == found.paths and path.read_bytes() == data


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
  write_tree(tmp_path / "root", {"cat": 1})
  (tmp_path / "file").write_bytes(b"")
  found, _ = listing.class_folders(epath.Path(tmp_path / "root"), "root", tmp_path / "file" / "cache")
  assert found.paths == ["cat/000.jpg"]


def test_any_file_name_survives_the_cache(tmp_path):
  names = ["a\nb", "é", os.fsdecode(b"\xff\xfe"), " "]
  store_arrays(tmp_path / "x.npz", names=names, labels=np.arange(4))
  found = load_arrays(tmp_path / "x.npz", "names", "labels")
  assert found["names"] == names and found["labels"].tolist() == [0, 1, 2, 3]
