"""F20: one process of a run is killed or stops to answer, in all phases; the others end and say which one it was."""

import json
import pathlib
import re
import time

import numpy as np

from ltjax.distributed.watchdog import EXIT_MISSING
from tests.faults import runs
from tests.faults.tally import Trial
from tests.processes import Ended, Processes, free_port

HEARTBEAT = 5.0  # seconds
LIMIT = HEARTBEAT + 30  # seconds; the soak compares with it
PHASES = ("start", "compile", "train", "evaluate")
FIRST_ALONE = ("save", "stage change", "report")  # process 0's activity while the others wait for it, or do not


class Peers:
  """Runs of several processes, of which one is lost again and again."""

  def __init__(self, folder: pathlib.Path, cache: pathlib.Path, count: int = 2):
    self._folder, self._cache, self._count, self._number, self.finished = folder, cache, count, 0, 0
    self._expected = None
    folder.mkdir(parents=True, exist_ok=True)

  def straight(self) -> dict:
    """The outcome of the run that nothing happens to."""
    if not self._expected:
      ended = self._run(self._folder / "straight", {})
      assert [process.code for process in ended] == [0] * self._count, ended
      self._expected = runs.outcome(self._folder / "straight")
    return self._expected

  def lose(self, rng: np.random.Generator, victim: int | None = None, phase: str = "",
           signal: str = "") -> Trial | None:
    """Continues the run and loses a process; None where it was finished before."""
    victim = int(rng.integers(self._count)) if victim is None else victim
    phase = phase or str(rng.choice(PHASES if victim else PHASES + FIRST_ALONE))
    workdir, file = self._folder / f"run {self._number}", self._folder / "fault.json"
    file.unlink(missing_ok=True)
    fault = dict(phase=phase, delay=float(rng.uniform(0, 0.3)), steps=int(rng.integers(5)), file=str(file),
                 signal=signal or f"SIG{rng.choice(['KILL', 'STOP'])}")
    before = {stage: runs.newest(workdir, stage) for stage in runs.STAGES}
    ended = self._run(workdir, {victim: dict(LTJAX_FAULT=json.dumps(fault))}, file, victim)
    after = {stage: runs.newest(workdir, stage) for stage in runs.STAGES}  # intact
    assert all(after[stage] >= before[stage] for stage in before), (before, after)
    if not file.exists():
      assert [process.code for process in ended] == [0] * self._count, (fault, ended)
      self.check_finished(workdir)
      return None
    at = json.loads(file.read_text())
    for process in ended:
      assert process.code == EXIT_MISSING, (at, process.code, process.err[-3000:])
      assert re.search(rf"error: .*process {victim} \(", process.err), (at, process.err[-3000:])
    seconds = max(process.seconds for process in ended)
    return Trial(seconds, note=f"process {victim} {'killed' if fault['signal'] == 'SIGKILL' else 'stopped'}")

  def check_finished(self, workdir: pathlib.Path) -> None:
    """Compares a finished run with the straight one; the next is another."""
    assert runs.outcome(workdir) == self.straight()
    self._number += 1
    self.finished += 1

  def finish(self, compare: bool = True) -> None:
    """Continues the run to its end, if one is under way."""
    workdir = self._folder / f"run {self._number}"
    if workdir.exists():
      ended = self._run(workdir, {})
      assert [process.code for process in ended] == [0] * self._count, ended
      if compare:
        self.check_finished(workdir)

  def _run(self, workdir: pathlib.Path, own: dict[int, dict], file: pathlib.Path | None = None,
           victim: int | None = None) -> list[Ended]:
    """Runs all processes; returns when all, or the surviving ones, ended, in seconds since the fault."""
    place = dict(LTJAX_COORDINATOR=f"localhost:{free_port()}", LTJAX_PROCESSES=str(self._count))
    each = [place | dict(LTJAX_PROCESS_ID=str(number)) | own.get(number, {}) for number in range(self._count)]
    given = runs.environment(self._cache) | dict(LTJAX_HEARTBEAT=str(HEARTBEAT))
    with Processes(runs.command(workdir), self._count, environment=given, each=each) as running:
      deadline = time.monotonic() + 240
      while time.monotonic() < deadline:
        if file and file.exists():
          began = time.monotonic()
          others = [number for number in range(self._count) if number != victim]
          found = [running.ended(number, LIMIT + 5) for number in others]
          return [process._replace(seconds=time.monotonic() - began) for process in found]
        if running.have_ended():
          break
        time.sleep(0.02)
      return running.all_ended(1)


