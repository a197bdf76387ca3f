"""Which images there are and of which class: the field's split lists, and CSV tables as people have them."""

import csv
import functools
import io
import lzma
import os
import posixpath
import re
import zipfile
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from ltjax.data import archives
from ltjax.data.listing import SUFFIXES, Listing, is_local, reached, same_name
from ltjax.errors import DataError, nearest

_LIST_BYTES = 2**28  # ten times the longest list of the field: an .xz that unpacks to more is not one
_DELIMITERS = ",;\t"
_SNIFFED = 50  # rows
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")  # of Windows
# Headings in lower case without blanks, "_" and "-"; the first that a table has is taken.
_IMAGE = ("filepath", "imagepath", "imgpath", "path", "filename", "imagename", "imagefile", "file", "image", "img")
_NAME_BOTH = "--config.dataset.image_column=NAME and --config.dataset.label_column=NAME"
_LABEL = ("label", "class", "category", "target", "classname", "labelname", "categoryname")


# -- text files -------------------------------------------------------------------------------------------------------


def read_bytes(path: str | os.PathLike, key: str) -> bytes:
  """The bytes of a text file that `dataset.<key>` names, unpacked where it ends in .xz."""
  found = epath.Path(path).expanduser()
  with reached(found, key):
    is_there = os.fspath(path) and found.exists() and not found.is_dir()
  if not is_there:
    raise DataError(f"dataset.{key}: {f'no file {str(path)!r}' if os.fspath(path) else 'empty'}; give a file with "
                    f"--config.dataset.{key}=FILE")
  data = found.read_bytes()
  if found.suffix != ".xz":
    return data
  try:
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ)
    data = unpacker.decompress(data, _LIST_BYTES)
  except lzma.LZMAError as error:
    raise DataError(f"{path}: not an .xz file, or a damaged one ({error}); fetch it again") from error
  if not unpacker.eof:
    raise DataError(f"{path}: {'cut off' if unpacker.needs_input else f'unpacks to over {_LIST_BYTES:,} bytes'}, "
                    "so it is not a list of images; fetch it again")
  return data


def _text(path: str, key: str) -> str:
  data = read_bytes(path, key)
  if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
    raise DataError(f"dataset.{key}: {path} is not a text file in UTF-8, but in UTF-16; save it as UTF-8")
  if zipfile.is_zipfile(io.BytesIO(data)) or b"\0" in data:
    raise DataError(f"dataset.{key}: {path} is not a text file; if it is an archive, unpack it with "
                    f"'{archives.COMMAND}'")
  try:
    return data.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise DataError(f"dataset.{key}: {path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as "
                    "UTF-8") from error


def _lines(path: str, key: str) -> list[str]:
  """The lines of a text; str.splitlines would also split at characters that file names may hold."""
  text = _text(path, key).rstrip()  # editors leave blank lines at the end
  return text.split("\n") if text else []


def class_names(path: str) -> tuple[str, ...]:
  """One class name a line; line k is label k, from 0."""
  names = tuple(same_name(line.strip()) for line in _lines(path, "class_names"))
  first = {}
  for number, name in enumerate(names, 1):
    if not name:
      raise DataError(f"{path}:{number}: blank line, expected a class name")
    if first.setdefault(name, number) != number:
      raise DataError(f"{path}:{number}: class {name!r} stands in line {first[name]} already")
  if not names:
    raise DataError(f"{path}: empty, expected a class name a line")
  return names


# -- split lists ------------------------------------------------------------------------------------------------------


def split_list(path: str, key: str, *, classes: int | None = None, root: str = "") -> Listing:
  """The field's official lists: a line is `<path> <label>`; .txt or .txt.xz.

  Args:
    path: of the list.
    key: of the config, for messages.
    classes: how many there are, where that is known.
    root: the folder that paths start from; absolute paths must be below it.
  """
  rows = []
  for number, line in enumerate(_lines(path, key), 1):
    parts = line.rsplit(maxsplit=1)
    if not parts:
      raise DataError(f"{path}:{number}: blank line, expected '<path> <label>'; remove it")
    if len(parts) < 2 or not (parts[1].isascii() and parts[1].removeprefix("-").isdecimal()):
      raise DataError(f"{path}:{number}: expected '<path> <label>' with an integer at the end, got {line[:100]!r}")
    sign, digits = parts[1].startswith("-"), parts[1].lstrip("-").lstrip("0") or "0"
    label = int(digits[:20]) * (-1 if sign else 1)  # what is longer is out of range either way
    if not 0 <= label < (classes or 2**31):
      raise DataError(f"{path}:{number}: label {label} is out of range, expected 0 to "
                      f"{classes - 1 if classes else 2**31 - 1}")
    rows.append((number, parts[0], label))
  return _listing(path, rows, np.int64, root)


