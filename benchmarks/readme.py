"""Fills the generated blocks of README.md: python benchmarks/readme.py

The table of methods comes from the docstrings of the configs, the digits' figures from benchmarks/results/digits.md. A
test fails where the README is out of date.
"""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[1]


def methods() -> str:
  """One row a config: its file, the first line of its docstring, its published number."""
  rows = ["| config | what | published top-1, % |", "| --- | --- | --- |"]
  for path in sorted((ROOT / "configs").glob("*.py")):
    text = ast.get_docstring(ast.parse(path.read_text()))
    published = re.search(r"Published ([^;.]*(?:\.\d+[^;.]*)*)", text)
    numbers = published[1].strip() if published else "-"
    numbers += ")" if "(" in numbers and ")" not in numbers else ""
    rows.append(f"| [{path.stem}](configs/{path.name}) | {text.splitlines()[0].rstrip('.')} | {numbers} |")
  return "\n".join(rows)


def digits() -> str:
  """The results file without its title."""
  return (ROOT / "benchmarks" / "results" / "digits.md").read_text().split("\n", 1)[1].strip()


def filled(readme: str) -> str:
  """`readme` with its generated blocks up to date."""
  for name, content in (("digits", digits()), ("methods", methods())):
    before, rest = readme.split(f"<!-- {name} -->\n")
    readme = f"{before}<!-- {name} -->\n{content}\n<!-- end -->{rest.split('<!-- end -->', 1)[1]}"
  return readme


if __name__ == "__main__":
  path = ROOT / "README.md"
  path.write_text(filled(path.read_text()))
