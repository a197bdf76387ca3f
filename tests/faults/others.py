"""F13: a number that becomes infinite; F19: a second run in a folder that is in use."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np

from ltjax.workdir import manifest
from ltjax.workdir.lock import WorkdirLock
from tests.faults import runs
from tests.faults.tally import Trial
from tests.processes import ROOT

STEPS_PER_EPOCH = 5


def number(folder: pathlib.Path, cache: pathlib.Path, rng: np.random.Generator) -> Trial:
  """Lets the learning rate become infinite at a random epoch: the run stops, the state before is saved and replayed."""
  shutil.rmtree(folder, ignore_errors=True)
  epoch = int(rng.integers(1, 6))
  ended, began = runs.run(folder, cache, f"6,breaks_at={epoch}"), time.perf_counter()
  record, checkpoints = json.loads((folder / "not_finite.json").read_text()), folder / "representation" / "checkpoints"
  assert ended.returncode == 1 and f"in step {record['step']} " in ended.stderr, ended.stderr[-2000:]
  assert record["step"] == runs.newest(folder, "representation") >= STEPS_PER_EPOCH * epoch, record
  for step in checkpoints.iterdir():
    manifest.verified(step)
  replayed = subprocess.run(
      [sys.executable, "-m", "ltjax", "debug_step", str(folder)], cwd=ROOT, text=True, capture_output=True,
      timeout=240, env=os.environ | runs.environment(cache))
  first = replayed.stdout.splitlines()[-1]
  assert first.startswith("the first that is not finite: ") and "finite: state" not in first, replayed
  return Trial(time.perf_counter() - began)


def second_run(folder: pathlib.Path, cache: pathlib.Path) -> Trial:
  """Starts a run in a folder that this process holds: it is refused, with the holder's name."""
  with WorkdirLock(folder, "the first"):
    began = time.perf_counter()
    ended = runs.run(folder, cache)
    assert ended.returncode == 2, ended.stderr[-2000:]
    assert f"in use by another run: process {os.getpid()} on " in ended.stderr, ended.stderr[-2000:]
    assert sorted(path.name for path in folder.iterdir()) == [".lock"]
  return Trial(time.perf_counter() - began)