def _listing(path: str, rows: list[tuple], kind, root: str, notes: tuple[str, ...] = ()) -> Listing:
  """The rows (line number, image, label), after a check that each image is inside the root and there once.

  Whether all files are there is noticed where they are read; but paths that begin with the root's own folder are named.
  """
  first, paths = {}, []
  for number, name, _ in rows:
    inside = _inside(name, root)
    if inside.startswith(("/", "../")) or inside == ".." or "://" in name or _DRIVE.match(name):
      raise DataError(f"{path}:{number}: {name!r} is outside the root{f' {root}' if root else ''}; paths are relative "
                      "to it and stay inside")
    if first.setdefault(inside, number) != number:
      raise DataError(f"{path}:{number}: {name!r} stands in line {first[inside]} already")
    paths.append(inside)
  if not rows:
    raise DataError(f"{path}: no image is listed")
  if root and is_local(root) and not _is_file(paths[0], root):
    above = str(epath.Path(root).expanduser().absolute().parent)
    if _is_file(paths[0], above):
      raise DataError(f"{path}: {paths[0]!r} is not below the root {root}, but below {above}; give "
                      f"--config.dataset.root={above}")
  return Listing(paths, np.array([label for *_, label in rows], kind), notes=notes)


def _inside(name: str, root: str) -> str:
  """A path of a list, relative to `root` in its plainest form; absolute ones only where they are not below it."""
  tops = _tops(root) if root and is_local(root) else ()
  if tops and "\\" in name and not os.path.exists(os.path.join(tops[0], name)):
    name = name.replace("\\", "/")  # written by Windows
  inside = posixpath.normpath(name)
  if inside.startswith("/"):
    for top in tops:
      if inside.startswith(top):
        return inside.removeprefix(top)
  return inside


@functools.lru_cache(8)
def _tops(root: str) -> tuple[str, str]:
  """`root` as it is spelled and where links lead, with a slash at the end: a list may have been made with either."""
  root = os.path.expanduser(root)
  return f"{os.path.abspath(root).rstrip('/')}/", f"{os.path.realpath(root).rstrip('/')}/"


# -- tables -----------------------------------------------------------------------------------------------------------


class _Columns(NamedTuple):
  """Where the image and the label are in a row, whether the first row is a heading, and why the user should know."""

  image: int
  label: int
  heading: bool
  note: str = ""


def table(path: str, key: str, *, root: str = "", image_column: str = "", label_column: str = "") -> Listing:
  """A CSV with a column of paths and one of class names, separated by commas, semicolons or tabs.

  The columns are those that are named, else those whose headings say so (path, image, file, filename, filepath; label,
  class, category, target; in any case), else the first two. Without headings, the first cell that is an image by its
  suffix or is there as a file, and the cell after it. A first row that is an image is never taken for a heading.

  Args:
    path: of the table.
    key: of the config, for messages.
    root: the folder that paths start from; absolute paths must be below it.
    image_column, label_column: headings.

  Raises:
    DataError: with file and line: a missing cell, a row of another length, an image twice or outside the root, a name
      that is neither an image's nor that of a file.
  """
  text = _text(path, key)
  rows = _rows(path, text, _delimiter(text))
  while rows and not any(rows[-1][1]):  # editors leave blank lines at the end
    rows.pop()
  if not rows:
    raise DataError(f"{path}: no image is listed")
  columns, listed = _columns(path, rows, root, image_column, label_column), []
  for number, row in rows[columns.heading:]:
    if not any(row):
      raise DataError(f"{path}:{number}: blank line, expected '<path>,<class name>'; remove it")
    if len(row) != len(rows[0][1]):
      raise DataError(f"{path}:{number}: expected {len(rows[0][1])} columns as in the first line, got {len(row)}: "
                      f"{','.join(row)[:100]!r}; quote cells that hold the separator")
    name, label = row[columns.image], row[columns.label]
    if not (name and label):
      raise DataError(f"{path}:{number}: the {'class name' if name else 'path'} is missing: {','.join(row)[:100]!r}; "
                      "fill it in or remove the line")
    if not (name.lower().endswith(SUFFIXES) or _is_file(name, root)):
      raise DataError(f"{path}:{number}: {name[:100]!r} is no image by its name ({', '.join(SUFFIXES)}), and there is "
                      f"no such file{_with_suffix(name, root) or ' below the root'}")
    listed.append((number, name, same_name(label)))
  return _listing(path, listed, None, root, (f"{path}: {columns.note}",) if columns.note else ())


