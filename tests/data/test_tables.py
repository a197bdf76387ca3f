import lzma
import re
import zipfile

import numpy as np
import pytest

from ltjax.data import tables
from ltjax.errors import DataError
from tests.photographs import write_lines

XZ = lzma.compress(b"a.jpg 0\n" * 10)

# -- split lists ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_list_gives_its_paths_and_labels_in_order(tmp_path, ending, packed):
  lines = ["train/a/1.jpg 0", "train/b with spaces/2.jpg 1", "train/é/\u20283.JPEG\t0", "./a//b/../4 12"]
  data = ending.join([*lines, ""]).encode()
  path = tmp_path / ("list.txt.xz" if packed else "list.txt")
  path.write_bytes(lzma.compress(data) if packed else data)
  found = tables.split_list(str(path), "train_list")
  assert found.paths == ["train/a/1.jpg", "train/b with spaces/2.jpg", "train/é/\u20283.JPEG", "a/4"]
  assert found.labels.tolist() == [0, 1, 0, 12] and found.labels.dtype == np.int64
  path.write_bytes(b"\xef\xbb\xbf" + data)  # some editors' mark of UTF-8
  if not packed:
    assert tables.split_list(str(path), "train_list").paths == found.paths


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
    tables.split_list(path, "train_list", classes=3)


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
    tables.split_list(str(tmp_path / name), "train_list")


def test_a_small_file_that_unpacks_to_much_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(tables, "_LIST_BYTES", 2**20)
  (tmp_path / "bomb.txt.xz").write_bytes(lzma.compress(bytes(2**21)))
  with pytest.raises(DataError, match="bomb.txt.xz: unpacks to over 1,048,576 bytes"):
    tables.split_list(str(tmp_path / "bomb.txt.xz"), "train_list")


def test_a_missing_list_and_an_archive_in_its_place_are_named(tmp_path):
  with pytest.raises(DataError, match=r"dataset\.train_list: no file '.*nowhere\.txt'"):
    tables.split_list(str(tmp_path / "nowhere.txt"), "train_list")
  with pytest.raises(DataError, match=r"dataset\.train_list: empty; .*--config\.dataset\.train_list=FILE"):
    tables.split_list("", "train_list")
  with zipfile.ZipFile(tmp_path / "lists.zip", "w") as archive:
    archive.writestr("a.txt", "a.jpg 0\n")
  with pytest.raises(DataError, match=r"lists\.zip is not a text file; if it is an archive, unpack it"):
    tables.split_list(str(tmp_path / "lists.zip"), "train_list")


def test_class_names_are_a_line_each(tmp_path):
  assert tables.class_names(write_lines(tmp_path / "names.txt", "cat", "sea horse ", "é")) == ("cat", "sea horse", "é")
  for lines, message in ((("cat", "", "dog"), "2: blank"), (("cat", "dog", "cat"), "3: class 'cat' .* line 1"),
                         ((), " empty")):
    with pytest.raises(DataError, match=rf"names\.txt:{message}"):
      tables.class_names(write_lines(tmp_path / "names.txt", *lines))


# -- tables -----------------------------------------------------------------------------------------------------------


def test_a_table_gives_paths_and_names_with_or_without_a_heading(tmp_path):
  rows = ["a/1.jpg,cat", '"b, c.PNG","sea ""horse"""', " d.webp , cat "]
  expected = ["a/1.jpg", "b, c.PNG", "d.webp"], ["cat", 'sea "horse"', "cat"]
  for heading in ((), ("path,label",)):
    found = tables.table(write_lines(tmp_path / "table.csv", *heading, *rows), "train_csv")
    assert (found.paths, found.labels.tolist()) == expected


@pytest.mark.parametrize(("bad", "message"), [
  ("", "2: blank line"), (",", "2: blank line"), ("b.jpg", "2: expected 2 columns .* got 1: 'b.jpg'"),
  ("b.jpg,cat,3", "2: expected 2 columns .* got 3"), ("b.jpg,", "2: the class name is missing"),
  (",cat", "2: the path is missing"),
  ('b.jpg,"cat', "[23]: not a line of a CSV"), ("a.jpg,dog", "2: .* in line 1 already"),
  ("../b.jpg,cat", "2: .* is outside the root"),
  ("b.svg,cat", r"2: 'b\.svg' is no image by its name \(\.bmp.* no such file")])
def test_a_bad_row_is_named_by_its_number(tmp_path, bad, message):
  with pytest.raises(DataError, match=rf"table\.csv:{message}"):
    tables.table(write_lines(tmp_path / "table.csv", "a.jpg,cat", bad), "train_csv")
