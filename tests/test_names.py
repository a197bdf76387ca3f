import csv
import html.parser
import io
import json
import os
import warnings

import matplotlib.pyplot as plt
import pytest

from ltjax.report import names

LATIN1 = os.fsdecode(b"k\xe4fer")
HOSTILE = {
    "plain": "cat", "blank": "x, y", "money": "US$1_$5 notes", "broken mathematics": r"$\frac{", "escaped": r"a\$b",
    "bar": "b|c", "markup": "<script>alert(1)</script>", "quotes": "\"'><img src=x onerror='a'>", "entity": "&lt;b&gt;",
    "formula": "=HYPERLINK(\"http://a\",1)", "sum": "+1+1", "minus": "-2", "at": "@SUM(A1)", "tabbed": "\t=1+1",
    "blank formula": "  =1+1", "full-width formula": "\uff1d1+1", "line": "two\nlines\r\n", "bell": "\x07\x1b[31mred",
    "link": "[a](http://b)", "code": "`rm -rf`", "emphasis": "*a* _b_ ~c~ **d**", "heading": "# a", "table": "a | b |",
    "right to left": "\u05d0\u05d1\u05d2", "override": "cat\u202egpj.exe", "Chinese": "翘头剪", "Latin-1": LATIN1,
    "lone surrogate": "\ud800x", "accent": "e\u0301", "emoji": "\U0001f431", "separator": "a\u2028b", "empty": "",
    "zero width": "a\u200bb", "unassigned": "\U000e0fff"}
MEDIA = ("plot", "markdown", "html", "csv", "terminal", "json")


@pytest.mark.parametrize("medium", MEDIA)
@pytest.mark.parametrize("kind", HOSTILE)
def test_every_name_is_one_line_of_utf_8_that_shows_nothing_but_itself(kind, medium):
  text = names.shown(HOSTILE[kind], medium)
  assert len(text.splitlines()) <= 1
  assert text.encode() and kind or kind == "empty"  # no surrogate is left
  assert not set(text) & set("\x07\x1b\t\u202e\u2028\u200b")


def test_plain_names_stay_as_they_are_in_every_medium():
  for name in ("cat", "Sea horse 2", "翘头剪", "\u05d0\u05d1", "k\u00e4fer"):
    assert {names.shown(name, medium) for medium in MEDIA} == {name}


def test_invisible_characters_are_escaped():
  assert names.shown(LATIN1, "terminal") == r"k\xe4fer"
  assert names.shown("two\nlines\r\n\t", "terminal") == r"two\nlines\r\n\t"
  assert names.shown("\x07\u202e\ud800\U000e0fff", "json") == r"\x07\u202e\ud800\U000e0fff"


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_plot_draws_every_name_and_takes_none_for_mathematics(kind):
  figure, axes = plt.subplots(figsize=(1, 1))
  try:
    text = axes.set_title(names.shown(HOSTILE[kind], "plot"))
    assert not text._preprocess_math(text.get_text())[1]
    with names.one_warning([names.shown(HOSTILE[kind], "plot")]) as line:
      figure.savefig(io.BytesIO(), format="png")
    assert bool(line) == (kind in ("Chinese", "full-width formula")), line
  finally:
    plt.close(figure)


def test_missing_glyphs_are_one_line():
  line = names.missing_glyphs(["翘头剪", "猫", "cat", "头"])
  assert line.startswith("plots: the font has no glyph for 4 characters of the class names") and "\n" not in line
  assert "(U+5934)" in line and names.missing_glyphs(["cat", "k\u00e4fer"]) == ""


class Reader(html.parser.HTMLParser):
  def __init__(self):
    super().__init__(convert_charrefs=True)
    self.tags, self.text = [], ""

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_data(self, data):
    self.text += data


@pytest.mark.parametrize("kind", HOSTILE)
def test_html_shows_the_name_in_text_and_in_attributes(kind):
  reader, plain = Reader(), names.shown(HOSTILE[kind], "terminal")
  for quote in "\"'":
    reader.feed(f"<p title={quote}{names.shown(HOSTILE[kind], 'html')}{quote}>")
  reader.feed(names.shown(HOSTILE[kind], "html"))
  reader.close()
  assert reader.tags == [("p", dict(title=plain))] * 2 and reader.text == plain


@pytest.mark.parametrize("kind", HOSTILE)
def test_csv_cells_are_read_back_and_no_formula(kind):
  cell = names.shown(HOSTILE[kind], "csv")
  file = io.StringIO()
  csv.writer(file).writerow([cell, "x"])
  assert list(csv.reader(io.StringIO(file.getvalue()))) == [[cell, "x"]]
  assert cell.strip()[:1] not in tuple("=+-@\uff1d")
  assert cell.removeprefix("'") == names.shown(HOSTILE[kind], "terminal")


MARKS = {"markup": r"\<script\>", "bar": r"b\|c", "link": r"\[a\](http\://b)", "code": r"\`rm -rf\`",
         "heading": r"\# a",
         "emphasis": r"\*a\* \_b\_ \~c\~ \*\*d\*\*", "entity": r"\&lt;", "money": r"US\$1\_\$5"}


@pytest.mark.parametrize("kind", MARKS)
def test_markdown_punctuation_is_escaped(kind):
  """CommonMark: a backslash before any ASCII punctuation makes it a character."""
  assert names.shown(HOSTILE[kind], "markdown").startswith(MARKS[kind])


@pytest.mark.parametrize("kind", HOSTILE)
def test_json_of_a_shown_name_is_utf_8(kind):
  text = names.shown(HOSTILE[kind], "json")
  assert json.loads(json.dumps(text, ensure_ascii=False).encode()) == text


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8", "gbk"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_every_name_can_be_printed_to_every_stream(kind, encoding):
  stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
  stream.write(names.printable(names.shown(HOSTILE[kind], "terminal"), stream))
  stream.flush()
  assert names.printable("翘\ncat", io.TextIOWrapper(io.BytesIO(), encoding="ascii")) == "\\u7fd8\ncat"


def test_width_in_columns():
  for text, columns in (("cat", 3), ("翘头剪", 6), ("e\u0301", 1), ("\uff1d", 2), ("", 0), ("ｶ", 1), ("\u05d0", 1)):
    assert names.width(text) == columns
    assert names.width(names.padded(text, 8)) == 8
  assert names.padded("too long", 3) == "too long"


def test_an_unknown_medium_is_an_error():
  with pytest.raises(ValueError, match="expected one of plot, markdown, html, csv, terminal, json, got 'tex'"):
    names.shown("cat", "tex")


def test_warnings_of_other_kinds_are_not_silenced():
  with pytest.warns(UserWarning, match="other"), names.one_warning(["cat"]):
    warnings.warn("other", UserWarning, stacklevel=1)
