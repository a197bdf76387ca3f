import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "ltjax").rglob("*.py"))

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
from ltjax.config import bind as build
from tests import tiny

build.model = tiny.one_conv  # compiles faster, imports the same
config = tiny.config("gcl_digits", epochs=1, representation__mixup=0.0, classifier__mixup=0.0)
with tempfile.TemporaryDirectory() as folder:
  results = tiny.run(config, pathlib.Path(folder) / "run")
  assert (pathlib.Path(folder) / "run" / "results.json").is_file()
"""


def python(code: str) -> list[str]:
  """Runs `code` in a fresh interpreter, at the root of the repository; what it then prints last, as JSON."""
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


def test_the_command_line_loads_no_tensorflow():
  loaded = loaded_by("import ltjax.main")
  assert "flax.linen" in loaded
  assert not {"tensorflow", "tensorflow_datasets"} & loaded


def test_a_whole_run_on_digits_needs_no_tensorflow():
  assert python(WITHOUT_TENSORFLOW + TINY_RUN + "import json\nprint(json.dumps(Refuse.asked))") == []


def test_the_reader_of_imports_sees_them(tmp_path):
  path = tmp_path / "source.py"
  path.write_text("import a.b as c\nfrom flax import linen as nn\ndef f():\n  import tensorflow as tf\n")
  assert imports(path) == [("a.b", True), ("flax.linen", True), ("tensorflow", False)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_imports_stay_in_their_places(path):
  for module, with_the_file in imports(path):
    if module == "flax.linen" or module.startswith("flax.linen."):
      assert path.is_relative_to(ROOT / "ltjax" / "models"), f"linen outside models: {module}"
    if module.split(".")[0] in ("tensorflow", "tensorflow_datasets"):
      assert not with_the_file, f"{module} must be imported inside the function that needs it"
      assert path.is_relative_to(ROOT / "ltjax" / "data"), f"TensorFlow outside data: {module}"
    if module.split(".")[0] == "orbax":
      assert path == ROOT / "ltjax" / "workdir" / "checkpoint.py", f"Orbax outside checkpoint.py: {module}"
