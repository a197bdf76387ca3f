import os

import numpy as np
import pytest
from etils import epath

from ltjax.data import listing, tables
from ltjax.data.cache import load_arrays, store_arrays
from ltjax.errors import DataError
from tests.photographs import write_tree

# -- folders ----------------------------------------------------------------------------------------------------------


def test_class_folders_are_sorted_with_their_images_at_any_depth(tmp_path):
  write_tree(tmp_path, {"zebra": 2, "Ant": 1, "bee/deep/er": 2})
  for name in (".hidden/a.jpg", "zebra/.a.jpg", "zebra/notes.txt", "README.jpg.txt", "top.jpg", "Ant/B.WebP"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
  found, names = listing.class_folders(epath.Path(tmp_path), "root")
  assert names == ("Ant", "bee", "zebra")
  assert found.paths == ["Ant/000.jpg", "Ant/B.WebP", "bee/deep/er/000.jpg", "bee/deep/er/001.jpg", "zebra/000.jpg",
                         "zebra/001.jpg"]
  assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_only_links_to_classes_and_images_are_followed(tmp_path):
  write_tree(tmp_path / "real", {"cat": 2, "dog": 1})
  (tmp_path / "root" / "ant").mkdir(parents=True)
  (tmp_path / "root" / "cat").symlink_to(tmp_path / "real" / "cat")
  (tmp_path / "root" / "ant" / "1.jpg").symlink_to(tmp_path / "real" / "dog" / "000.jpg")
  found, names = listing.class_folders(epath.Path(tmp_path / "root"), "root")
  assert names == ("ant", "cat") and found.paths == ["ant/1.jpg", "cat/000.jpg", "cat/001.jpg"]
  (tmp_path / "root" / "ant" / "loop").symlink_to(tmp_path / "root")
  with pytest.raises(DataError, match="ant/loop: a linked folder below another folder"):
    listing.class_folders(epath.Path(tmp_path / "root"), "root")


def test_empty_classes_are_all_named(tmp_path):
  write_tree(tmp_path, {"cat": 1, **{f"empty {k}": 0 for k in range(7)}})
  (tmp_path / "empty 0" / "drawing.svg").write_bytes(b"x")
  with pytest.raises(DataError, match=r"no image in the folder of class 'empty 0', .*'empty 4' and 2 more of .*\.webp"):
    listing.class_folders(epath.Path(tmp_path), "root")
  with pytest.raises(DataError, match=r"dataset\.root: no folder in .*cat, expected one for each class"):
    listing.class_folders(epath.Path(tmp_path / "cat"), "root")


def test_a_file_instead_of_a_folder_is_named(tmp_path):
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
  monkeypatch.setattr(epath.gpath, "_is_tf_installed", lambda: False)  # which would take precedence over the stand-in
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


def test_a_listing_is_cached_outside_the_data_and_used_again(kept, monkeypatch):
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
def test_a_damaged_cache_is_ignored(kept, damage, tmp_path):
  _, found, _ = kept
  (path,) = (tmp_path / "cache").iterdir()
  data = path.read_bytes()
  if damage == "pickle":
    np.savez(path, paths=np.array([print], object))
  else:
    path.write_bytes(data[: len(data) // 2] if damage == "cut" else damage)
  again, _ = listing.class_folders(epath.Path(tmp_path / "root"), "root", tmp_path / "cache")
  assert again.paths == found.paths and path.read_bytes() == data


def test_a_cache_that_cannot_be_written_is_skipped(tmp_path):
  write_tree(tmp_path / "root", {"cat": 1})
  (tmp_path / "file").write_bytes(b"")
  found, _ = listing.class_folders(epath.Path(tmp_path / "root"), "root", tmp_path / "file" / "cache")
  assert found.paths == ["cat/000.jpg"]


def test_any_file_name_survives_the_cache(tmp_path):
  names = ["a\nb", "é", os.fsdecode(b"\xff\xfe"), " "]
  store_arrays(tmp_path / "x.npz", names=names, labels=np.arange(4))
  found = load_arrays(tmp_path / "x.npz", "names", "labels")
  assert found["names"] == names and found["labels"].tolist() == [0, 1, 2, 3]


# -- files that systems leave behind -----------------------------------------------------------------------------------


HIDDEN = (".ipynb_checkpoints/000-checkpoint.jpg", ".@__thumb/s800.jpg", "@eaDir/a.jpg/THUMB.jpg",
          "__MACOSX/._a.jpg",
          "$RECYCLE.BIN/x.jpg", "lost+found/x.png", "System Volume Information/a.jpg", "#recycle/a.jpg",
          "@Recycle/b.jpg",
          "__pycache__/a.jpg", ".picasaoriginals/a.jpg", "THUMBS.DB", "desktop.ini", ".DS_Store", "._000.jpg",
          "Icon\r", "ehthumbs.db")


def scatter(folder):
  for name in HIDDEN:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"x")


def test_hidden_and_system_files_are_left_out_at_every_level(tmp_path):
  write_tree(tmp_path, {"a": 2, "b/deep/er": 1})
  expected, names = listing.class_folders(epath.Path(tmp_path), "root")
  folders = (tmp_path, tmp_path / "a", tmp_path / "b", tmp_path / "b/deep", tmp_path / "b/deep/er")
  for folder in folders:
    scatter(folder)
  found, same = listing.class_folders(epath.Path(tmp_path), "root")
  assert same == names == ("a", "b") and found.paths == expected.paths
  assert found.left_out == {listing.HIDDEN_FOLDERS: 11 * len(folders), listing.HIDDEN_FILES: 6 * len(folders)}
  assert expected.left_out == {}


def test_other_files_are_counted_by_their_suffix(tmp_path):
  root = tmp_path / "root"
  write_tree(root, dict(a=2, b=2))
  for name in ("a/notes.txt", "b/NOTES.TXT", "a/labels.csv", "b/LICENSE", "top.jpg", "README.md", "a/x.jpg.bak"):
    (root / name).write_bytes(b"x")
  for _ in range(2):  # the second time from the cache
    found, _ = listing.class_folders(epath.Path(root), "root", tmp_path / "cache")
    assert found.left_out == {".txt": 2, ".csv": 1, "": 1, ".md": 1, ".bak": 1, listing.OUTSIDE: 1}


@pytest.mark.parametrize("suffix", [*listing.SUFFIXES, ".JPG", ".Jfif", ".TIFF", ".Tif", ".PNG"])
def test_suffixes_in_any_case(suffix):
  assert listing.is_image(f"a{suffix}") and not listing.is_image(f".a{suffix}") and not listing.is_image(f"a{suffix}.x")


def test_images_below_a_folder_are_those_that_training_takes(tmp_path):
  write_tree(tmp_path, {"a": 2, "b/deep/er": 1, ".hidden": 2})
  (tmp_path / "top.TIF").write_bytes(b"x")
  (tmp_path / "linked").symlink_to(tmp_path / "a")
  for folder in (tmp_path, tmp_path / "a"):
    scatter(folder)
  found = listing.images_below(tmp_path)
  assert found.paths == [f"{tmp_path}/{name}" for name in (
      "a/000.jpg", "a/001.jpg", "b/deep/er/000.jpg", "linked/000.jpg", "linked/001.jpg", "top.TIF")]
  assert found.left_out == {listing.HIDDEN_FILES: 3 * 6, listing.HIDDEN_FOLDERS: 3 * 11 + 1}
  (tmp_path / "b" / "loop").symlink_to(tmp_path)
  with pytest.raises(DataError, match="b/loop: a linked folder"):
    listing.images_below(tmp_path)
  with pytest.raises(DataError, match=r"b/deep/none: no image in this folder \(\.bmp"):
    (tmp_path / "b/deep/none").mkdir()
    listing.images_below(tmp_path / "b/deep/none")


# -- names in two forms ------------------------------------------------------------------------------------------------


NFC, NFD = "caf\u00e9", "cafe\u0301"


def test_two_class_folders_of_one_name_are_named(tmp_path):
  write_tree(tmp_path, {NFC: 1, NFD: 1, "tea": 1})
  with pytest.raises(DataError, match=r"two class folders of one name, 'cafe\\u0301' and 'caf\\xe9', which differ"):
    listing.class_folders(epath.Path(tmp_path), "root")


@pytest.mark.parametrize("form", [NFC, NFD])
def test_a_class_has_its_composed_name_whatever_the_file_system_says(tmp_path, form):
  write_tree(tmp_path, {form: 1, "cafz": 1, "cafa": 1})
  found, names = listing.class_folders(epath.Path(tmp_path), "root")
  assert names == ("cafa", "cafz", NFC) and found.paths[-1] == f"{form}/000.jpg"


# -- train, test and val ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("train", "test", "val"), [
    ("train", "test", "val"), ("Train", "TEST", "Validation"), ("TRAIN", "Test", "Val"),
    ("Training", "Testing", "VALID")])
