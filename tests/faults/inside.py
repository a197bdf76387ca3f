"""`python -m ltjax.main`, which sends itself a signal in a certain phase, as LTJAX_FAULT says.

LTJAX_FAULT is JSON: {"phase", "delay", "steps", "signal", "file"}. After `delay` seconds the process waits until one of
its threads is in `phase` ("any": at once) and, where that is "train", has done `steps` steps of the stage; then it
writes its phase to `file` and sends itself the signal. The program is the real one, not a stand-in: a few of its
functions note that they are called. (The stacks of the threads would say as much, but CPython 3.11 crashes now and then
when one thread walks the frames of another.)
"""

import collections
import functools
import importlib.abc
import importlib.machinery
import json
import os
import pathlib
import runpy
import signal
import sys
import threading
import time

PHASES = ("import", "start", "compile", "train", "evaluate", "save", "stage change", "report")
# The phase is that of the first entry that is being called.
_NOTED = (
    ("report", "ltjax.report.page", "draw"), ("evaluate", "ltjax.data.evaluate", "Evaluator.measure"),
    ("evaluate", "ltjax.data.evaluate", "Extractor.__call__"),
    ("save", "ltjax.workdir.checkpoint", "Checkpoints._write"),
    ("save", "ltjax.workdir.checkpoint", "Checkpoints.save"),
    ("stage change", "ltjax.workdir.checkpoint", "Checkpoints.restore_model"),
    ("stage change", "ltjax.bridge", "take_over"), ("compile", "jax._src.compiler", "compile_or_get_cached"),
    ("train", "ltjax.train", "run_stage"), ("start", "ltjax.workdir.folder", "check_local"))
_lock, _calls, _stage = threading.Lock(), collections.Counter(), {}


class Noting(importlib.abc.MetaPathFinder):
  """Has the functions of `_NOTED` count their calls as soon as their modules are imported."""

  def find_spec(self, name, path, target=None):
    noted = [(phase, function) for phase, module, function in _NOTED if module == name]
    steps = name == "ltjax.distributed.processes"
    if not noted and not steps:
      return None
    spec = importlib.machinery.PathFinder.find_spec(name, path)
    execute = spec.loader.exec_module

    def exec_module(module):
      execute(module)
      for phase, function in noted:
        *owner, last = function.split(".")
        place = functools.reduce(getattr, owner, module)
        setattr(place, last, _counted(getattr(place, last), phase))
      if steps:
        module.report_progress = _followed(module.report_progress)

    spec.loader.exec_module = exec_module
    return spec


def _counted(function, phase: str):
  @functools.wraps(function)
  def call(*args, **kwargs):
    with _lock:
      _calls[phase] += 1
      if phase == "train":
        _stage.update(stage=args[0].name, done=0, start=0, looping=False)
    try:
      return function(*args, **kwargs)
    finally:
      with _lock:
        _calls[phase] -= phase != "start"  # it lasts until another phase begins
        if phase == "train":
          _stage.clear()

  return call


def _followed(report):
  """`processes.report_progress`, to which the loop tells its steps."""

  @functools.wraps(report)
  def call(phase):
    words = phase.rsplit(" step ", 1)
    with _lock:
      if len(words) == 2 and words[0] == _stage.get("stage"):
        done = int(words[1])
        _stage.update(done=done, start=_stage["start"] if _stage["looping"] else done, looping=True)
    report(phase)

  return call


def where() -> dict:
  """{"phase", "stage", "done", "start"}: where the program is; the last three where a stage is under way."""
  with _lock:
    phase = next((phase for phase, *_ in _NOTED if _calls[phase]), "import")
    found = dict(_stage)
  looping = found.pop("looping", True)
  return dict(phase="start" if phase == "train" and not looping else phase, **found)


def _is_there(now: dict, fault: dict) -> bool:
  if fault["phase"] == "train" == now["phase"]:
    return now["done"] - now["start"] >= fault["steps"]
  return fault["phase"] in (now["phase"], "any")


def _fire(fault: dict) -> None:
  while not any(thread.name == "signals" for thread in threading.enumerate()):
    time.sleep(0.001)
  time.sleep(fault["delay"])
  while not _is_there(now := where(), fault):
    time.sleep(0.0005)
  pathlib.Path(fault["file"]).write_text(json.dumps(now | dict(time=time.time())))
  os.kill(os.getpid(), getattr(signal, fault["signal"]))


if __name__ == "__main__":
  if "LTJAX_FAULT" in os.environ:
    sys.meta_path.insert(0, Noting())
    threading.Thread(target=_fire, args=(json.loads(os.environ["LTJAX_FAULT"]),), daemon=True).start()
  runpy.run_module("ltjax.main", run_name="__main__", alter_sys=True)
