"""Runs that are not finished yet are run, one after the other; several machines may share the folder."""

import fcntl
import json
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ltjax.config import load
from ltjax.distributed.signals import EXIT_STOPPED
from ltjax.workdir import lock, log

_LOOK = 2.0  # seconds between two looks at a run's log
_IN_USE = "is in use by"


class Run(NamedTuple):
  """A run: its folder's name, its config as `--config` takes it, and further options."""

  name: str
  config: str
  options: tuple[str, ...] = ()


class Outcome(NamedTuple):
  """What became of the runs, by name.

  Args:
    done: finished, now or before.
    failed: why, by name.
    elsewhere: which another machine is at.
    stopped: whether the program was asked to stop.
  """

  done: tuple[str, ...]
  failed: dict[str, str]
  elsewhere: tuple[str, ...]
  stopped: bool


def name_of(*parts: object) -> str:
  """A folder's name made of `parts`.

  >>> name_of("configs/gcl_cifar.py:cifar10,100", "seed=0")
  'gcl_cifar_cifar10_100_seed_0'
  """
  text = "_".join(str(part) for part in parts if part != "").replace("configs/", "").replace(".py", "")
  return re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("_")


def check(runs: Sequence[Run]) -> None:
  """Raises a `ConfigError` for the first run whose config or options are wrong, before any is started."""
  seen = set()
  for run in runs:
    # The files and keys only: a seed changes nothing about them.
    key = run.config, tuple(option for option in run.options if not option.startswith("--config.seed="))
    if key not in seen:
      seen.add(key)
      load.parse([f"--config={run.config}", *run.options], {}, "")


def results(folder: pathlib.Path, run: Run) -> dict | None:
  """The content of a run's results.json; None where it is not finished."""
  path = folder / run.name / "results.json"
  return json.loads(path.read_text()) if path.is_file() else None


class Stop:
  """Whether SIGTERM or SIGINT has come, which is passed on to the run under way, as a context."""

  def __init__(self):
    self.asked, self.process, self._before = False, None, {}

  def __enter__(self):
    for number in (signal.SIGTERM, signal.SIGINT):
      self._before[number] = signal.signal(number, self._ask)
    return self

  def __exit__(self, *exception):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _ask(self, number, frame):
    self.asked = True
    if self.process and self.process.poll() is None:
      self.process.send_signal(signal.SIGTERM)


def complete(runs: Sequence[Run], folder: pathlib.Path, say: Callable[[str], None]) -> Outcome:
  """Runs what is missing in `folder`, where each run has a work folder; logs/ has what it printed.

  A run that was stopped goes on where it was. One that fails is reported and left.
  """
  (folder / "logs").mkdir(parents=True, exist_ok=True)
  done = [run.name for run in runs if results(folder, run)]
  failed, elsewhere, seconds = {}, [], []
  waiting = [run for run in runs if run.name not in done]
  if done:
    say(f"{len(done)} of {len(runs)} runs are finished already")
  with Stop() as stop:
    for index, run in enumerate(waiting):
      if stop.asked:
        break
      if results(folder, run):  # another machine has been faster
        done.append(run.name)
        continue
      if _held(folder / run.name):
        elsewhere.append(run.name)
        continue
      began = time.monotonic()
      code, words = _one(run, folder, stop, say)
      if code == 0:
        done.append(run.name)
        seconds.append(time.monotonic() - began)
        left = len(waiting) - index - 1
        hours = left * sum(seconds) / len(seconds) / 3600
        say(f"{run.name}: finished in {seconds[-1] / 60:.1f} min, {_accuracy(folder, run)}; {len(done)} of {len(runs)} "
            f"runs, about {hours:.1f} h for the {left} left")
      elif code == EXIT_STOPPED or stop.asked:
        say(f"{run.name}: stopped; the same command continues it")
      elif _IN_USE in words:
        elsewhere.append(run.name)
      else:
        failed[run.name] = words
        say(f"{run.name}: failed with exit code {code} ({words}); see {folder / 'logs' / run.name}.log")
    return Outcome(tuple(done), failed, tuple(elsewhere), stop.asked)


def _one(run: Run, folder: pathlib.Path, stop: Stop, say: Callable[[str], None]) -> tuple[int, str]:
  """(exit code, last line) of a run."""
  command = [sys.executable, "-m", "ltjax.main", f"--config={run.config}", f"--workdir={folder / run.name}",
             *run.options]
  path = folder / "logs" / f"{run.name}.log"
  with open(path, "ab") as output:
    # A session of its own: Ctrl-C reaches it once, from here.
    stop.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                    start_new_session=True)
    say(f"{run.name}: started")
    while True:
      try:
        code = stop.process.wait(_LOOK)
        break
      except subprocess.TimeoutExpired:
        _show(folder, run)
  _show(folder, None)
  lines = path.read_text(errors="replace").replace("\r", "\n").split("\n")
  return code, next((line for line in reversed(lines) if line.strip()), "")[:300]


def _show(folder: pathlib.Path, run: Run | None) -> None:
  """One line on a terminal, overwritten, of how far a run is."""
  if not sys.stderr.isatty():
    return
  text = ""
  for path in sorted((folder / run.name).glob("*/metrics.jsonl"), key=lambda path: path.stat().st_mtime) if run else ():
    last = next((line for line in reversed(log.read(path)) if "loss" in line), None)
    if last:
      text = f"  {run.name}: {path.parent.name}, epoch {last['epoch']:.1f}, loss {last['loss']:.3f}"
  print(f"\r{text:100}\r{text}", end="", file=sys.stderr, flush=True)


def _held(workdir: pathlib.Path) -> bool:
  """Whether a run holds the work folder now."""
  path = workdir / lock.NAME
  if not path.is_file():
    return False
  with open(path) as file:
    try:
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
      return True
    except OSError:
      return False  # a file system without locks
  return False


def _accuracy(folder: pathlib.Path, run: Run) -> str:
  return f"{100 * results(folder, run)['final']['overall']:.2f} % right"