def test_splits_are_found_in_any_case(tmp_path, train, test, val):
  for name in (train, test, val, "extra", ".hidden"):
    write_tree(tmp_path / name, dict(a=1))
  found = listing.roots(epath.Path(tmp_path))
  assert [path.name for path in found[:3]] == [train, test, val] and found.others == ("extra",)
  found = listing.roots(epath.Path(tmp_path), epath.Path(tmp_path / val))  # which then is not held out too
  assert [path and path.name for path in found[:3]] == [train, val, None]


def test_two_folders_of_one_role_are_named(tmp_path):
  for name in ("train", "Val", "validation"):
    write_tree(tmp_path / name, dict(a=1))
  with pytest.raises(DataError, match="Val/ and validation/ both look like the val set; rename or move one"):
    listing.roots(epath.Path(tmp_path))


def test_a_test_set_inside_of_the_training_set_is_named(tmp_path):
  write_tree(tmp_path / "root", dict(a=1, b=1, test=1))
  write_tree(tmp_path / "split/train", dict(a=1, b=1))
  for root, test in (("root", "root/test"), ("root", "root"), ("split", "split/train")):
    with pytest.raises(DataError, match=r"dataset\.test_root: .* is inside of .*, so its images would be trained on"):
      listing.roots(epath.Path(tmp_path / root), epath.Path(tmp_path / test))


def test_links_that_lead_nowhere_are_files_among_others(tmp_path):
  write_tree(tmp_path, dict(cat=2, dog=1))
  for folder in (tmp_path, tmp_path / "cat"):
    (folder / "circle.jpg").symlink_to("circle.jpg")
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
  found, names = listing.class_folders(epath.Path(tmp_path), "root")
  assert names == ("cat", "dog") and found.left_out == {listing.OUTSIDE: 2}
  assert found.paths == ["cat/000.jpg", "cat/001.jpg", "cat/circle.jpg", "cat/gone.jpg", "dog/000.jpg"]
  assert len(listing.images_below(tmp_path).paths) == 7
