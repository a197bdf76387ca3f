"""What a program that listens does with signals, in a process of its own."""

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
signals.GRACE = 0.5
if case == "twice":
  signals.AGAIN, signals.AGAIN_OTHERS = {}, 0.1
stop = signals.StopRequest()
if case == "together":
  stop.together()
if case not in ("before the first step", "together"):
  assert not stop()
print("ready", flush=True)
deadline = time.monotonic() + 20
while case in ("steps", "twice", "repeated", "together") and time.monotonic() < deadline:
  time.sleep(0.05)  # a step
  if stop() and case != "twice":
    print("saved", flush=True)
    sys.exit(signals.EXIT_STOPPED)
time.sleep(20)  # compiles
"""


def told(case: str, *numbers: int) -> tuple[int, str, str]:
  """(exit code, stdout, stderr) of the program, which gets the signals a moment apart."""
  with subprocess.Popen([sys.executable, "-c", PROGRAM, case], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE) as process:
    try:
      assert process.stdout.readline() == "ready\n", process.stderr.read()
      for place, number in enumerate(numbers):
        time.sleep(0.2 * bool(place))
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
def test_later_the_step_in_flight_ends_and_is_saved(number):
  code, out, err = told("steps", number)
  assert (code, out) == (75, "saved\n")
  assert err.strip() == f"{signal.Signals(number).name}: saving after the steps in flight ..."


def test_one_request_that_arrives_several_times_is_one_request():
  # As systemd and Slurm send it to every process of a unit, and the launcher passes its own on.
  code, out, err = told("repeated", signal.SIGTERM, signal.SIGTERM, signal.SIGINT)
  assert (code, out) == (75, "saved\n") and "again" not in err


def test_a_process_of_several_does_not_leave_the_others_before_its_first_step():
  code, out, err = told("together", signal.SIGTERM)
  assert (code, out) == (75, "saved\n") and "before the first step" not in err


def test_where_no_step_ends_the_program_does_at_the_newest_checkpoint():
  code, _, err = told("compiling", signal.SIGTERM)
  assert code == 75
  assert err.splitlines()[-1].startswith("SIGTERM: no step ended in 0 s; the run continues from its newest checkpoint")


def test_a_second_signal_ends_it_without_saving():
  code, out, err = told("twice", signal.SIGTERM, signal.SIGINT)
  assert (code, out) == (128 + signal.SIGINT, "")
  assert err.splitlines()[-1] == "SIGINT again: ending without saving"


def test_others_are_left_alone():
  assert told("steps", signal.SIGUSR2)[0] == -signal.SIGUSR2
