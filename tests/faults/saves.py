"""F4: saves that fail: a full disk, a quota, a folder that cannot be written, an error of the last flush."""

import contextlib
import errno
import os
import pathlib
import resource
import subprocess
import time
from unittest import mock

import numpy as np

from ltjax.errors import SaveError
from ltjax.workdir.checkpoint import Checkpoints
from tests.faults.forks import FORKS
from tests.faults.states import LIKE, assert_is, state
from tests.faults.tally import Trial

FAULTS = ("file too large", "error of fsync", "error of rename", "no space", "read-only")
MOUNTED = FAULTS[-2:]  # need the right to mount


@contextlib.contextmanager
def mounted(folder: pathlib.Path):
  """A file system of 3.5 MB at `folder`: room for three of our checkpoints, and not for a fourth."""
  folder.mkdir(parents=True, exist_ok=True)
  subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3584k", "none", folder], check=True, capture_output=True)
  try:
    yield folder
  finally:
    subprocess.run(["umount", "-l", folder], check=True)


def can_mount(folder: pathlib.Path) -> bool:
  """Whether this process may mount file systems."""
  try:
    with mounted(folder):
      return True
  except (OSError, subprocess.CalledProcessError):
    return False


@contextlib.contextmanager
def failing(folder: pathlib.Path, fault: str, rng: np.random.Generator):
  """Inside this context, saves into `folder` fail."""
  with contextlib.ExitStack() as held:
    if fault == "file too large":
      _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
      resource.setrlimit(resource.RLIMIT_FSIZE, (int(rng.integers(1, 200_000)), most))
      held.callback(resource.setrlimit, resource.RLIMIT_FSIZE, (most, most))
    elif fault == "no space":
      filler = folder / "filler"
      with contextlib.suppress(OSError), filler.open("wb") as file:
        left = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
        file.write(bytes(max(0, left - int(rng.integers(0, 700_000)))))
      held.callback(filler.unlink)
    elif fault == "read-only":
      subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
      held.callback(subprocess.run, ["mount", "-o", "remount,rw", folder], check=True)
    else:
      name, left = fault.split()[-1], int(rng.integers(10)) if fault == "error of fsync" else 0
      held.enter_context(_failing_call(name, left))
    yield


@contextlib.contextmanager
def _failing_call(name: str, after: int):
  """`os.fsync` or `os.rename` raises from call number `after` on."""
  calls, whole = iter(range(10**9)), getattr(os, name)

  def call(*args, **kwargs):
    if next(calls) >= after:
      raise OSError(errno.ENOSPC if name == "rename" else errno.EIO, os.strerror(errno.EIO))
    return whole(*args, **kwargs)

  with mock.patch.object(os, name, call):
    yield


def fail(folder: pathlib.Path, rng: np.random.Generator, fault: str) -> Trial:
  """Tries to save where it is impossible; in its own process, because a limit applies to a process."""
  folder.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as held:
    if fault in MOUNTED:
      held.enter_context(mounted(folder))
    checkpoints = Checkpoints(folder / "checkpoints")
    first = (checkpoints.latest() or 0) + 1
    checkpoints.save(state(first), wait=True)
    with failing(folder, fault, rng):
      checkpoints.save(state(first + 1))
      error = _error_of(checkpoints)
      assert str(folder / "checkpoints" / str(first + 1)) in str(error), error
      assert f"step {first} is intact" in str(error), error
      assert checkpoints.latest() == first
      assert_is(checkpoints.restore(LIKE), first)
    began = time.perf_counter()
    with Checkpoints(folder / "checkpoints") as again:
      assert [path.name for path in (folder / "checkpoints").iterdir() if not path.name.isdigit()] == []
      assert_is(again.restore(LIKE), first)
      again.save(state(first + 1), wait=True)
      assert_is(again.restore(LIKE), first + 1)
    return Trial(time.perf_counter() - began, note=fault)


def _error_of(checkpoints: Checkpoints) -> SaveError:
  """The error of `check`, which a run calls after every step."""
  deadline = time.monotonic() + 30
  while time.monotonic() < deadline:
    try:
      checkpoints.check()
    except SaveError as error:
      return error
    time.sleep(0.005)
  raise AssertionError("a save that failed raised nothing")


def in_child(folder: pathlib.Path, seed: int, fault: str) -> Trial:
  """`fail` in a forked process, which may not be able to write a file any more."""
  pipe, theirs = FORKS.Pipe(duplex=False)
  process = FORKS.Process(target=_child, args=(folder / fault, seed, fault, theirs), daemon=True)
  process.start()
  theirs.close()
  try:
    found = pipe.recv()
  finally:
    process.join()
    pipe.close()
  assert isinstance(found, Trial), found
  return found


def _child(folder: pathlib.Path, seed: int, fault: str, pipe) -> None:
  os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # Orbax's errors end in pages of tracebacks
  try:
    pipe.send(fail(folder, np.random.default_rng(seed), fault))
  except BaseException as error:
    pipe.send(f"{fault}: {type(error).__name__}: {error}")
