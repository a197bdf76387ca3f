"""Allows one run per work folder, by a lock that the kernel releases when its holder ends, however it ends."""

import datetime
import errno
import fcntl
import json
import os
import pathlib
import socket
import sys

from ltjax.errors import WorkdirError
from ltjax.workdir import durable

NAME = ".lock"
# Errors of file systems without locks.
_WITHOUT_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL)


class WorkdirLock:
  """Locks a work folder for this run, as a context manager; only process 0 of a run takes the lock.

  `workdir/.lock` says who holds the folder. The file stays when the run ends: it means nothing unless it is locked, so
  a killed run leaves nothing to clear up. The folder itself is locked too, where the file system allows it, so that
  removing `.lock` during a run lets no second run in. Where the file system has no locks (Lustre mounted without
  flock), the run warns and goes on without one. NFS enforces locks between machines; a bucket mounted as a folder may
  not.
  """

  def __init__(self, workdir: pathlib.Path, command: str = ""):
    """`command` is the command line, which a refused run reports."""
    self._workdir, self._command, self._file, self._folder = workdir, command, None, None

  def __enter__(self):
    """Makes the folder if it is missing.

    Raises:
      WorkdirError: another run, which the message names, holds the folder; or the folder cannot be written.
    """
    try:
      durable.make_folder(self._workdir)
      self._file = os.open(self._workdir / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
      raise WorkdirError(f"--workdir: {self._workdir} cannot be used ({error.strerror or error}); "
                         "give a folder that can be read and written") from error
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      self._lock_folder()
    except BlockingIOError as error:
      holder = _holder(self._workdir / NAME)
      self.__exit__()
      raise WorkdirError(f"--workdir: {self._workdir} is in use by {holder}; wait for its end, stop it, or give "
                         "another folder") from error
    except OSError as error:
      if error.errno not in _WITHOUT_LOCKS:
        self.__exit__()
        raise WorkdirError(f"--workdir: {self._workdir} cannot be locked ({error.strerror})") from error
      print(f"--workdir: the file system of {self._workdir} has no locks ({error.strerror}); make sure that no other "
            "run uses this folder", file=sys.stderr)
    self._sign()
    return self

  def __exit__(self, *exception):
    for descriptor in (self._file, self._folder):
      if descriptor is not None:
        os.close(descriptor)
    self._file = self._folder = None

  def _lock_folder(self) -> None:
    """Locks the folder itself; raises a `BlockingIOError` if another run holds it."""
    try:
      self._folder = os.open(self._workdir, os.O_RDONLY | os.O_CLOEXEC)
      fcntl.flock(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise
    except OSError:
      pass  # NFS locks only files that are open for writing; `.lock` is locked already

  def _sign(self) -> None:
    since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    owner = dict(host=socket.gethostname(), pid=os.getpid(), since=since, command=self._command)
    try:
      os.ftruncate(self._file, 0)
      os.pwrite(self._file, json.dumps(owner).encode() + b"\n", 0)
    except OSError as error:
      self.__exit__()
      raise WorkdirError(f"--workdir: {self._workdir} cannot be written ({error.strerror}); "
                         "make room, or give another folder") from error


def _holder(path: pathlib.Path) -> str:
  """The holder of a lock, in words."""
  try:
    owner = json.loads(path.read_text())
    return f"another run: process {owner['pid']} on {owner['host']} since {owner['since']} ({owner['command']})"
  except (OSError, ValueError, KeyError, TypeError):
    return "another run, which the lock file does not name"