def _rows(path: str, text: str, delimiter: str, limit: int | None = None) -> list[tuple[int, list[str]]]:
  """(line number, stripped cells) of every row."""
  rows, reader = [], csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
  try:
    for row in reader:
      rows.append((reader.line_num, [cell.strip() for cell in row]))
      if len(rows) == limit:
        break
  except csv.Error as error:
    raise DataError(f"{path}:{reader.line_num}: not a line of a CSV ({error})") from error
  return rows


def _delimiter(text: str) -> str:
  """The separator that gives the first rows two columns or more, all of them as many; a comma where none does."""
  for delimiter in _DELIMITERS:
    try:
      lengths = {len(row) for _, row in _rows("", text, delimiter, _SNIFFED) if any(row)}
    except DataError:
      continue
    if len(lengths) == 1 and lengths.pop() > 1:
      return delimiter
  return max(_DELIMITERS, key=text.partition("\n")[0].count)


def _columns(path: str, rows: Sequence, root: str, image: str, label: str) -> _Columns:
  number, first = rows[0]
  if len(first) < 2:
    raise DataError(f"{path}:{number}: expected two columns, path and class name, separated by a comma, semicolon or "
                    f"tab, got {','.join(first)[:100]!r}")
  in_data = _image_cell(first, root)
  if in_data is None or image or label:
    second = _image_cell(rows[1][1], root) if len(rows) > 1 else None
    hint = next(filter(None, (_with_suffix(cell, root) for _, row in rows[:2] for cell in row)), "")
    return _headed(f"{path}:{number}", first, second, image, label, hint)
  after = in_data + 1 if in_data + 1 < len(first) else in_data - 1
  return _Columns(in_data, after, False, "" if len(first) == 2 and in_data == 0 else (
      f"without headings; column {in_data + 1} is the image, column {after + 1} the class"))


def _headed(where: str, first: list[str], below: int | None, image: str, label: str, hint: str) -> _Columns:
  """The columns of a table whose first row is `first`, headings; `below` is the cell of the second that is an image.

  `hint` is what an error adds where `first` looks like paths without their suffixes.
  """
  plain, shown = [re.sub(r"[\s_-]", "", cell.lower()) for cell in first], ", ".join(map(repr, first))

  def place(given: str, key: str, known: Sequence[str]) -> int | None:
    if given and given not in first:
      raise DataError(f"dataset.{key}: {where} has no column {given!r}{nearest(given, first)}; there are {shown}")
    return first.index(given) if given else next((plain.index(name) for name in known if name in plain), None)

  found = dict(image=place(image, "image_column", _IMAGE), label=place(label, "label_column", _LABEL))
  if found["image"] is None and found["label"] is None:
    if below is None:
      raise DataError(
          f"{where}: no cell is an image, neither by its name ({', '.join(SUFFIXES)}) nor as a file below the root, "
          f"and no heading says which column is: {shown}{hint or ('; name the columns with ' + _NAME_BOTH)}")
    found["image"] = below
    if below == 0:
      found["label"] = 1
  for role, other in (("image", "label"), ("label", "image")):
    if found[role] is None and len(first) == 2:
      found[role] = 1 - found[other]
    if found[role] is None:
      raise DataError(f"{where}: which column is the {role}? The headings are {shown}; choose one with "
                      f"--config.dataset.{role}_column=NAME")
  images, labels = found.values()
  if images == labels:
    raise DataError(f"{where}: column {first[images]!r} cannot be both image and label; give {_NAME_BOTH}")
  told = (image or plain[images] in _IMAGE) and (label or plain[labels] in _LABEL)
  return _Columns(images, labels, True, "" if told else (
      f"the first line holds the headings; {first[images]!r} is the image, {first[labels]!r} the class"))


def _image_cell(row: Sequence[str], root: str) -> int | None:
  """The first cell that is an image by its suffix or is there as a file."""
  return next((k for k, cell in enumerate(row) if cell.lower().endswith(SUFFIXES) or _is_file(cell, root)), None)


def _is_file(name: str, root: str) -> bool:
  if not root or not name or "://" in name:
    return False
  place = epath.Path(root).expanduser() / _inside(name, root)
  try:
    return place.is_file()
  except (OSError, ValueError):  # a cell may be longer than a name can be
    return False


def _with_suffix(name: str, root: str) -> str:
  found = next((suffix for suffix in SUFFIXES if _is_file(name + suffix, root)), None)
  return f"; there is {name + found!r}: add the suffix to the paths" if found else ""
