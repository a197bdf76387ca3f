"""The configs that come with ltjax: where they are, and what their files say about themselves."""

import ast
import os
import pathlib

from ltjax.errors import ConfigError, nearest


def folder() -> pathlib.Path:
  """The folder of the configs: `configs/` of the current folder, or that of the clone that ltjax is imported from.

  Raises:
    ConfigError: there is neither; they are in the repository, not in the installed package.
  """
  for found in (pathlib.Path("configs"), pathlib.Path(__file__).parents[2] / "configs"):
    if (found / "folder.py").is_file():
      return found
  raise ConfigError("there is no folder configs/ here; run from the root of the repository, which has the configs")


def names() -> list[str]:
  """The names of the configs, sorted."""
  return sorted(path.stem for path in folder().glob("*.py"))


def path(name: str) -> str:
  """The file of a config, as it is given behind --config: "gcl_cifar" or a path, each with or without an argument.

  Raises:
    ConfigError: there is no such config.
  """
  stem, colon, argument = name.partition(":")
  if stem.endswith(".py") or os.sep in stem:
    return name
  if stem not in names():
    raise ConfigError(f"there is no config {stem!r}{nearest(stem, names())}; `ltjax configs` lists them")
  return f"{folder() / stem}.py{colon}{argument}"


def description(file: pathlib.Path) -> str:
  """The docstring of a config's file."""
  return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""


def parameter(file: pathlib.Path) -> tuple[str, str] | None:
  """(name, default) of the text behind the colon, as the file's `get_config` calls it; None where it takes none."""
  tree = ast.parse(file.read_text(encoding="utf-8"))
  made = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "get_config")
  return (made.args.args[0].arg, ast.unparse(made.args.defaults[0]).strip("'\"")) if made.args.defaults else None
