"""Every command explains itself with an example, what is no command says so, and `ltjax configs` lists what is true."""

import importlib
import pkgutil
import re
import subprocess
import sys

import pytest

from ltjax import __main__ as program
from ltjax.commands import configs, moved
from ltjax.config import load, parse, shipped, spec
from ltjax.config.keys import flat
from ltjax.errors import ConfigError
from tests.test_imports import ROOT, SOURCES


@pytest.mark.parametrize("command", program.names())
def test_help_has_an_example_and_exit_code_0(command, capsys):
  with pytest.raises(SystemExit) as end:
    program.main([command, "--help"])
  assert end.value.code == 0
  text = capsys.readouterr().out
  example = r"python -m ltjax.main --config=" if command == "train" else rf"python -m ltjax {command}\b.*\w"
  assert re.search(example, text)
  assert "usage: __main__" not in text and len(text.splitlines()) >= 5


def test_help_lists_every_command(capsys):
  program.main(["--help"])
  listed = re.findall(r"^  (\w+) +(\S.*\.)$", capsys.readouterr().out, re.MULTILINE)
  assert [name for name, _ in listed] == program.names()


def test_a_module_that_is_no_command_says_so(capsys):
  commands = {f"ltjax.commands.{name}" for name in program.names()}
  for module in (*SOURCES, "ltjax.commands.nosuch", "ltjax.commands.running.nosuch"):
    if module in commands | {"ltjax", "ltjax.main", "ltjax.__main__"}:
      moved.refuse(["python", "-m", module])  # returns
      continue
    with pytest.raises(SystemExit) as end:
      moved.refuse(["python", "-m", module])
    assert end.value.code == 2, module
    sentence = r"^error: ltjax[\w.]* is a (module to import, not a program|command: run)"
    assert re.search(sentence, capsys.readouterr().err)


@pytest.mark.parametrize("module", ["ltjax.commands.running.engine", "ltjax.commands.planning", "ltjax.data.tables"])
def test_the_interpreter_ends_with_2(module):
  done = subprocess.run([sys.executable, "-m", module], cwd=ROOT, capture_output=True, text=True, timeout=120)
  assert done.returncode == 2 and done.stderr.startswith(f"error: {module} is a module") and not done.stdout


def test_every_command_is_also_a_program():
  for name in program.names():
    source = (ROOT / "ltjax" / "commands" / f"{name}.py").read_text()
    assert source.endswith('if __name__ == "__main__":\n  main(sys.argv[1:])\n'), name
  assert {found.name for found in pkgutil.iter_modules(importlib.import_module("ltjax.commands").__path__)
          if not found.ispkg} == {*program.names(), "moved"}


# -- ltjax configs ----------------------------------------------------------------------------------------------------


def test_the_list_has_every_config_and_its_presets():
  lines = configs.overview().splitlines()
  assert [line.split()[0] for line in lines[:-2]] == sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
  gcl = next(line for line in lines if line.startswith("gcl_cifar "))
  assert "Gaussian clouded logit adjustment" in gcl and gcl.endswith("[code, paper, short]")


@pytest.mark.parametrize("name", ["gcl_cifar:paper", "folder", "frozen:ldam", "lift_cifar", "bbn_cifar", "camc_inat",
                                  "csv", "lade_large:inat", "mislas_cifar"])
def test_every_key_takes_the_value_that_is_listed(name):
  config = load.read(shipped.path(name))
  listed = configs.keys(config)
  assert {key for key, (_, _, is_set) in listed.items() if is_set} == {
      key for key in flat(config) if not key.startswith("preset.")}
  defaults = [key for key, (_, _, is_set) in listed.items() if not is_set]
  assert defaults
  for key, (value, kind, _) in listed.items():
    if not value.endswith(" ..."):
      load.override(config, key, value)
    assert kind
  assert spec.parse(config).stages  # also with every default written out
  with pytest.raises(ConfigError):
    load.override(config, f"{defaults[0]}x.y", "1")


def test_every_example_of_arguments_works():
  for name in shipped.names():
    path = shipped.path(name)
    found = re.search(r"arguments?, as in --config=(\S+)", configs.page(name))
    taken = shipped.parameter(load.split(path)[0])
    assert bool(found) == bool(taken), name
    if found:
      load.read(found[1])


def test_the_page_of_a_config(capsys):
  configs.main(["gcl_cifar:cifar100,paper", "--key=representation.adjust"])
  out = capsys.readouterr().out
  assert "Published on CIFAR-10-LT 82.68" in out and "cloud_size              log | cosine" in out
  keys = re.findall(r"^  \[?(representation\.[\w.]+)\]? +(\S+) +(.+)$", out, re.MULTILINE)
  assert ("representation.adjust.noise_scale", "1.0", "float in [0, inf)") in keys
  assert ("representation.adjust.margin", "0.0", "float in [0, inf)") in keys
  assert all("adjust" in key for key, *_ in keys) and "classifier" not in out.split("\nkeys")[1]


def test_an_unknown_config_is_refused(capsys):
  with pytest.raises(SystemExit) as end:
    configs.main(["gcl_cifr"])
  assert end.value.code == 2
  assert capsys.readouterr().err == (
      "error: there is no config 'gcl_cifr' (did you mean 'gcl_cifar'?); `ltjax configs` lists them\n")


def test_configs_are_found_from_any_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert shipped.path("gcl_digits:20") == f"{ROOT / 'configs' / 'gcl_digits.py'}:20"
  parse(load.read(shipped.path("gcl_digits:20")))
  monkeypatch.setattr(shipped, "__file__", str(tmp_path / "ltjax" / "config" / "shipped.py"))
  with pytest.raises(ConfigError, match="run from the root of the repository"):
    shipped.names()
