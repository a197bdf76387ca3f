"""A config is a Python file with a get_config; every fault in it is one line that says where it is."""

import pathlib

import pytest

from ltjax import main
from ltjax.config import load
from ltjax.errors import ConfigError
from tests.config.trees import shipped

DIGITS = """from ltjax import recipes
def get_config({parameters}):
  config = recipes.digits_lt(imbalance=5)
  config.stages = ("representation",)
  config.representation = recipes.stage(
      epochs=1, batch_size=32, lr=0.1, optimizer=recipes.sgd(1e-4), loss=dict(name="cross_entropy"))
  {more}
  return config
"""


def write(path: pathlib.Path, parameters: str = "", more: str = "") -> pathlib.Path:
  """A config file for the digits."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(DIGITS.format(parameters=parameters, more=more))
  return path


def refused(value) -> str:
  with pytest.raises(ConfigError) as caught:
    load.read(str(value))
  assert "\n" not in str(caught.value)
  return str(caught.value)


def test_a_file_gives_its_config():
  assert load.read("configs/gcl_digits.py").to_dict() == shipped("gcl_digits").to_dict()


def test_the_text_after_the_colon_is_the_argument(tmp_path):
  path = write(tmp_path / "mine.py", "text='5'", "config.seed = int(text)")
  assert load.read(f"{path}").seed == 5
  assert load.read(f"{path}:7").seed == 7


def test_an_argument_for_a_config_that_takes_none_is_refused(tmp_path):
  path = write(tmp_path / "mine.py")
  assert load.read(str(path)).seed == 0
  assert "get_config takes no argument, but the command line gives '5'" in refused(f"{path}:5")


@pytest.mark.parametrize("folder", ["a:b", "C:", "12:34:56"])
def test_the_path_of_a_config_may_have_colons(tmp_path, folder):
  path = write(tmp_path / folder / "mine.py", "text='5'", "config.seed = int(text)")
  assert load.read(str(path)).seed == 5
  assert load.read(f"{path}:7").seed == 7


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  write(tmp_path / "mine.py")
  assert load.read("~/mine.py").stages == ("representation",)
  assert "no file '~/mein.py'" in refused("~/mein.py") and "mine.py" in refused("~/mein.py")


@pytest.mark.parametrize(("more", "parts"), [
    ("import sys; sys.exit(3)", "line 7: SystemExit: 3"),
    ("raise SystemExit", "line 7: SystemExit"),
    ("1 / 0", "line 7: ZeroDivisionError: division by zero"),
    ("config.representation.epochs = 'x'", "line 7: TypeError"),
    ("config.representation.epoch", "line 7: AttributeError | epochs"),
    ("raise ValueError('one\\ntwo')", "line 7: ValueError: two"),
    ("return 3", "get_config returns 3, expected a ConfigDict"),
    ("return config.to_dict()", "get_config returns {'augment'"),
    (")", "line 7: SyntaxError")])
def test_a_fault_in_the_file_is_one_line(tmp_path, more, parts):
  message = refused(write(tmp_path / "mine.py", more=more))
  assert message.startswith(f"--config={tmp_path / 'mine.py'}: ")
  for part in parts.split(" | "):
    assert part in message


@pytest.mark.parametrize(("text", "part"), [
    ("", "the file defines no get_config()"), ("import no_such_module", "line 1: ModuleNotFoundError"),
    ("\x00", "the config file could not be built"), ("import sys\nsys.exit(0)", "line 2: SystemExit: 0")])
def test_a_file_without_a_config_is_one_line(tmp_path, text, part):
  (tmp_path / "mine.py").write_text(text)
  assert part in refused(tmp_path / "mine.py")


@pytest.mark.parametrize(("value", "parts"), [
    ("configs/gcl_digit.py", "no file 'configs/gcl_digit.py' (did you mean 'configs/gcl_digits.py'?)"),
    ("nowhere/x.py", "no file 'nowhere/x.py' | run from the root of the repository"), ("", "no file ''"),
    ("configs", "no file 'configs'"), ("README.md", "a config is a Python file, configs/NAME.py")])
def test_a_missing_file_gets_the_nearest(value, parts):
  message = refused(value)
  for part in parts.split(" | "):
    assert part in message


def test_the_config_json_of_a_run_is_not_a_config_file(tmp_path):
  (tmp_path / "config.json").write_text("{}")
  message = refused(tmp_path / "config.json")
  assert "a config is a Python file" in message and f"--workdir={tmp_path}" in message


@pytest.mark.parametrize(("arguments", "message"), [
    (("--workdir=x",), "--config is missing"),
    (("--config=configs/gcl_digits.py",), "--workdir is missing; try --workdir=runs/digits"),
    (("--config=configs/gcl_digits.py", "--workdir=x", "--epochs=3"), "did you mean --config.representation.epochs?"),
    (("--config=configs/gcl_digits.py", "--workdir=x", "--config.seed=-1"), "seed: expected an integer")])
def test_the_program_prints_one_error_and_exits_with_2(arguments, message, capsys, tmp_path, monkeypatch):
  monkeypatch.setattr("ltjax.distributed.processes.leave", lambda code, words: None)
  assert main.main(list(arguments)) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("error: ") and message in line
  assert not pathlib.Path("x").exists()


def test_changes_are_listed_beside_the_values_of_the_file():
  given = load.parse(["--config=configs/ce_digits.py", "--config.representation.lr=0.1", "--config.seed=0",
                      "--config.representation.epochs", "7"], {}, "")
  changes = {key: (value, before) for key, value, before in given["changes"]}
  assert changes["representation.epochs"] == ("7", "60") and changes["representation.lr"] == ("0.1", "nothing")
  assert changes["representation.lr.warmup"] == ("nothing", "5") and "seed" not in changes
