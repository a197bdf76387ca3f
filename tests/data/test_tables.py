import functools
import lzma
import re
import zipfile

import numpy as np
import pytest

from ltjax.data import tables
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
def test_a_file_that_is_not_a_list_is_named(tmp_path, name, data, message):
  (tmp_path / name).write_bytes(data)
  with pytest.raises(DataError, match=rf"{re.escape(name)}.*{message}"):
    tables.split_list(str(tmp_path / name), "train_list")


def test_a_small_file_that_unpacks_to_a_large_one_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(tables, "_LIST_BYTES", 2**20)
  (tmp_path / "bomb.txt.xz").write_bytes(lzma.compress(bytes(2**21)))
  with pytest.raises(DataError, match="bomb.txt.xz: unpacks to over 1,048,576 bytes"):
    tables.split_list(str(tmp_path / "bomb.txt.xz"), "train_list")


def test_a_missing_list_and_an_archive_instead_of_one_are_named(tmp_path):
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
  ("\nb.jpg,dog", "2: blank line"), (",\nb.jpg,dog", "2: blank line"),
  ("b.jpg", "2: expected 2 columns .* got 1: 'b.jpg'"),
  ("b.jpg,cat,3", "2: expected 2 columns .* got 3"), ("b.jpg,", "2: the class name is missing"),
  (",cat", "2: the path is missing"),
  ('b.jpg,"cat', "[23]: not a line of a CSV"), ("a.jpg,dog", "2: .* in line 1 already"),
  ("../b.jpg,cat", "2: .* is outside the root"),
  ("b.svg,cat", r"2: 'b\.svg' is no image by its name \(\.bmp.* no such file")])
def test_a_bad_row_is_named_by_its_number(tmp_path, bad, message):
  with pytest.raises(DataError, match=rf"table\.csv:{message}"):
    tables.table(write_lines(tmp_path / "table.csv", "a.jpg,cat", bad), "train_csv")


ROWS = [("a/1.jpg", "cat"), ("b/2.JPEG", "dog"), ("c/3.tif", "cat")]


def written(path, header, rows, delimiter=",", ending="\n", start=""):
  lines = ([delimiter.join(header)] if header else []) + [delimiter.join(row) for row in rows]
  path.write_bytes((start + ending.join(lines) + ending).encode())
  return str(path)


def check(found, paths=("a/1.jpg", "b/2.JPEG", "c/3.tif"), labels=("cat", "dog", "cat")):
  assert (found.paths, found.labels.tolist()) == ([*paths], [*labels])


@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("header", [(), ("path", "label"), ("FileName", "Category"), ("fname", "breed")])
def test_separators_line_ends_and_headings(tmp_path, header, delimiter, ending, start):
  check(tables.table(written(tmp_path / "t.csv", header, ROWS, delimiter, ending, start), "train_csv"))


@pytest.mark.parametrize(("header", "row"), [
    (("", "path", "label"), "{k},{path},{label}"), (("label", "file"), "{label},{path}"),
    (("id", "Image", "width", "CLASS"), "{k},{path},40,{label}"),
    (("class", "x", "y", "file_path"), "{label},1,2,{path}"),
    (("path", "target", "split"), "{path},{label},train"), ((), "{k},{path},{label}"), ((), "{label},{path}"),
    ((), "{path},{label},40,30"), (("file", "species"), "{path},{label}"), (("breed", "filename"), "{label},{path}")])
def test_columns_are_found_among_more(tmp_path, header, row):
  rows = [row.format(k=k, path=path, label=label).split(",") for k, (path, label) in enumerate(ROWS)]
  check(found := tables.table(written(tmp_path / "t.csv", header, rows), "train_csv"))
  told = {"path", "label", "file", "image", "class", "filepath", "target"}
  known = len({name.lower().replace("_", "") for name in header} & told) >= 2
  assert bool(found.notes) == (not known and row != "{path},{label}" or header == ("file", "species")), found.notes


def test_columns_can_be_named(tmp_path):
  rows = [(path, "x", label) for path, label in ROWS]
  path = written(tmp_path / "t.csv", ("where", "what", "breed"), rows)
  check(tables.table(path, "train_csv", image_column="where", label_column="breed"))
  with pytest.raises(DataError, match=r"t\.csv:1 has no column 'bred' .did you mean 'breed'.*'where', 'what', 'breed'"):
    tables.table(path, "train_csv", image_column="where", label_column="bred")
  with pytest.raises(DataError, match=r"t\.csv:1: column 'where' cannot be both image and label"):
    tables.table(path, "train_csv", image_column="where", label_column="where")
  path = written(tmp_path / "t.csv", ("file", "what", "breed"), rows)
  with pytest.raises(DataError, match=r"t\.csv:1: which column is the label\? .*--config\.dataset\.label_column=NAME"):
    tables.table(path, "train_csv")
  check(tables.table(path, "train_csv", label_column="breed"))


