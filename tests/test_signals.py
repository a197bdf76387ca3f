"""The reaction of a listening program to signals, in a separate process."""

import signal
import subprocess
import sys
import time

import pytest

from ltjax.distributed import signals
from tests.processes import ROOT

PROGRAM = """
import sys, time
from ltjax.distributed import signals

case = sys.argv[1]
signals.GRACE, signals.AGAIN, signals.AGAIN_BY_HAND, signals.REPORT = 0.5, 1.0, 0.3, 0.25
stop = signals.StopRequest()
if case != "before the first step":
  assert not stop()
print("ready", flush=True)
deadline = time.monotonic() + 20
while case in ("steps", "slow steps", "waits") and time.monotonic() < deadline:
  time.sleep(0.05)  # a step
  if stop() and case != "slow steps":
    time.sleep(0.7 if case == "waits" else 0)
    print("saved", flush=True)
    sys.exit(signals.EXIT_STOPPED)
time.sleep(20)  # compiles
"""
# A shell ignores some of these signals for tests in the background, and their processes inherit that.
DEFAULTS = ["env", "--default-signal=INT,HUP"]
HAND, MACHINE = (signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGTERM)


def told(case: str, *numbers: int, apart: float = 0.2, start=DEFAULTS) -> tuple[int, str, str]:
  """(exit code, stdout, stderr) of the program, which gets the signals some seconds apart."""
  with subprocess.Popen([*start, sys.executable, "-c", PROGRAM, case], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE) as process:
    try:
      assert process.stdout.readline() == "ready\n", process.stderr.read()
      for place, number in enumerate(numbers):
        time.sleep(apart * bool(place))
        process.send_signal(number)
      out, err = process.communicate(timeout=15)
    finally:
      process.kill()
  return process.returncode, out, err


@pytest.mark.parametrize("number", signals.NUMBERS)
def test_before_the_first_step_the_program_ends_at_once(number):
  code, _, err = told("before the first step", number)
  assert code == 75
  assert err.strip() == f"{signal.Signals(number).name}: stopped before the first step; run the same command again"


@pytest.mark.parametrize("number", signals.NUMBERS)
def test_during_training_the_step_in_flight_ends_and_is_saved(number):
  code, out, err = told("steps", number)
  assert (code, out) == (75, "saved\n")
  assert err.strip().startswith(f"{signal.Signals(number).name}: saving after the steps in flight ... (again after ")


def test_without_a_finished_step_the_program_ends_at_the_newest_checkpoint():
  code, _, err = told("compiling", signal.SIGTERM)
  assert code == 75
  assert err.splitlines()[-1].startswith("SIGTERM: no step ended in 0 s; the run continues from its newest checkpoint")


@pytest.mark.parametrize(("numbers", "apart"), [
    (MACHINE, 0.0), (MACHINE, 0.2), ((signal.SIGTERM, signal.SIGINT), 0.2), ((signal.SIGHUP, signal.SIGTERM), 0.2),
    (HAND, 0.0)])
def test_one_request_that_arrives_twice_is_saved(numbers, apart):
  code, out, err = told("waits", *numbers, apart=apart)
  assert (code, out) == (75, "saved\n") and "without saving\n" not in err


@pytest.mark.parametrize(("numbers", "apart"), [(HAND, 0.5), (MACHINE, 1.3), ((signal.SIGTERM, signal.SIGUSR1), 1.3)])
def test_a_later_signal_ends_the_program_without_saving(numbers, apart):
  code, out, err = told("slow steps", *numbers, apart=apart)
  assert (code, out) == (128 + numbers[1], "")
  assert f"{numbers[1].name} again: ending without saving" in err.splitlines()  # the report of a wait may follow


def test_a_wait_is_reported():
  code, out, err = told("waits", signal.SIGTERM)
  assert (code, out) == (75, "saved\n")
  assert "SIGTERM: 0 s, still waiting for the steps in flight and the save" in err
  assert "waiting" not in told("steps", signal.SIGTERM)[2]


def test_a_run_under_nohup_survives_its_terminal():
  code, out, err = told("steps", signal.SIGHUP, signal.SIGTERM, start=["nohup"])
  assert (code, out) == (75, "saved\n") and "SIGTERM: saving" in err and "SIGHUP" not in err


def test_other_signals_are_left_alone():
  assert told("steps", signal.SIGUSR2)[0] == -signal.SIGUSR2


def test_a_program_ends_at_its_last_line_whatever_its_threads_do():
  program = """
import atexit, sys
from ltjax.distributed import signals
atexit.register(print, "an error of a thread that was stopped")
print("words", end="")
print("last words", end="", file=sys.stderr)
signals.leave(74)
"""
  found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
  assert (found.returncode, found.stdout, found.stderr) == (74, "words", "last words")
