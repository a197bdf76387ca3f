"""The command line as a user meets it: a mistake costs one line and leaves nothing behind, a signal costs nothing."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from ltjax import main
from ltjax.config.spec import RunSpec
from ltjax.errors import LtjaxError
from ltjax.workdir import folder
from tests import tiny
from tests.processes import flags

pytestmark = pytest.mark.usefixtures("no_pictures")

ROOT = pathlib.Path(__file__).parents[1]
DIGITS = "--config=configs/ce_digits.py"
CIFAR10_FILE, CIFAR100_FILE = 10000 * 3073, 50000 * 3074  # bytes


def start(*arguments, **environment) -> subprocess.Popen:
  return subprocess.Popen(
      [sys.executable, "-m", "ltjax.main", *map(str, arguments)], cwd=ROOT, text=True, stdout=subprocess.PIPE,
      stderr=subprocess.PIPE, env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONDONTWRITEBYTECODE": "1"} | environment)


def finished(process: subprocess.Popen, timeout: float = 120) -> tuple[int, str, str]:
  """(exit code, stdout, stderr)."""
  try:
    out, err = process.communicate(timeout=timeout)
  finally:
    process.kill()
  return process.returncode, out, err


def sparse_file(path: pathlib.Path, size: int, first_bytes: bytes = b"") -> pathlib.Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("wb") as file:
    file.write(first_bytes)
    file.truncate(size)
  return path


# -- one line, exit code 2, nothing written ----------------------------------------------------------------------------


def _owned_by(config, workdir):
  """Makes the work folder one of a run that has just started."""
  with folder.held(config, workdir, "a command", tiny.dataset(config)):
    pass


def another_run(tmp_path):
  _owned_by(tiny.config("ce_digits"), tmp_path / "run")
  return [DIGITS], "was written by another config: ", "representation.epochs was 2, is 60", "dataset.imbalance was 5.0"


def a_file_as_workdir(tmp_path):
  (tmp_path / "run").write_text("x")
  return [DIGITS], "--workdir: ", "run is a file"


def a_broken_config_file(tmp_path):
  (tmp_path / "broken.py").write_text("from ltjax import recipes\n\ndef get_config():\n  return recipes.cifarlt()\n")
  return [f"--config={tmp_path}/broken.py"], "broken.py: the config file could not be built: line 4", "cifarlt"


def a_config_file_of_something_else(tmp_path):
  (tmp_path / "other.py").write_text("def get_config():\n  return 3\n")
  return [f"--config={tmp_path}/other.py"], "other.py: get_config returns 3, expected a ConfigDict"


def a_truncated_cifar_file(tmp_path):
  sparse_file(tmp_path / "data/cifar-10-batches-bin/data_batch_1.bin", CIFAR10_FILE - 1)
  return ["--config=configs/gcl_cifar.py", f"--config.dataset.dir={tmp_path}/data"], "data_batch_1.bin: ", \
      "30,729,999 bytes, expected 30,730,000"


COMMANDS = {
    "misspelt key": [DIGITS, "--config.representation.epoch=3"],
    "key of no block": [DIGITS, "--config.representation.adjust.scale=3"],
    "a word as a block": [DIGITS, "--config.representation.lr=fast"],
    "wrong type": [DIGITS, "--config.representation.epochs=1.5"],
    "out of range": [DIGITS, "--config.dataset.imbalance=0.5"],
    "not in the list": [DIGITS, "--config.representation.loss.name=focall"],
    "misspelt config file": ["--config=configs/ce_digit.py"],
    "number of the config file's argument": ["--config=configs/gcl_cifar.py:many"],
    "empty argument of the config file": ["--config=configs/gcl_cifar.py:imbalance="],
    "wrong argument of the config file": ["--config=configs/ce_digits.py:many"],
    "stray argument": [DIGITS, "now"],
    "no config": [],
}
SAYS = {
    "misspelt key": ["--config.representation.epoch: ", "did you mean 'representation.epochs'?"],
    "key of no block": ["--config.representation.adjust.scale: representation.adjust is None and has no keys; give",
                        "--config.representation.adjust=\"dict(name='...', scale=3)\""],
    "a word as a block": ["--config.representation.lr: expected a dict or a number, got 'fast'",
                          "--config.representation.lr.at="],
    "wrong type": ["representation.epochs: expected an integer of at least 1, got 1.5"],
    "out of range": ["dataset.imbalance: ", "at least 1, got 0.5"],
    "not in the list": ["representation.loss.name: ", "did you mean 'focal'?", "class_balanced_focal, cross_entropy, "],
    "misspelt config file": ["no file 'configs/ce_digit.py' (did you mean 'configs/ce_digits.py'?)"],
    "number of the config file's argument": ["the config's argument 'many': 'many' is not a choice; there are "],
    "empty argument of the config file": ["the config's argument imbalance: expected a number, got ''"],
    "wrong argument of the config file": ["ce_digits.py:many: ", "built: line", "ValueError: ", "'many'"],
    "stray argument": ["unexpected argument 'now'"],
    "no config": ["--config is missing; try --config="],
}
FOUND_IN_THE_FOLDER = [
    another_run, a_file_as_workdir, a_broken_config_file, a_config_file_of_something_else, a_truncated_cifar_file]


@pytest.mark.parametrize("case", [*COMMANDS, *FOUND_IN_THE_FOLDER], ids=lambda case: getattr(case, "__name__", case))
def test_a_mistake_costs_one_line_and_exit_code_2(case, tmp_path, capsys):
  command, *parts = (COMMANDS[case], *SAYS[case]) if case in COMMANDS else case(tmp_path)
  before = contents(tmp_path)
  capsys.readouterr()
  code = main.main([*command, f"--workdir={tmp_path / 'run'}"])
  out, err = capsys.readouterr()
  assert (code, out) == (2, ""), err
  assert err.startswith("error: ") and err.count("\n") == 1
  for part in parts:
    assert part in err
  assert contents(tmp_path) == before


def contents(root):
  return {path: path.is_file() and path.stat().st_size < 10**6 and path.read_bytes() for path in root.rglob("*")}


def test_a_misspelt_option_of_the_program():
  code, out, err = finished(start(DIGITS, "--workdri=runs/x"))
  assert (code, out) == (2, "")
  assert err.startswith("error: ") and err.count("\n") == 1
  assert "--workdri: " in err and "did you mean 'workdir'?" in err


def test_a_batch_that_the_devices_do_not_divide(tmp_path):
  code, _, err = finished(start(DIGITS, "--config.representation.batch_size=36", f"--workdir={tmp_path / 'run'}",
                                XLA_FLAGS=flags(devices=8)))
  assert code == 2
  assert err == ("error: representation.batch_size: 36 is not divisible by 8 devices; valid are its multiples, "
                 "the nearest 32 and 40\n")
  assert not contents(tmp_path)


def test_help_names_every_option():
  code, out, _ = finished(start("--help"))
  assert code == 0
  for part in ("python -m ltjax.main --config=configs/gcl_digits.py --workdir=", "--config=FILE", "--workdir=",
               "Exit codes: 0 finished"):
    assert part in out


# -- errors that only the data reveal, in this process -----------------------------------------------------------------


def refused(tmp_path, config) -> str:
  with pytest.raises(LtjaxError) as caught:
    main.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()
  return str(caught.value)


@pytest.mark.parametrize(("overrides", "message"), [
    (dict(representation__batch_size=10**6), "representation.batch_size: 1000000 does not fit"),
    (dict(classifier__batch_size=2000), "classifier.batch_size: 2000 does not fit"),
    (dict(dataset__imbalance=200.0), "class 9 would have 0 images"),
    (dict(dataset__profile="step", dataset__imbalance=1000.0), "class 5 would have 0 images (5 such classes of 10)"),
    (dict(dataset__profile="exponentiel"), "'exponentiel'"),
])
def test_values_that_do_not_fit_the_data_are_refused(tmp_path, overrides, message):
  assert message in refused(tmp_path, tiny.config(backbone=tiny.ONE_CONV, **overrides))


@pytest.mark.parametrize(("name", "file", "size", "first", "message"), [
    ("cifar10", None, 0, b"", "no folder"),
    ("cifar10", "cifar-10-batches-bin/test_batch.bin", CIFAR10_FILE, b"",
     "data_batch_1.bin: missing; expected a CIFAR-10 binary file of 30,730,000 bytes"),
    ("cifar10", "cifar-10-batches-bin/data_batch_1.bin", 0, b"", "data_batch_1.bin: 0 bytes, expected 30,730,000"),
    ("cifar10", "cifar-10-batches-bin/data_batch_1.bin", CIFAR10_FILE, b"\x0a", "record 0 has label 10, expected 0..9"),
    ("cifar10", "data_batch_1.bin", CIFAR10_FILE // 2, b"", "data_batch_1.bin: 15,365,000 bytes, expected 30,730,000"),
    ("cifar100", "cifar-100-binary/train.bin", CIFAR100_FILE + 1, b"",
     "train.bin: 153,700,001 bytes, expected 153,700,000"),
    ("cifar100", "cifar-100-binary/test.bin", 1, b"", "train.bin: missing; expected a CIFAR-100 binary file of "),
])
def test_cifar_files(tmp_path, name, file, size, first, message):
  if file:
    sparse_file(tmp_path / "data" / file, size, first)
  block = dict(name=name, dir=str(tmp_path / "data"), imbalance=10.0, profile="exponential", subset_seed=0)
  said = refused(tmp_path, tiny.config("ce_digits", dataset=block))
  assert message in said and str(tmp_path / "data") in said


def test_a_cifar_file_that_may_not_be_read(tmp_path, monkeypatch):
  path = sparse_file(tmp_path / "data" / "train.bin", CIFAR100_FILE)

  def refuse(file, *args):
    raise PermissionError(13, "Permission denied", str(file))

  monkeypatch.setattr("numpy.fromfile", refuse)
  block = dict(name="cifar100", dir=str(path.parent), imbalance=10.0, profile="exponential", subset_seed=0)
  said = refused(tmp_path, tiny.config("ce_digits", dataset=block))
  assert f"dataset: {path} cannot be read (Permission denied)" in said


def test_a_wrong_work_folder_is_refused_before_the_data_are_read(tmp_path, monkeypatch):
  _owned_by(tiny.config(backbone=tiny.ONE_CONV), tmp_path)
  monkeypatch.setattr(RunSpec, "read", lambda *args: pytest.fail("the data were read"))
  with pytest.raises(LtjaxError, match="seed was 0, is 1"):
    main.run(tiny.config(backbone=tiny.ONE_CONV, seed=1), tmp_path)


def test_post_hoc_results_do_not_depend_on_stops(tmp_path):
  config = tiny.config(backbone=tiny.ONE_CONV, head=dict(name="Cosine"), epochs=1, dataset__holdout=0.1, posthoc=(
      dict(name="tau_normalize", tau=(0.0, 0.5, 1.0)), dict(name="nearest_class_mean", stage="representation")))
  with tiny.shared_compilations():
    straight = tiny.run(config, tmp_path / "straight")["posthoc"]
    with pytest.raises(main.Interrupted):
      tiny.run(config, tmp_path / "stopped", stop_after=6)
    assert tiny.saved_steps(tmp_path / "stopped", "classifier")
    assert tiny.run(config, tmp_path / "stopped")["posthoc"] == straight
    assert tiny.run(config, tmp_path / "stopped")["posthoc"] == straight  # finished: evaluated again, nothing trained


# -- signals -----------------------------------------------------------------------------------------------------------


def lines(workdir):
  log = workdir / "representation" / "metrics.jsonl"
  return log.read_text().splitlines() if log.exists() else []


def interrupted(number, command, workdir, **environment):
  """Runs `command` until it has logged another loss, sends the signal, and checks the last output."""

  def losses():
    return sum('"loss"' in line for line in lines(workdir))

  there, process = losses(), start(*command, **environment)
  deadline = time.monotonic() + 120
  while losses() <= there and process.poll() is None and time.monotonic() < deadline:
    time.sleep(0.02)
  process.send_signal(number)
  code, _, err = finished(process, timeout=30)
  assert code == 75, err
  assert signal.Signals(number).name in err and "run the same command to continue" in err and str(workdir) in err
  assert "Traceback" not in err
  assert not (workdir / "results.json").exists()


def test_stopped_twice_and_continued_is_as_never_stopped(tmp_path):
  options = [DIGITS, "--config.backbone=dict(name='tests.tiny:OneConv')", "--config.dataset.imbalance=134",
             "--config.representation.epochs=12", "--config.log_every_steps=5"]
  straight, stopped = tmp_path / "straight", tmp_path / "in Stücken"
  code, out, err = finished(start(*options, f"--workdir={straight}"))
  assert code == 0, err
  assert "test accuracy, %" in out and str(straight / "results.json") in out

  command = [*options, f"--workdir={stopped}"]
  for number in (signal.SIGINT, signal.SIGTERM):
    interrupted(number, command, stopped)
  code, _, err = finished(start(*command))
  assert code == 0, err
  expected, found = (json.loads((run / "results.json").read_text()) for run in (straight, stopped))
  assert found["final"] == expected["final"]
  for key in ("test", "per_class", "steps", "best_selected_on_test"):
    assert found["stages"]["representation"][key] == expected["stages"]["representation"][key]
  assert lines(stopped) == lines(straight)

  # The run is finished: repeating it trains nothing and gives the same results.
  code, again, err = finished(start(*command))
  assert code == 0, err
  assert again.split("written")[0] == out.split("written")[0]
  assert lines(stopped) == lines(straight)

  options += ["--config.representation.lr.base=1e30", f"--workdir={tmp_path / 'nan'}"]
  code, _, err = finished(start(*options))
  assert code == 1, err
  assert err.splitlines()[-1].startswith("error: representation: the ") and "lower the learning rate" in err