def test_a_first_row_that_names_an_existing_file_is_not_a_heading(tmp_path):
  write_tree(tmp_path, dict(a=3))
  for k in range(3):
    (tmp_path / f"a/00{k}.jpg").rename(tmp_path / f"a/00{k}")
  rows = [(f"a/00{k}", "cat") for k in range(3)]
  path = written(tmp_path / "t.csv", (), rows)
  check(tables.table(path, "train_csv", root=str(tmp_path)), [row[0] for row in rows], ["cat"] * 3)
  with pytest.raises(DataError, match=r"t\.csv:1: no cell is an image, .*--config\.dataset\.image_column=NAME"):
    tables.table(path, "train_csv")
  path = written(tmp_path / "t.csv", ("id", "breed"), rows)
  check(tables.table(path, "train_csv", root=str(tmp_path)), [row[0] for row in rows], ["cat"] * 3)


def test_paths_without_their_suffix_are_named(tmp_path):
  write_tree(tmp_path, dict(a=2))
  path = written(tmp_path / "t.csv", ("path", "label"), [("a/000", "cat")])
  with pytest.raises(DataError, match=r"t\.csv:2: 'a/000' is no image .*there is 'a/000\.jpg': add the suffix"):
    tables.table(path, "train_csv", root=str(tmp_path))
  path = written(tmp_path / "t.csv", (), [("a/000", "cat")])
  with pytest.raises(DataError, match=r"t\.csv:1: no cell is an image, .*there is 'a/000\.jpg': add the suffix"):
    tables.table(path, "train_csv", root=str(tmp_path))


def test_absolute_paths_below_the_root_and_those_of_windows(tmp_path):
  write_tree(tmp_path / "root", dict(a=3))
  (tmp_path / "link").symlink_to(tmp_path / "root")
  expected = ["a/000.jpg", "a/001.jpg", "a/002.jpg"]
  names = [f"{tmp_path}/root/a/000.jpg", f"{tmp_path}/link/a/001.jpg", "a\\002.jpg"]
  path = written(tmp_path / "t.csv", (), [(name, "cat") for name in names])
  check(tables.table(path, "train_csv", root=str(tmp_path / "link")), expected, ["cat"] * 3)
  lines = write_lines(tmp_path / "t.txt", *(f"{name} 0" for name in names))
  assert tables.split_list(lines, "train_list", root=str(tmp_path / "link")).paths == expected
  for name in ("/etc/a.jpg", f"{tmp_path}/rooted/a.jpg", f"{tmp_path}/root/../a.jpg", "..\\a.jpg"):
    path = written(tmp_path / "t.csv", ("path", "label"), [(name, "cat")])
    with pytest.raises(DataError, match=r"t\.csv:2: .* is outside the root .*; paths are relative to it"):
      tables.table(path, "train_csv", root=str(tmp_path / "root"))


@pytest.mark.parametrize("place", [10, 5000])
def test_a_nul_byte_anywhere_is_one_error(tmp_path, place):
  data = bytearray(b"a.jpg 0\n" * 1000)
  data[place] = 0
  (tmp_path / "t.csv").write_bytes(data)
  for read in (tables.table, tables.split_list, lambda path, _: tables.class_names(path)):
    with pytest.raises(DataError, match="is not a text file"):
      read(str(tmp_path / "t.csv"), "train_csv")


def test_blank_lines_at_the_end_are_none(tmp_path):
  path = write_lines(tmp_path / "t.csv", "path,label", "a.jpg,0", "b.jpg,1", "", ",")
  assert tables.table(path, "train_csv").paths == ["a.jpg", "b.jpg"]
  path = write_lines(tmp_path / "t.txt", "a.jpg 0", "b.jpg 1", "", "  ")
  assert tables.split_list(path, "train_list").labels.tolist() == [0, 1]


def test_another_root_than_that_of_the_paths_is_one_error(tmp_path):
  write_tree(tmp_path / "d", dict(a=2))
  read = functools.partial(tables.table, key="train_csv", root=str(tmp_path / "d"))
  path = write_lines(tmp_path / "t.csv", "path,label", "d/a/000.jpg,cat", "d/a/001.jpg,dog")
  with pytest.raises(DataError, match=rf"'d/a/000.jpg' is not below .*; give --config.dataset.root={tmp_path}$"):
    read(path)
  path = write_lines(tmp_path / "t.csv", "path,label", "C:\\photos\\a\\000.jpg,cat")
  with pytest.raises(DataError, match=r"t\.csv:2: .* is outside the root"):
    read(path)


def test_paths_without_their_suffix_are_named_below_headings_too(tmp_path):
  write_tree(tmp_path, dict(a=2))
  with pytest.raises(DataError, match="there is 'a/000.jpg': add the suffix to the paths"):
    tables.table(write_lines(tmp_path / "t.csv", "id,breed", "a/000,cat"), "train_csv", root=str(tmp_path))


def test_utf_16_is_named(tmp_path):
  (tmp_path / "t.csv").write_text("a.jpg,cat\n", encoding="utf-16")
  with pytest.raises(DataError, match="not a text file in UTF-8, but in UTF-16; save it as UTF-8"):
    tables.table(str(tmp_path / "t.csv"), "train_csv")


@pytest.mark.parametrize(("digits", "label"), [("0" * 23 + "1", 1), ("0" * 30, 0), ("-0", 0), ("007", 7)])
def test_labels_with_leading_zeros(tmp_path, digits, label):
  path = write_lines(tmp_path / "list.txt", f"a.jpg {digits}")
  assert tables.split_list(path, "train_list").labels.tolist() == [label]
