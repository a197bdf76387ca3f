import lzma
import os
import re
import zipfile

import numpy as np
import pytest
from etils import epath

from ltjax.data import listing
from ltjax.errors import DataError
from tests.photographs import write_lines, write_tree

XZ = lzma.compress(b"a.jpg 0\n" * 10)

# -- split lists ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_list_gives_its_paths_and_labels_in_order(tmp_path, ending, packed):
  lines = ["train/a/1.jpg 0", "train/b with spaces/2.jpg 1", "train/é/\u20283.JPEG\t0", "./a//b/../4 12"]
  data = ending.join([*lines, ""]).encode()
  path = tmp_path / ("list.txt.xz" if packed else "list.txt")
  path.write_bytes(lzma.compress(data) if packed else data)
  found = listing.split_list(str(path), "train_list")
  assert found.paths == ["train/a/1.jpg", "train/b with spaces/2.jpg", "train/é/\u20283.JPEG", "a/4"]
  assert found.labels.tolist() == [0, 1, 0, 12] and found.labels.dtype == np.int64
  path.write_bytes(b"\xef\xbb\xbf" + data)  # some editors' mark of UTF-8
  if not packed:
    assert listing.split_list(str(path), "train_list").paths == found.paths


@pytest.mark.parametrize(("bad", "message"), [
  ("", "2: blank line"),
  ("  ", "2: blank line"),
  ("b.jpg", "2: expected '<path> <label>' .* got 'b.jpg'"),
  ("1", "2: expected '<path> <label>'"),
  ("b.jpg one", "2: expected '<path> <label>' .* got 'b.jpg one'"),
  ("b.jpg 1.0", "2: expected '<path> <label>'"),
  ("b.jpg \u0661", "2: expected '<path> <label>'"),  # a digit, but not one of ASCII
  ("b.jpg -1", r"2: label -1 is out of range, expected 0 to 2"),
  ("b.jpg 3", r"2: label 3 is out of range, expected 0 to 2"),
  (f"b.jpg {'9' * 5000}", r"2: label 9+ is out of range"),
  ("a.jpg 1", "2: 'a.jpg' stands in line 1 already"),
  ("x/../a.jpg 1", r"2: 'x/\.\./a.jpg' stands in line 1 already"),
  ("../b.jpg 1", r"2: '\.\./b.jpg' is outside the root"),
  ("x/../../b.jpg 1", "2: .* is outside the root"),
  ("/etc/passwd 1", "2: '/etc/passwd' is outside the root"),
  (".. 1", "2: .* is outside the root"),
  ("gs://other/b.jpg 1", "2: .* is outside the root"),
])
def test_a_bad_line_is_named_by_its_number(tmp_path, bad, message):
  path = write_lines(tmp_path / "list.txt", "a.jpg 0", bad, "c.jpg 2")
  with pytest.raises(DataError, match=rf"list\.txt:{message}"):
    listing.split_list(path, "train_list", classes=3)


@pytest.mark.parametrize(("name", "data", "message"), [
  ("list.txt", b"", "no image is listed"),
  ("list.txt", b"\n\n", "no image is listed"),
  ("list.txt", b"\xff\xfe\x00", "not a text file"),
  ("list.txt", b"a\xff.jpg 0\n", "not UTF-8 text .* at byte 1"),
  ("list.txt.xz", b"a.jpg 0\nb.jpg 1\nc.jpg 2\n", "not an .xz file"),
  ("list.txt.xz", XZ[:-9], "cut off"),
  ("list.txt.xz", XZ[:40] + b"\0\0\0\0" + XZ[44:], "damaged"),
])
def test_what_is_no_list_is_named(tmp_path, name, data, message):
  (tmp_path / name).write_bytes(data)
  with pytest.raises(DataError, match=rf"{re.escape(name)}.*{message}"):
    listing.split_list(str(tmp_path / name), "train_list")


def test_a_small_file_that_unpacks_to_much_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(listing, "_LIST_BYTES", 2**20)
  (tmp_path / "bomb.txt.xz").write_bytes(lzma.compress(bytes(2**21)))
  with pytest.raises(DataError, match="bomb.txt.xz: unpacks to over 1,048,576 bytes"):
    listing.split_list(str(tmp_path / "bomb.txt.xz"), "train_list")


def test_a_missing_list_and_an_archive_in_its_place_are_named(tmp_path):
  with pytest.raises(DataError, match=r"dataset\.train_list: no file '.*nowhere\.txt'"):
    listing.split_list(str(tmp_path / "nowhere.txt"), "train_list")
  with pytest.raises(DataError, match=r"dataset\.train_list: empty; .*--config\.dataset\.train_list=FILE"):
    listing.split_list("", "train_list")
  with zipfile.ZipFile(tmp_path / "lists.zip", "w") as archive:
    archive.writestr("a.txt", "a.jpg 0\n")
  with pytest.raises(DataError, match=r"lists\.zip is not a text file; if it is an archive, unpack it"):
    listing.split_list(str(tmp_path / "lists.zip"), "train_list")


def test_class_names_are_a_line_each(tmp_path):
  assert listing.class_names(write_lines(tmp_path / "names.txt", "cat", "sea horse ", "é")) == ("cat", "sea horse", "é")
  for lines, message in ((("cat", "", "dog"), "2: blank"), (("cat", "dog", "cat"), "3: class 'cat' .* line 1"),
                         ((), " empty")):
    with pytest.raises(DataError, match=rf"names\.txt:{message}"):
      listing.class_names(write_lines(tmp_path / "names.txt", *lines))


# -- tables -----------------------------------------------------------------------------------------------------------


def test_a_table_gives_paths_and_names_with_or_without_a_heading(tmp_path):
  rows = ["a/1.jpg,cat", '"b, c.PNG","sea ""horse"""', " d.webp , cat "]
  expected = ["a/1.jpg", "b, c.PNG", "d.webp"], ["cat", 'sea "horse"', "cat"]
  for heading in ((), ("path,label",)):
    found = listing.table(write_lines(tmp_path / "table.csv", *heading, *rows), "train_csv")
    assert (found.paths, found.labels.tolist()) == expected


@pytest.mark.parametrize(("bad", "message"), [
  ("", "2: blank line"), (",", "2: blank line"), ("b.jpg", "2: expected two columns"),
  ("b.jpg,cat,3", "2: expected two columns"), ("b.jpg,", "2: expected two columns"),
  ('b.jpg,"cat', "[23]: not a line of a CSV"), ("a.jpg,dog", "2: .* in line 1 already"),
  ("../b.jpg,cat", "2: .* is outside the root"), ("b.tif,cat", r"2: 'b\.tif' is no image by its name \(\.bmp")])
def test_a_bad_row_is_named_by_its_number(tmp_path, bad, message):
  with pytest.raises(DataError, match=rf"table\.csv:{message}"):
    listing.table(write_lines(tmp_path / "table.csv", "a.jpg,cat", bad), "train_csv")


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
  (tmp_path / "empty 0" / "drawing.tif").write_bytes(b"x")
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
    for read in (listing.existing_folder, listing.read_bytes):
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
  listing.store_arrays(tmp_path / "x.npz", names=names, labels=np.arange(4))
  found = listing.load_arrays(tmp_path / "x.npz", "names", "labels")
  assert found["names"] == names and found["labels"].tolist() == [0, 1, 2, 3]
