"""Several local processes of one run, for tests: with the variables of `ltjax.distributed.processes.start`."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]


def flags(devices: int = 1) -> str:
  """XLA_FLAGS of the tests: this many CPU devices, and no time spent on optimising short programs."""
  return (f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0 "
          "--xla_cpu_parallel_codegen_split_count=1 --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters")


class Ended(NamedTuple):
  """A process that has ended: its exit code, -9 if killed, its output and its duration in seconds."""

  code: int
  out: str
  err: str
  seconds: float


class Processes:
  """`python -m ARGUMENTS` in `count` processes; all are killed when the block is left.

  with Processes(["tests.test_processes", "loop"], 2) as run:
    run.wait_for(1, "step 5")
    run.send(1, signal.SIGSTOP)
    first = run.ended(0, timeout=30)
  """

  def __init__(self, arguments: Sequence[str], count: int, *, environment: Mapping[str, str] = {},
               each: Sequence[Mapping[str, str]] | None = None, absent: Sequence[int] = (), port: int = 0):
    """
    Args:
      arguments: the module and its arguments.
      count: the number of processes of the run.
      environment: for all processes, added to this one's own.
      each: for each process, instead of LTJAX_COORDINATOR, LTJAX_PROCESSES and LTJAX_PROCESS_ID.
      absent: the processes not to start.
      port: process 0's port; 0 picks a free one.
    """
    self._folder, self._popen, self._began = tempfile.TemporaryDirectory(), {}, time.monotonic()
    port = port or free_port()
    run = dict(LTJAX_COORDINATOR=f"localhost:{port}", LTJAX_PROCESSES=str(count))
    each = each or [run | dict(LTJAX_PROCESS_ID=str(number)) for number in range(count)]
    for number in set(range(count)) - set(absent):
      with open(self._path(number, "out"), "wb") as out, open(self._path(number, "err"), "wb") as err:
        self._popen[number] = subprocess.Popen(
            [sys.executable, "-u", "-m", *arguments], cwd=ROOT, stdout=out, stderr=err, stdin=subprocess.DEVNULL,
            env=os.environ | dict(JAX_PLATFORMS="cpu") | dict(environment) | each[number], start_new_session=True)

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    for process in self._popen.values():
      if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
      process.wait()
    self._folder.cleanup()

  def send(self, number: int, signum: int) -> None:
    """Sends a signal to process `number`."""
    self._popen[number].send_signal(signum)

  def text(self, number: int, kind: str = "out") -> str:
    """The output of process `number` so far, "out" or "err"."""
    return self._path(number, kind).read_text()

  def wait_for(self, number: int, words: str, timeout: float = 60) -> None:
    """Waits until process `number` has printed `words`."""
    self._until(lambda: words in self.text(number) or self._popen[number].poll() is not None, timeout, number)
    assert words in self.text(number), self._told(number)

  def ended(self, number: int, timeout: float = 60) -> Ended:
    """Waits for the end of process `number`."""
    self._until(lambda: self._popen[number].poll() is not None, timeout, number)
    return Ended(self._popen[number].returncode, self.text(number), self.text(number, "err"),
                 time.monotonic() - self._began)

  def all_ended(self, timeout: float = 60) -> list[Ended]:
    """Waits for the end of all processes."""
    deadline = time.monotonic() + timeout
    return [self.ended(number, max(deadline - time.monotonic(), 0)) for number in sorted(self._popen)]

  def have_ended(self) -> bool:
    """Whether all processes have ended."""
    return all(process.poll() is not None for process in self._popen.values())

  def _until(self, done, timeout: float, number: int) -> None:
    deadline = time.monotonic() + timeout
    while not done():
      assert time.monotonic() < deadline, f"nothing for {timeout} s: {self._told(number)}"
      time.sleep(0.02)

  def _told(self, number: int) -> str:
    return f"process {number}: {self.text(number)[-2000:]}\n{self.text(number, 'err')[-3000:]}"

  def _path(self, number: int, kind: str) -> pathlib.Path:
    return pathlib.Path(self._folder.name, f"{number}.{kind}")


def free_port() -> int:
  """A free port of this machine."""
  with socket.create_server(("localhost", 0)) as server:
    return server.getsockname()[1]
