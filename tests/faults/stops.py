"""F5: SIGTERM, SIGINT, SIGUSR1 and SIGHUP in all phases of a run, which is continued until it is finished."""

import json
import pathlib
import time

import numpy as np

from ltjax.distributed import signals
from tests.faults import runs
from tests.faults.inside import PHASES
from tests.faults.tally import Trial

LIMIT = 30.0  # seconds; the soak compares with it


class Stopped:
  """Runs that are stopped again and again, each until it is finished; then it must be as one that never was."""

  def __init__(self, folder: pathlib.Path, cache: pathlib.Path, expected: dict):
    """`expected` is the outcome of the straight run."""
    self._folder, self._cache, self._expected, self._number, self.finished = folder, cache, expected, 0, 0
    folder.mkdir(parents=True, exist_ok=True)

  def stop(self, rng: np.random.Generator, phase: str = "", signal: str = "") -> Trial | None:
    """Continues the run and stops it in `phase`, a random one by default; None where it was finished before."""
    workdir, file = self._folder / f"run {self._number}", self._folder / "fault.json"
    file.unlink(missing_ok=True)
    phase = phase or str(rng.choice([*PHASES, "any"]))
    fault = dict(phase=phase, file=str(file), signal=signal or f"SIG{rng.choice(['TERM', 'INT', 'USR1', 'HUP'])}",
                 steps=int(rng.integers(5)), delay=float(rng.uniform(0, 6 if phase == "any" else 0.3)))
    # Without the cache, compiling takes long enough for the signal to come in the middle of it.
    cache = None if phase == "compile" and rng.random() < 0.25 else self._cache
    ended = runs.run(workdir, cache, LTJAX_FAULT=json.dumps(fault))
    code, now = ended.returncode, time.time()
    assert code in (0, signals.EXIT_STOPPED), f"{fault}: exit code {code}: {ended.stderr[-2000:]}"
    trial = None
    if file.exists():
      trial = self._survived(workdir, json.loads(file.read_text()), now, ended)
    if code == 0:
      self.check_finished(workdir)
    return trial

  def _survived(self, workdir, at: dict, now: float, ended) -> Trial:
    seconds, lost = now - at["time"], 0
    if ended.returncode:
      assert "Traceback" not in ended.stderr, ended.stderr[-3000:]
      assert "saved in" in ended.stderr or "stopped before the first step" in ended.stderr, ended.stderr[-2000:]
    if "stage" in at:  # all steps that were done when it came are saved
      lost = max(0, at["done"] - runs.newest(workdir, at["stage"]))
      assert not lost, f"{at}: {lost} steps are lost"
    return Trial(seconds, lost, f"in {at['phase']}")

  def check_finished(self, workdir: pathlib.Path) -> None:
    """Compares a finished run with the straight one; the next is another."""
    found = runs.outcome(workdir)
    assert found == self._expected, {key: (found[key], self._expected[key]) for key in found
                                     if found[key] != self._expected[key]}
    self._number += 1
    self.finished += 1

  def finish(self) -> None:
    """Continues the run to its end, if one is under way."""
    workdir = self._folder / f"run {self._number}"
    if workdir.exists():
      ended = runs.run(workdir, self._cache)
      assert ended.returncode == 0, ended.stderr[-3000:]
      self.check_finished(workdir)
