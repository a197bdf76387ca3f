"""Every module imports only modules below it, and nothing heavy without need."""

import ast
import graphlib
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ltjax.commands import moved

ROOT = Path(__file__).parents[1]
SOURCES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
           for path in sorted((ROOT / "ltjax").rglob("*.py"))}

# From the lowest level to the highest. A module belongs to the longest of these names that its own starts with, and may
# import from lower levels and from its own package.
LEVELS = (
    ("ltjax.commands.moved",),
    ("ltjax", "ltjax.errors"),
    ("ltjax.losses", "ltjax.schedules", "ltjax.distributed", "ltjax.optim", "ltjax.recipes"),
    ("ltjax.augment", "ltjax.workdir"),
    ("ltjax.models", "ltjax.data"),
    ("ltjax.metrics", "ltjax.step"),
    ("ltjax.posthoc",),
    ("ltjax.report",),
    ("ltjax.config",),
    ("ltjax.stage",),
    ("ltjax.bridge",),
    ("ltjax.train",),
    ("ltjax.main",),
    ("ltjax.commands",),
    ("ltjax.__main__",))
LEVEL = {family: level for level, families in enumerate(LEVELS) for family in families}

# TensorFlow can be found, as libraries like to check, but to import it fails and is remembered: a library may catch the
# error.
WITHOUT_TENSORFLOW = """
import importlib.machinery, sys

class Refuse:
  asked = []

  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in ("tensorflow", "tensorflow_datasets"):
      return importlib.machinery.ModuleSpec(name, self)

  def create_module(self, spec):
    self.asked.append(spec.name)
    raise ImportError(f"{spec.name} must not be imported", name=spec.name)

  def exec_module(self, module):
    raise AssertionError

sys.meta_path.insert(0, Refuse())
"""
TINY_RUN = """
import pathlib, tempfile
from tests import tiny

config = tiny.config("gcl_digits", backbone=tiny.ONE_CONV, epochs=1, representation__mixup=0.0)
with tempfile.TemporaryDirectory() as folder:
  results = tiny.run(config, pathlib.Path(folder) / "run")
  assert (pathlib.Path(folder) / "run" / "results.json").is_file()
"""


def python(code: str) -> list[str]:
  """Runs `code` in a fresh interpreter, at the root of the repository; returns its last line, parsed as JSON."""
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout.splitlines()[-1])


def loaded_by(code: str) -> set[str]:
  return set(python(f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"))


def imports(path: Path) -> list[tuple[str, bool]]:
  """(module, whether it is imported with the file) of every import in a source file; `a.b` for `from a import b`."""
  tree, found = ast.parse(path.read_text()), []
  inside = {id(node) for function in ast.walk(tree) if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            for node in ast.walk(function)}
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      found += [(alias.name, id(node) not in inside) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      found += [(f"{node.module}.{alias.name}", id(node) not in inside) for alias in node.names]
  return found


def family(module: str) -> str:
  """The longest name in `LEVELS` that `module` is or is inside of."""
  return max((name for name in LEVEL if f"{module}.".startswith(f"{name}.")), key=len)


def below(module: str) -> set[str]:
  """The modules of ltjax that `module` imports. A package whose submodule is imported is not counted beside it."""
  found = {name if name in SOURCES else name.rpartition(".")[0] for name, _ in imports(SOURCES[module])
           if name.split(".")[0] == "ltjax"}
  return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}


# -- levels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", SOURCES)
def test_imports_point_downwards(module):
  own = family(module)
  for name in below(module):
    other = family(name)
    assert other == own or LEVEL[other] < LEVEL[own], f"{module} imports {name}, which is not below it"


def test_every_module_has_one_level_and_every_level_an_existing_module():
  assert set(LEVEL) <= set(SOURCES)
  assert {module for module in SOURCES if family(module) == "ltjax"} == {"ltjax"}, "a module without a level"


def test_no_modules_import_each_other():
  graphlib.TopologicalSorter({module: below(module) for module in SOURCES}).prepare()  # raises for a cycle


@pytest.mark.parametrize("module", ["ltjax.train", "ltjax.main"])
def test_the_loop_and_the_program_import_few_modules(module):
  assert len(below(module)) <= 9, sorted(below(module))


def test_the_package_can_be_read_at_a_glance():
  entries = sorted(path.name for path in (ROOT / "ltjax").iterdir() if path.name != "__pycache__")
  assert len(entries) <= 22, entries


# -- heavy libraries -------------------------------------------------------------------------------------------------


def test_the_refusal_refuses():
  code = WITHOUT_TENSORFLOW + """
import importlib.util, json
assert importlib.util.find_spec("tensorflow") and not Refuse.asked
for name in ("tensorflow", "tensorflow_datasets", "tensorflow.io"):
  try:
    importlib.import_module(name)
  except ImportError:
    pass
print(json.dumps(Refuse.asked))
"""
  assert python(code) == ["tensorflow", "tensorflow_datasets", "tensorflow"]


@pytest.mark.parametrize("module", ["ltjax", "ltjax.losses", "ltjax.metrics", "ltjax.data.samplers",
                                    "ltjax.data.longtail", "ltjax.augment.images"])
def test_pure_functions_load_neither_tensorflow_nor_linen(module):
  loaded = loaded_by(f"import {module}")
  assert module in loaded
  assert not {"tensorflow", "tensorflow_datasets", "flax.linen", "orbax.checkpoint", "matplotlib"} & loaded


def test_the_command_line_loads_what_it_needs_at_once():
  loaded = loaded_by("import ltjax.main")
  assert "flax.linen" in loaded
  assert not {"tensorflow", "tensorflow_datasets", "matplotlib", "sklearn", "pandas"} & loaded


def test_a_complete_run_on_digits_needs_no_tensorflow():
  assert python(WITHOUT_TENSORFLOW + TINY_RUN + "import json\nprint(json.dumps(Refuse.asked))") == []


def test_the_reader_of_imports_sees_them(tmp_path):
  path = tmp_path / "source.py"
  path.write_text("import a.b as c\nfrom flax import linen as nn\ndef f():\n  import tensorflow as tf\n")
  assert imports(path) == [("a.b", True), ("flax.linen", True), ("tensorflow", False)]


@pytest.mark.parametrize("name", SOURCES)
def test_heavy_imports_stay_in_their_modules(name):
  path = SOURCES[name]
  for module, with_the_file in imports(path):
    if module == "flax.linen" or module.startswith("flax.linen."):
      assert path.is_relative_to(ROOT / "ltjax" / "models"), f"linen outside models: {module}"
    if module.split(".")[0] in ("tensorflow", "tensorflow_datasets"):
      assert not with_the_file, f"{module} must be imported inside the function that needs it"
      assert path.is_relative_to(ROOT / "ltjax" / "data"), f"TensorFlow outside data: {module}"
    if module.split(".")[0] == "orbax":
      assert path == ROOT / "ltjax" / "workdir" / "checkpoint.py", f"Orbax outside checkpoint.py: {module}"


@pytest.mark.parametrize("old", moved.MODULES)
def test_an_old_path_is_the_module_that_moved(old):
  found = importlib.import_module(old)
  assert found is importlib.import_module(f"ltjax.{moved.MODULES[old]}") and found.__spec__.name == found.__name__
