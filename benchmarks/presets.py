"""The presets of the configs, from their docstrings: config, preset, source, published number."""

import ast
import pathlib
import re
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]


class Preset(NamedTuple):
  """A row of the table."""

  config: str  # path from the root
  preset: str
  source: str
  number: str


def rows() -> list[Preset]:
  """Every line `preset=NAME    source; number` of a config's docstring, in the order of the configs."""
  found = []
  for path in sorted((ROOT / "configs").glob("*.py")):
    doc = ast.get_docstring(ast.parse(path.read_text()))
    for line in re.findall(r"^    preset=(\w+) +(.+); (.+)$", doc, re.MULTILINE):
      found.append(Preset(f"configs/{path.name}", *line))
  return found


def table() -> str:
  """The rows as Markdown."""
  lines = ["| config | preset | source | published top-1 in % |", "| --- | --- | --- | --- |"]
  for row in rows():
    name = pathlib.Path(row.config).stem
    lines.append(f"| [{name}]({row.config}) | {row.preset} | {row.source} | {row.number} |")
  return "\n".join(lines)
