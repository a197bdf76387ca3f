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
stop = signals.StopRequest()
if case != "before the first step":
  assert not stop()
print("ready", flush=True)
deadline = time.monotonic() + 20
while case in ("steps", "twice") and time.monotonic() < deadline:
  time.sleep(0.05)  # a step
  if stop() and case == "steps":
    print("saved", flush=True)
    sys.exit(signals.EXIT_STOPPED)
time.sleep(20)  # compiles
"""


def told(case: str, *numbers: int) -> tuple[int, str, str, float]:
  """(exit code, stdout, stderr, seconds) of the program, which gets the signals a moment apart."""
  with subprocess.Popen([sys.executable, "-c", PROGRAM, case], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE) as process:
    try:
      assert process.stdout.readline() == "ready\n", process.stderr.read()
      began = time.monotonic()
      for place, number in enumerate(numbers):
        time.sleep(0.2 * bool(place))
        process.send_signal(number)
      out, err = process.communicate(timeout=15)
    finally:
      process.kill()
  return process.returncode, out, err, time.monotonic() - began


@pytest.mark.parametrize("number", signals.NUMBERS)
def test_before_the_first_step_the_program_ends_at_once(number):
  code, _, err, seconds = told("before the first step", number)
  assert code == 75 and seconds < 5
  assert err.strip() == f"{signal.Signals(number).name}: stopped before the first step; run the same command again"


@pytest.mark.parametrize("number", signals.NUMBERS)
def test_later_the_step_in_flight_ends_and_is_saved(number):
  code, out, err, seconds = told("steps", number)
  assert (code, out) == (75, "saved\n") and seconds < 5
  assert err.strip() == f"{signal.Signals(number).name}: saving after this step ..."


def test_where_no_step_ends_the_program_does_at_the_newest_checkpoint():
  code, _, err, seconds = told("compiling", signal.SIGTERM)
  assert code == 75 and 0.4 < seconds < 5
  assert err.splitlines()[-1].startswith("SIGTERM: no step ended in 0 s; the run continues from its newest checkpoint")


def test_a_second_signal_ends_it_without_saving():
  code, out, err, _ = told("twice", signal.SIGTERM, signal.SIGINT)
  assert (code, out) == (128 + signal.SIGINT, "")
  assert err.splitlines()[-1] == "SIGINT again: ending without saving"


def test_others_are_left_alone():
  assert told("steps", signal.SIGUSR2)[0] == -signal.SIGUSR2
