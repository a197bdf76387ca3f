import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from ltjax.errors import WorkdirError
from ltjax.workdir import lock
from ltjax.workdir.lock import WorkdirLock
from tests.processes import ROOT

HOLD = """
import pathlib, sys
from ltjax.workdir.lock import WorkdirLock
with WorkdirLock(pathlib.Path(sys.argv[1]), "python -m ltjax.main --workdir=x"):
  print("held", flush=True)
  sys.stdin.read()
"""


def hold(workdir) -> subprocess.Popen:
  """A process that tries to lock `workdir`, and holds it until its standard input is closed."""
  return subprocess.Popen([sys.executable, "-c", HOLD, workdir], cwd=ROOT, text=True, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_second_run_is_refused_with_the_first_ones_name_until_it_ends(tmp_path):
  workdir = tmp_path / "über uns" / "run 1"
  with hold(workdir) as first:
    try:
      assert first.stdout.readline() == "held\n"
      with pytest.raises(WorkdirError, match="is in use by another run") as caught, WorkdirLock(workdir):
        pass
      for part in (str(workdir), f"process {first.pid} on {socket.gethostname()} since 20", "python -m ltjax.main"):
        assert part in str(caught.value)
      with hold(workdir) as second:
        _, err = second.communicate(timeout=30)
      assert "WorkdirError" in err and f"process {first.pid} " in err
    finally:
      first.kill()
  assert first.returncode == -signal.SIGKILL
  with WorkdirLock(workdir, "mine"):
    owner = json.loads((workdir / lock.NAME).read_text())
    assert (owner["pid"], owner["host"], owner["command"]) == (os.getpid(), socket.gethostname(), "mine")
    with pytest.raises(WorkdirError, match=f"process {os.getpid()} "), WorkdirLock(workdir):
      pass
  with WorkdirLock(workdir):
    assert [path.name for path in workdir.iterdir()] == [lock.NAME]


def test_one_of_many_simultaneous_runs_gets_the_lock(tmp_path):
  tried = [hold(tmp_path / "run") for _ in range(4)]
  try:
    lines = [process.stdout.readline() for process in tried]
  finally:
    for process in tried:
      process.communicate(timeout=30)
  assert sorted(lines) == [""] * 3 + ["held\n"]
  assert sorted(process.returncode for process in tried) == [0] + [1] * 3


def test_a_second_run_is_refused_although_the_lock_file_was_removed(tmp_path):
  with WorkdirLock(tmp_path):
    (tmp_path / lock.NAME).unlink()
    with pytest.raises(WorkdirError, match="is in use by another run"), WorkdirLock(tmp_path):
      pass
  with WorkdirLock(tmp_path):
    pass


def test_a_folder_that_only_its_files_lock(tmp_path, monkeypatch):
  def flock(descriptor, *args):  # as NFS has it
    if os.path.isdir(f"/proc/self/fd/{descriptor}"):
      raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return whole(descriptor, *args)

  whole = fcntl.flock
  monkeypatch.setattr(fcntl, "flock", flock)
  refused = pytest.raises(WorkdirError, match=f"is in use by another run: process {os.getpid()} ")
  with WorkdirLock(tmp_path), refused, WorkdirLock(tmp_path):
    pass
  with WorkdirLock(tmp_path):
    pass


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_holder_that_has_not_signed(tmp_path, content):
  with WorkdirLock(tmp_path):
    (tmp_path / lock.NAME).write_text(content)
    with pytest.raises(WorkdirError, match="another run, which the lock file does not name"), WorkdirLock(tmp_path):
      pass


def test_a_folder_that_cannot_be_locked(tmp_path, monkeypatch, capsys):
  (tmp_path / "file").write_text("x")
  with pytest.raises(WorkdirError, match="cannot be used"), WorkdirLock(tmp_path / "file"):
    pass

  def fail(code):
    def call(*args):
      raise OSError(code, os.strerror(code))
    return call

  with monkeypatch.context() as patch:
    patch.setattr(os, "open", fail(errno.EROFS))
    with pytest.raises(WorkdirError, match="cannot be used .Read-only file system."), WorkdirLock(tmp_path):
      pass
  with monkeypatch.context() as patch:
    patch.setattr(os, "pwrite", fail(errno.ENOSPC))
    with pytest.raises(WorkdirError, match="cannot be written .No space left"), WorkdirLock(tmp_path):
      pass
  with monkeypatch.context() as patch:
    patch.setattr(fcntl, "flock", fail(errno.EIO))
    with pytest.raises(WorkdirError, match="cannot be locked"), WorkdirLock(tmp_path):
      pass
  monkeypatch.setattr(fcntl, "flock", fail(errno.ENOTSUP))
  with WorkdirLock(tmp_path):
    assert "has no locks" in capsys.readouterr().err
  with WorkdirLock(tmp_path), WorkdirLock(tmp_path):
    assert "make sure that no other run uses" in capsys.readouterr().err
