"""Shows class names and paths from the data as they are, and never as markup, commands or formulae.

A name is any text that a file system or a table may hold: "$", "|", quotes, line breaks, any script, and bytes that are
not UTF-8, which Python represents as surrogates.
"""

import contextlib
import html
import re
import unicodedata
import warnings
from collections.abc import Iterator
from typing import IO, Literal, get_args

Medium = Literal["plot", "markdown", "html", "csv", "terminal", "json"]
# Characters that reverse the text after them, or are invisible: with them one name could pass for another.
_UNSEEN = frozenset("\u00ad\u061c\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~&$:])")  # characters with a meaning inside a line
_LINE_BREAKS = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def shown(name: str, medium: Medium) -> str:
  r"""`name` on one line, so that `medium` shows its characters and does nothing else with them.

  Everywhere, control characters, line breaks, characters that change the direction of writing and bytes that are not
  UTF-8 become readable escapes: "\n", "\x07", "\u202e", "\xff". Beyond that:

  - "plot": "$" is escaped, so that matplotlib takes nothing for mathematics;
  - "markdown": all punctuation with a meaning is escaped, including "|", which would end a table's cell;
  - "html": "&", "<", ">" and both quotes become entities, so that the name may stand in an attribute;
  - "csv": a cell that a spreadsheet would run as a formula gets an apostrophe in front; the CSV writer adds quotes;
  - "terminal": nothing more; `printable` adapts the text to a stream's encoding;
  - "json": nothing more; every JSON parser accepts the text, as it holds no surrogates.

  >>> shown("a|b", "markdown"), shown("=1+1", "csv"), shown("US$1_$5", "plot"), shown("k\udce4fer", "terminal")
  ('a\\|b', "'=1+1", 'US\\$1_\\$5', 'k\\xe4fer')
  """
  if medium not in get_args(Medium):
    raise ValueError(f"medium: expected one of {', '.join(get_args(Medium))}, got {medium!r}")
  text = name if name.isascii() and name.isprintable() else "".join(map(_visible, name))
  if medium == "plot":
    return text.replace("$", r"\$")
  if medium == "markdown":
    return _MARKDOWN.sub(r"\\\1", text)
  if medium == "html":
    return html.escape(text, quote=True)
  # After blanks too, and as full-width signs, which some spreadsheets read as the plain ones.
  start = unicodedata.normalize("NFKC", name).lstrip(" ")[:1]
  if medium == "csv" and start and start in "=+-@\t\r\n":
    return f"'{text}"
  return text


def _visible(character: str) -> str:
  code = ord(character)
  if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8
    return f"\\x{code - 0xDC00:02x}"
  if character in _LINE_BREAKS:
    return _LINE_BREAKS[character]
  if character in _UNSEEN or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp", "Cn"):
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 2**16 else f"\\U{code:08x}"
  return character


def width(text: str) -> int:
  """The columns that `text` takes in a terminal: 2 for a Chinese character and the like, 0 for a combining accent.

  >>> width("cat"), width("翘头剪"), width("e\u0301")
  (3, 6, 1)
  """
  return sum(0 if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf") else
             2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def padded(text: str, columns: int) -> str:
  """`text` padded with blanks to `columns` columns of a terminal; `str.ljust` would count characters."""
  return text + " " * max(0, columns - width(text))


def printable(text: str, stream: IO[str]) -> str:
  r"""`text` as `stream` can write it: characters that its encoding lacks become escapes such as "\u7fd8"."""
  encoding = getattr(stream, "encoding", None) or "utf-8"
  return text.encode(encoding, "backslashreplace").decode(encoding)


def missing_glyphs(names: list[str], font: str | None = None) -> str:
  """One line that lists the characters of `names` that a plot's font lacks and draws as boxes; "" if it has all.

  Args:
    names: the names as they will be drawn.
    font: a font file; default: matplotlib's own choice.
  """
  from matplotlib import font_manager, ft2font

  known = ft2font.FT2Font(font or font_manager.findfont(font_manager.FontProperties())).get_charmap()
  missing = sorted({character for name in names for character in name if ord(character) not in known})
  if not missing:
    return ""
  named = ", ".join(f"{character} (U+{ord(character):04X})" for character in missing[:5])
  characters = "1 character" if len(missing) == 1 else f"{len(missing)} characters"
  return (f"plots: the font has no glyph for {characters} of the class names, drawn as boxes: {named}"
          f"{', ...' if len(missing) > 5 else ''}")


@contextlib.contextmanager
def one_warning(names: list[str]) -> Iterator[str]:
  """Around the drawing of `names`: silences matplotlib's warnings about each glyph, and yields one line instead."""
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="Glyph .* missing from")
    yield missing_glyphs(names)
