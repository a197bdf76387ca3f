"""Every key, file, command and option that a message, a docstring or a page advises exists and works when typed."""

import ast
import contextlib
import functools
import importlib
import io
import pathlib
import pkgutil
import re
import shlex

import pytest

from ltjax import __main__ as program
from ltjax import main
from ltjax.config import load, spec
from ltjax.errors import ConfigError
from tests.config.trees import SHIPPED, shipped

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "launch").iterdir())]
SOURCES = [path for folder in ("ltjax", "configs", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
GAP = "\0"  # stands for a value that a message fills in
PART = rf"(?:[A-Za-z_0-9{GAP}]+)"
# Data sets of each kind come first: most keys are found in one of them.
CONFIGS = sorted(SHIPPED, key=lambda name: name not in ("gcl_digits", "csv", "gcl_folder", "gcl_inat", "gcl_cifar"))


def strings(source: str) -> list[str]:
  """The strings of Python code, docstrings too; of an f-string, the values are gaps."""
  found, inside = [], set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.JoinedStr):
      inside |= {id(part) for part in node.values}
      found.append("".join(str(part.value) if isinstance(part, ast.Constant) else GAP for part in node.values))
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
      found.append(node.value)
  return found


@functools.cache
def texts() -> list[tuple[str, str]]:
  """(file, text) of everything that a user may read."""
  found = [(str(path.relative_to(ROOT)), path.read_text()) for path in PAGES]
  for path in SOURCES:
    found += [(str(path.relative_to(ROOT)), text) for text in strings(path.read_text())]
  return found


def collected(pattern: str) -> list[tuple]:
  """(file, groups ...) of every match, each once."""
  return sorted({(file, *(group or "" for group in match.groups())) for file, text in texts()
                 for match in re.finditer(pattern, text)})


KEYS = collected(rf"--config\.({PART}(?:\.{PART})*)(?:=([^\s`\"{GAP}]*))?")
FILES = collected(r"(configs/[A-Za-z0-9_]+\.py)(:[A-Za-z0-9_=,.]*[A-Za-z0-9_])?")
COMMANDS = collected(r"(?:python -m ltjax(\.[A-Za-z_.]*[A-Za-z_])?|`ltjax)(?: ([a-z_]+))?([^`\n]*)")
NAMES = collected(r"`(ltjax(?:\.[A-Za-z_]\w*)+)[`(]")
SCRIPTS = collected(r"python (benchmarks/[a-z_]+\.py)([^`\n]*)")


@functools.cache
def known_keys() -> tuple[str, ...]:
  """Every key of a shipped config."""
  return tuple(sorted({key for name in SHIPPED for key in load.flat(shipped(name))}))


def accepted(key: str, value: str = "0") -> bool:
  """Whether some shipped config takes `key` on the command line; the value may still have a wrong type."""
  if GAP in key:
    pattern = re.escape(key).replace(re.escape(GAP), r"[\w.]+")
    return any(re.fullmatch(rf"{pattern}(\..*)?", known) for known in known_keys())
  for name in CONFIGS:
    config = shipped(name).copy_and_resolve_references()
    try:
      load.override(config, key, value)
      spec.parse(config)
    except ConfigError as error:
      if not re.search(r"no such key|no such argument|not a key|has no keys|there is no operation|does not name",
                       str(error)):
        return True  # the key is right; only the placeholder is not a value
    else:
      return True
  return False


@pytest.mark.parametrize(("key", "works"), [
    ("representation.epochs", True), ("representation.epoch", False), ("epochs", False), ("dataset.root", True),
    ("dataset.roots", False), ("augment.jitter", True), ("augment.jiter", False), ("representation.lr.warmup", True),
    ("representation.lr.warmpu", False), (f"dataset.{GAP}_column", True), (f"data.{GAP}_column", False)])
def test_a_wrong_key_would_be_found(key, works):
  assert accepted(key) == works


def test_the_collector_sees_docstrings_messages_and_gaps():
  source = '"""Give --config.a=1."""\nraise ValueError(f"give --config.b.{key}=3, or "\n  "--config.c")'
  assert [re.findall(rf"--config\.({PART}(?:\.{PART})*)", text) for text in strings(source)] == [
      ["a"], [f"b.{GAP}", "c"]]
  assert len(KEYS) > 40 and len(FILES) > 60 and len(COMMANDS) > 60 and len(SCRIPTS) > 5


@pytest.mark.parametrize(("file", "key", "value"), [
    found for found in KEYS if found[1] != "KEY" and found[1].strip(GAP + ".")])
def test_every_advised_key_is_one(file, key, value):
  assert accepted(key, value.rstrip(").,;:") or "0"), f"{file} advises --config.{key}"


@pytest.mark.parametrize(("file", "path", "argument"), [found for found in FILES if "NAME" not in found[1]])
def test_every_config_file_exists_and_takes_its_argument(file, path, argument):
  assert (ROOT / path).is_file(), f"{file} names {path}"
  if argument and not argument.isupper():
    load.read(f"{ROOT / path}{argument}")


@functools.cache
def options(command: str) -> str:
  """The output of `ltjax COMMAND --help`."""
  out = io.StringIO()
  with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as caught:
    importlib.import_module(f"ltjax.commands.{command}").main(["--help"])
  assert caught.value.code == 0
  return out.getvalue()


@pytest.mark.parametrize("command", program.names())
def test_every_command_explains_itself(command):
  assert "--" in options(command) and f"  {command}" in program.usage()


@pytest.mark.parametrize(("file", "module", "command", "rest"), [
    found for found in COMMANDS if found[1] or found[2]])
def test_every_command_and_its_options_exist(file, module, command, rest):
  if module:
    assert module in (".main", ".NAME"), f"{file} runs python -m ltjax{module}"
    command = "train"
  assert command in program.names(), f"{file} runs ltjax {command}"
  for option in re.findall(r"(?<!\S)(--[a-z][a-z-]*)", rest):
    assert option == "--config" or option in options(command), f"{file} gives {option} to {command}"


@pytest.mark.parametrize(("file", "name"), NAMES)
def test_every_name_in_the_library_exists(file, name):
  assert pkgutil.resolve_name(name) is not None, f"{file} names {name}"


@pytest.mark.parametrize(("file", "path", "rest"), SCRIPTS)
def test_every_benchmark_and_its_options_exist(file, path, rest):
  assert (ROOT / path).is_file(), f"{file} runs {path}"
  for option in re.findall(r"(?<!\S)\[?(--[a-z][a-z-]*)", rest):
    assert option.removeprefix("--") in (ROOT / path).read_text().split('"""', 2)[2], f"{file} gives {option} to {path}"


def fenced() -> list[tuple[str, str]]:
  """(file, command) of every complete training command in a block of code, its continued lines joined."""
  found = []
  for path in PAGES:
    for block in re.findall(r"```(?:sh|bash|console)?\n(.*?)```", path.read_text(), re.DOTALL):
      for line in block.replace("\\\n", " ").splitlines():
        if (match := re.search(r"(?:python3? -m ltjax\.main|ltjax train) (.*)", line)) and "$" not in line:
          found.append((str(path.relative_to(ROOT)), match[1]))
  return found


@pytest.mark.parametrize(("file", "line"), fenced())
def test_every_training_command_of_a_page_parses(file, line, monkeypatch):
  monkeypatch.chdir(ROOT)
  arguments = [word for word in shlex.split(line, comments=True) if word not in ("&", "...")]
  given = load.parse(arguments, main.OPTIONS, "")
  try:
    spec.parse(given["config"])
  except ConfigError as error:
    assert "module 'mine" in str(error), error  # a module that the reader is to write


def test_there_are_such_commands():
  assert len(fenced()) >= 4
