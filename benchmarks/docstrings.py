"""Makes Markdown of docstrings, for the site: equations and examples become code, in which no sign means anything."""

import re

import griffe


class Docstrings(griffe.Extension):
  """An extension of Griffe, which mkdocstrings reads docstrings with."""

  def on_instance(self, *, obj, **_):
    """Changes the docstring of every object as it is read."""
    if obj.docstring:
      obj.docstring.value = "\n\n".join(map(paragraph, obj.docstring.value.split("\n\n")))


def paragraph(text: str) -> str:
  """A paragraph of a docstring as Markdown: an equation or an example is fenced, all else stays.

  >>> paragraph("loss_i = -log p_i")
  '```text\\nloss_i = -log p_i\\n```'
  """
  if text.startswith(">>>"):
    return f"```pycon\n{text}\n```"
  is_equation = re.match(r"[\w|(][^.]{0,60}( = | <- |: )", text) and not text.rstrip().endswith((".", ":"))
  is_section = re.match(r"(Args|Returns|Raises|References|Attributes|Yields|Note|Examples?):", text)
  return f"```text\n{text}\n```" if is_equation and not is_section else text
