"""Runs of the command line for the injection of faults, and the results that no fault may change."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

from ltjax.workdir import manifest
from tests import tiny
from tests.processes import ROOT

STAGES = ("representation", "classifier")


def command(workdir: pathlib.Path, arguments: str = "6") -> list[str]:
  """The arguments of `python -m`."""
  return ["tests.faults.inside", f"--config=tests/faults/digits.py:{arguments}", f"--workdir={workdir}"]


def environment(cache: pathlib.Path | None) -> dict[str, str]:
  """The environment of a run; compiled programs are taken from `cache`, if it is given, so that a start is cheap."""
  own = dict(JAX_PLATFORMS="cpu", PYTHONDONTWRITEBYTECODE="1")
  if cache:
    own |= dict(JAX_COMPILATION_CACHE_DIR=str(cache), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
                JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1")
  return own


def run(workdir: pathlib.Path, cache: pathlib.Path | None, arguments: str = "6", timeout: float = 240,
        **own) -> subprocess.CompletedProcess:
  """One process of a run, to its end; `own` extends its environment."""
  return subprocess.run(
      [sys.executable, "-m", *command(workdir, arguments)], cwd=ROOT, text=True, capture_output=True, timeout=timeout,
      env=os.environ | environment(cache) | own)


def newest(workdir: pathlib.Path, stage: str) -> int:
  """The newest committed step of a stage, checked to be complete; 0 if there is none."""
  steps = tiny.saved_steps(workdir, stage)
  if steps:
    manifest.verified(workdir / stage / "checkpoints" / str(steps[-1]))
  return max(steps, default=0)


def outcome(workdir: pathlib.Path) -> dict:
  """The results of a finished run: accuracies, logs, and the hashes of all values of its last checkpoints."""
  results, found = json.loads((workdir / "results.json").read_text()), {}
  for stage in STAGES:
    step, own = newest(workdir, stage), results["stages"][stage]
    found[stage] = dict(
        log=tiny.log(workdir, stage), step=step, values=manifest.read(workdir / stage / "checkpoints" / str(step))[
            "values_sha256"], **{key: own[key] for key in ("test", "per_class", "steps", "best_selected_on_test")})
  return dict(found, final=results["final"], counts=results["counts"])


def straight(cache: pathlib.Path, arguments: str = "6") -> dict:
  """The outcome of a run that nothing happens to."""
  with tempfile.TemporaryDirectory() as folder:
    ended = run(pathlib.Path(folder, "run"), cache, arguments)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return outcome(pathlib.Path(folder, "run"))
