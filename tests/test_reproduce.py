"""Many runs from one command: which are run, what is run again, and the tables of what is there."""

import ast
import doctest
import fcntl
import json
import os
import pathlib
import re
import shlex
import signal
import statistics
import threading
import time

import pytest

from ltjax.commands import reproduce, sweep
from ltjax.commands.running import engine, scaled, tables
from ltjax.config import load, parse
from ltjax.errors import ConfigError

TINY = ("--config.backbone=dict(name='tests.tiny:OneConv')", "--config.dataset.imbalance=5",
        "--config.representation.epochs=1")


def test_docstring_examples():
  for module in (engine, tables, sweep):
    assert doctest.testmod(module).failed == 0


# -- which rows and runs ----------------------------------------------------------------------------------------------


def test_rows_are_selected_by_their_columns():
  assert len(reproduce.rows("")) == 352
  found = reproduce.rows("method=ce|gcl dataset=cifar10 imbalance=100 paper=thesis")
  assert [(row["method"], row["top1"]) for row in found] == [("ce", "70.70"), ("gcl", "82.68")]


@pytest.mark.parametrize(("text", "message"), [
    ("methd=ce", "'methd=ce' \\(did you mean 'method'"), ("ce", "got 'ce'"),
    ("dataset=cifar10 method=gcll", "no row with method=gcll \\(did you mean 'gcl'")])
def test_a_misspelt_filter_is_one_sentence(text, message):
  with pytest.raises(ConfigError, match=message):
    reproduce.rows(text)


def test_rows_of_one_run_share_it_and_read_their_own_number():
  selected = reproduce.rows("paper=camc dataset=imagenet method=norm_fc|norm_fc_crt|norm_fc_ncm backbone=resnext50")
  (runs,) = reproduce.runs(selected, 2, 1.0, ()).values()
  assert [run.options for run in runs] == [("--config.seed=0",), ("--config.seed=1",)]
  found = dict(stages=dict(representation=dict(test=dict(overall=0.1))), final=dict(overall=0.2),
               posthoc=[dict(test=dict(overall=0.3))])
  assert [reproduce.measured(row, found) for row in selected] == [0.1, 0.2, 0.3]


def test_only_paths_may_differ_from_the_configs(capsys):
  with pytest.raises(SystemExit) as ended:
    reproduce.main(["--dry-run", "--config.representation.lr=0.2"])
  assert ended.value.code == 2 and "the table is about the configs as they are" in capsys.readouterr().err
  with pytest.raises(SystemExit) as ended:
    reproduce.main(["--dry-run", "--rows=method=gcl dataset=cifar10", "--seeds=2", "--config.dataset.dir=/data"])
  lines = capsys.readouterr().out.splitlines()
  assert ended.value.code == 0 and len(lines) == 6
  assert lines[1] == ("gcl_cifar_cifar10_200_seed_1: configs/gcl_cifar.py:cifar10,200 --config.seed=1 "
                      "--config.dataset.dir=/data")


@pytest.mark.parametrize("name", ["kps_cifar.py:cifar10", "bbn_cifar.py", "fbl_cifar.py", "gcl_cifar.py"])
def test_shorter_runs_have_shorter_schedules(name):
  config = load.read(f"configs/{name}")
  options = scaled.options(config, 0.05)
  short = load.parse([f"--config=configs/{name}", *options], {}, "")["config"]
  parse(short)
  for stage in config.stages:
    assert short[stage].epochs == max(1, round(0.05 * config[stage].epochs))
    lr = config[stage].lr
    if lr.get("name") == "multi_step":
      assert short[stage].lr.at == tuple(epoch / 20 for epoch in lr.at) and short[stage].lr.factors == lr.factors


SWEEPS = [(path.stem, line) for path in sorted(pathlib.Path("configs").glob("*.py")) for line in re.findall(
    r"^    python -m ltjax sweep (\S+.*?)(?:   .*)?$", ast.get_docstring(ast.parse(path.read_text())), re.MULTILINE)]


def test_the_figures_of_the_papers_have_sweeps():
  assert {name for name, _ in SWEEPS} == {f"{name}_cifar" for name in ("afa", "camc", "camcpp", "fbl", "gcl", "kps")}


@pytest.mark.parametrize(("name", "line"), SWEEPS)
def test_a_sweep_of_a_docstring_runs_as_it_is_typed(name, line):
  keys, runs = sweep.combinations(*sweep.parse(shlex.split(line)))
  assert len(keys) >= 1 and all(len(found) == 1 for found in runs.values())
  different = {load.read(found[0].config).to_json() for found in runs.values()}
  assert len(different) == len(runs) == len({found[0].name for found in runs.values()})
  ends = [found[0].config for found in runs.values()][::max(1, len(runs) - 1)]
  assert all(call.startswith(f"configs/{name}.py") for call in ends)
  for call in ends:
    parse(load.read(call))


# -- runs -------------------------------------------------------------------------------------------------------------


def started(folder, capsys):
  """(exit code, stdout, stderr) of a sweep of two values in `folder`."""
  with pytest.raises(SystemExit) as ended:
    sweep.main(["configs/ce_digits.py", "--set", "representation.lr=0.05,0.1", f"--folder={folder}", *TINY])
  return ended.value.code, *capsys.readouterr()


