"""`python -m ltjax.main`, which sends itself a signal in a certain phase, as LTJAX_FAULT says.

LTJAX_FAULT is JSON: {"phase", "delay", "steps", "signal", "file"}. After `delay` seconds the process waits until its
threads are in `phase` ("any": at once) and, where that is "train", have done `steps` steps of the stage; then it writes
its phase to `file` and sends itself the signal. The program is the real one, not a stand-in: this module only
looks at the stacks of its threads.
"""

import json
import os
import pathlib
import runpy
import signal
import sys
import threading
import time

PHASES = ("import", "start", "compile", "train", "evaluate", "save", "stage change", "report")
# The phase is the first entry whose file (and function, if given) is on a stack.
_SEEN = (
    ("report", "ltjax/report/page.py", "write"), ("evaluate", "ltjax/data/evaluate.py", "__call__"),
    ("save", "ltjax/workdir/checkpoint.py", "_write"), ("save", "ltjax/workdir/checkpoint.py", "save"),
    ("stage change", "ltjax/workdir/checkpoint.py", "restore_model"), ("stage change", "ltjax/bridge.py", "take_over"),
    ("compile", "jax/_src/compiler.py", "compile_or_get_cached"), ("train", "ltjax/train.py", "run_stage"),
    ("start", "ltjax/main.py", "run"))


def where() -> dict:
  """{"phase", "stage", "done", "start"}: where the program is; the last three where a stage is under way."""
  frames, found = [], {}
  for frame in sys._current_frames().values():
    while frame:
      frames.append((frame.f_code.co_filename, frame.f_code.co_name))
      if frames[-1][1] == "run_stage":
        known = frame.f_locals
        found = dict(stage=known["stage"].name, done=int(known.get("done", 0)), start=int(known.get("start", 0)))
        looping = "flight" in known
      frame = frame.f_back
  phase = next((phase for phase, file, name in _SEEN if any(
      path.endswith(file) and function == name for path, function in frames)), "import")
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
    threading.Thread(target=_fire, args=(json.loads(os.environ["LTJAX_FAULT"]),), daemon=True).start()
  runpy.run_module("ltjax.main", run_name="__main__", alter_sys=True)
