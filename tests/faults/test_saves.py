"""F4: a save that fails is an error of the next step, and leaves the checkpoint before it as it was."""

import json
import os
import subprocess
import sys

import pytest

from tests.faults import runs, saves
from tests.processes import ROOT


@pytest.mark.parametrize("fault", saves.FAULTS)
def test_a_save_that_fails(tmp_path, fault):
  if fault in saves.MOUNTED and not saves.can_mount(tmp_path / "mounted"):
    pytest.skip("this process may not mount file systems")
  for seed in range(2):
    saves.in_child(tmp_path, seed, fault)


def test_a_run_reports_failed_saves_and_continues_when_they_work_again(tmp_path, cache, expected):
  workdir = tmp_path / "run"
  del expected  # with all programs in the cache by now: the limit applies to its files too
  # The config and the logs are shorter than 7 blocks of 512 bytes, the manifest of a checkpoint is not.
  ended = subprocess.run(
      ["sh", "-c", 'ulimit -f 7; exec "$@"', "sh", sys.executable, "-m", *runs.command(workdir, "2")], cwd=ROOT,
      text=True, capture_output=True, timeout=240, env=os.environ | runs.environment(cache))
  assert ended.returncode == 74, ended.stderr[-3000:]
  assert "Traceback" not in ended.stderr and "ERROR:absl" not in ended.stderr
  last = [line for line in ended.stderr.splitlines() if line.startswith("error: ")][-1]
  assert f"{workdir}/representation/checkpoints/5: the checkpoint could not be saved" in last
  assert "make room or repair the folder" in last
  assert runs.newest(workdir, "representation") == 0
  ended = runs.run(workdir, cache, "2")
  assert ended.returncode == 0, ended.stderr[-3000:]
  assert json.loads((workdir / "results.json").read_text())["stages"]["classifier"]["steps"] == 10