def stop_once_there(pattern, folder):
  """Sends SIGTERM to this process as soon as a file in `folder` matches."""
  while not any(path.stat().st_size for path in folder.glob(pattern)):
    time.sleep(0.05)
  os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("sweep")


def test_a_sweep_is_stopped_goes_on_and_runs_nothing_twice(folder, capsys):
  watch = threading.Thread(target=stop_once_there, args=("*/config.json", folder))
  watch.start()
  code, _, err = started(folder, capsys)
  watch.join()
  assert code == 75 and err.count(": started") == 1 and "0.05_seed_0: stopped; the same command continues it" in err
  code, first, err = started(folder, capsys)
  assert code == 0 and err.count(": started") == 2 and "2 of 2 runs, about 0.0 h for the 0 left" in err
  code, second, err = started(folder, capsys)
  assert (code, second, err) == (0, first, "2 of 2 runs are finished already\n")
  found = [json.loads(path.read_text()) for path in sorted(folder.glob("*/results.json"))]
  for lr, results in zip((0.05, 0.1), found, strict=True):
    assert f"| {lr} | {100 * results['final']['overall']:.2f} |" in (folder / "sweep.md").read_text()
    assert f"--config.representation.lr={lr}" in results["command"]


def test_the_table_of_published_rows_counts_what_is_missing(folder):
  selected = reproduce.rows("paper=thesis method=ce dataset=cifar10")
  (first, *_), others = [engine.Run(path.parent.name, "") for path in sorted(folder.glob("*/results.json"))], []
  calls = {reproduce.published(row): [first] if row["imbalance"] == "100" else others for row in selected}
  lines = reproduce.table(selected, calls, folder)
  results = engine.results(folder, first)
  ours = 100 * results["final"]["overall"]
  assert f"| 70.70 | {ours:.2f} | {ours - 70.70:+.2f} | 1 |" in lines[2]
  assert results["data"]["selected_sha256"][:12] in lines[2] and lines[-1] == "Not measured: 2 of 3 rows."


def test_short_runs_are_compared_with_the_other_implementation(folder, tmp_path, capsys):
  finished = sorted(folder.glob("*/results.json"))
  for run, path in zip(reproduce.short_runs(2, ())["ce"], finished, strict=True):
    (tmp_path / run.name).mkdir()
    (tmp_path / run.name / "results.json").write_text(path.read_text())
  ours = [json.loads(path.read_text())["final"]["overall"] for path in finished]
  gap = 100 * (statistics.mean(ours) - statistics.mean([40.7 / 100, 43.9 / 100]))
  line = next(line for line in reproduce.page(tmp_path).splitlines() if line.startswith("| ce | 1 | reference |"))
  assert line.startswith(f"| ce | 1 | reference | 42.30 ± 2.26 | {tables.spread(ours)} | {gap:+.2f} | 2 |")
  assert "other implementation" not in reproduce.page(tmp_path / "none")
  with pytest.raises(SystemExit) as ended:
    reproduce.main(["--short", "--rows=method=ce"])
  assert ended.value.code == 2 and "leave out --rows and --scale" in capsys.readouterr().err
  with pytest.raises(SystemExit) as ended:
    reproduce.main(["--short", "--dry-run"])
  assert ended.value.code == 0 and capsys.readouterr().out.splitlines() == [
      f"{method}_cifar_cifar10_100_preset_short_seed_0: configs/{method}_cifar.py:cifar10,100,preset=short "
      "--config.seed=0" for method in ("ce", "gcl")]


def test_what_another_machine_holds_is_left_to_it(tmp_path):
  (tmp_path / "one").mkdir()
  with open(tmp_path / "one" / ".lock", "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    outcome = engine.complete([engine.Run("one", "configs/ce_digits.py")], tmp_path, print)
  assert outcome == engine.Outcome((), {}, ("one",), False)


def test_a_run_that_fails_is_reported(tmp_path):
  said = []
  runs = [engine.Run("bad", "configs/ce_digits.py", ("--config.representation.batch_size=9999",))]
  outcome = engine.complete(runs, tmp_path, said.append)
  assert "9999 does not fit 371 training images" in outcome.failed["bad"]
  assert any("exit code 2" in line and "bad.log" in line for line in said)


@pytest.mark.parametrize(("arguments", "message"), [
    (["configs/ce_digit.py"], "did you mean 'configs/ce_digits.py'?"),
    (["configs/ce_digits.py", "--set", "epochs"], "--set: expected KEY=VALUE,VALUE"),
    (["configs/ce_digits.py", "--set", "representation.epoch=1,2"], "did you mean 'representation.epochs'?"),
    (["configs/ce_digits.py", "--seeds=0"], "expected at least 1"),
    (["configs/ce_digits.py", "--stage=a"], "unexpected argument '--stage=a'")])
def test_a_mistake_costs_one_line_and_exit_code_2(arguments, message, tmp_path, capsys):
  with pytest.raises(SystemExit) as ended:
    sweep.main([*arguments, f"--folder={tmp_path / 'runs'}"])
  err = capsys.readouterr().err
  assert ended.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1 and message in err
  assert not (tmp_path / "runs").exists()
