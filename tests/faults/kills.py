"""F1: SIGKILL during a save, after a random time or at one of the calls by which the save changes files."""

import os
import pathlib
import signal
import sys
import time

import numpy as np

from ltjax.workdir.checkpoint import DAMAGED, PARTIAL, Checkpoints
from tests.faults.forks import FORKS
from tests.faults.states import LIKE, assert_is, state
from tests.faults.tally import Trial

CHANGES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")


def saver(folder: pathlib.Path, pipe, die_at: int) -> None:
  """Saves step after step and says so, until it is killed: by itself at change `die_at` of the second save if given."""
  changes, counting = 0, False

  def audit(event, arguments):
    nonlocal changes
    if counting and event in CHANGES and str(arguments[0]).startswith(str(folder)):
      changes += 1
      if changes == die_at:
        os.kill(os.getpid(), signal.SIGKILL)

  sys.addaudithook(audit)
  with Checkpoints(folder) as checkpoints:
    first = (checkpoints.latest() or 0) + 1
    for step in range(first, first + 100):
      content = state(step)
      counting = step > first
      pipe.send(("begun", step, changes))
      checkpoints.save(content, wait=True)
      pipe.send(("committed", step, changes))
      if counting and die_at:
        break


def kill(folder: pathlib.Path, rng: np.random.Generator, die_at: int = 0) -> Trial:
  """Kills a process that saves into `folder`, which may hold checkpoints, and checks the folder.

  Args:
    folder: the folder.
    rng: draws the save to interrupt and the moment, unless `die_at` is given.
    die_at: the number of the file-changing call, within the save, that kills the process.
  """
  pipe, theirs = FORKS.Pipe(duplex=False)
  process = FORKS.Process(target=saver, args=(folder, theirs, die_at), daemon=True)
  process.start()
  theirs.close()
  said, number, window = dict(begun=0, committed=0), int(rng.integers(1, 4)), 0.2
  try:
    if not die_at:
      for save in range(number):
        said["begun"], began = _next(pipe, "begun"), time.perf_counter()
        if save < number - 1:
          said["committed"], window = _next(pipe, "committed"), time.perf_counter() - began
      time.sleep(rng.uniform(0, 1.1 * window))
      process.kill()
    while True:  # its output before it died
      kind, step, _ = pipe.recv()
      said[kind] = step
  except EOFError:
    pass
  finally:
    process.kill()
    process.join()
    pipe.close()
  half_written = any(PARTIAL in path.name for path in folder.glob("*"))
  return look(folder, said, note="left a half-written folder" if half_written else "")


def look(folder: pathlib.Path, said: dict, note: str) -> Trial:
  """Opens a folder after a kill: its newest step, the last committed or the one begun, is complete."""
  began = time.perf_counter()
  with Checkpoints(folder, on_fallback=_refuse) as checkpoints:
    latest = checkpoints.latest()
    restored = checkpoints.restore(LIKE)
    seconds = time.perf_counter() - began
    assert latest in (said["committed"], said["begun"], said["begun"] - 1), (latest, said)
    assert latest >= said["committed"], f"step {said['committed']} was committed and is gone; {latest} is there"
    assert_is(restored, latest)
    names = sorted(path.name for path in folder.iterdir())
    assert not any(PARTIAL in name or DAMAGED in name for name in names), names
    checkpoints.save(state(latest + 1), wait=True)
    assert_is(checkpoints.restore(LIKE), latest + 1)
  return Trial(seconds, note=note)


def changes_of_a_save(folder: pathlib.Path) -> int:
  """By how many calls of Python's a save changes files."""
  pipe, theirs = FORKS.Pipe(duplex=False)
  process = FORKS.Process(target=saver, args=(folder, theirs, sys.maxsize), daemon=True)
  process.start()
  theirs.close()
  try:
    while True:
      *_, changes = pipe.recv()
  except EOFError:
    process.join()
  return changes


def _next(pipe, kind: str) -> int:
  said, step, _ = pipe.recv()
  assert said == kind, said
  return step


def _refuse(message: str) -> None:
  raise AssertionError(message)
