"""What a user sees of the time that a run takes: its progress, and a forecast on a CPU."""

import io
import os
import pty
import subprocess
import sys

import jax
import numpy as np
import pytest

from ltjax import train
from ltjax.report import forecast, progress
from tests import tiny
from tests.processes import ROOT


class Terminal(io.StringIO):
  def isatty(self):
    return True


class Clock:
  """The time that the progress sees, in seconds."""

  def __init__(self, monkeypatch):
    self.now = 0.0
    monkeypatch.setattr(progress.time, "perf_counter", lambda: self.now)


def shown(stream, monkeypatch, **options) -> str:
  """What a stage of 4 steps prints."""
  monkeypatch.setattr("sys.stderr", stream)
  clock = Clock(monkeypatch)
  with progress.Progress("first", steps=4, epochs=2, batch_size=8, **options) as made:
    clock.now = 12.0
    made.advance(1)
    made.trained(0.51, 0.9)
    clock.now = 7212.0
    made.advance(1)
    made.evaluated(test=0.25)
    made.waited()  # a line has just been printed
    made.advance(2)
    made.evaluated(held_out=0.5)
  return stream.getvalue()


def test_a_pipe_gets_a_line_for_each_evaluation(monkeypatch):
  assert shown(io.StringIO(), monkeypatch, done=0).splitlines() == [
      "first:  25%|██▌       | step 1 of 4 after 12 s",
      "first:  50%|█████     | epoch 1 of 2, loss 0.510, accuracy 90.0%, test 25.0%, 0.00111 images/s, 4 h left",
      "first: 100%|██████████| epoch 2 of 2, loss 0.510, accuracy 90.0%, test 25.0%, held out 50.0%"]


def test_a_minute_of_silence_ends_with_a_line(monkeypatch):
  """So does a twentieth of the time so far, which is longer after 20 minutes."""
  stream, lines = io.StringIO(), {}
  monkeypatch.setattr("sys.stderr", stream)
  clock = Clock(monkeypatch)
  with progress.Progress("first", steps=10000, epochs=1, batch_size=8, done=0) as made:
    for step in range(1, 241):
      clock.now += 30.0
      made.advance(1)
      if step == 10:
        made.trained(0.51, 0.9)
      before = len(stream.getvalue())
      made.waited()
      if text := stream.getvalue()[before:]:
        lines[step] = text
  assert stream.getvalue().startswith("first:   0%|▏         | step 1 of 10,000 after 30 s\n")
  assert lines[3] == "first:   0%|▏         | step 3 of 10,000, 0.267 images/s, 83 h left\n"
  assert lines[11] == ("first:   0%|▏         | step 11 of 10,000, loss 0.510, accuracy 90.0%, 0.267 images/s, "
                       "83 h left\n")
  steps = list(lines)
  assert set(np.diff([step for step in steps if step <= 40])) == {2}  # of 30 s each
  assert list(np.diff(steps[-4:])) == [11, 12, 12]


def test_a_terminal_gets_a_bar_with_the_same_numbers(monkeypatch):
  text = shown(Terminal(), monkeypatch, done=0)
  assert "\r" in text and "step 1 of 4" not in text
  for part in ("loss=0.510", "accuracy=90.0%", "test=25.0%", "held_out=50.0%", "100%"):
    assert part in text


def test_the_time_left_on_a_bar_leaves_out_the_first_call_and_counts_evaluations(monkeypatch):
  stream = Terminal()
  monkeypatch.setattr("sys.stderr", stream)
  made = progress.Progress("first", steps=5, epochs=1, batch_size=8, done=0)
  began = made._bar.start_t
  for now in (began + 100, began + 110, began + 130):  # the first compiles, the last evaluates
    monkeypatch.setattr(progress.time, "time", lambda now=now: now)
    made._bar._time = progress.time.time
    made.advance(1)
  made._bar.refresh()
  assert "[00:30<00:30," in stream.getvalue().split("\r")[-1]
  made._bar.close()


def test_a_terminal_that_says_no_width_gets_a_bar():
  """As under `script` and in some containers."""
  program = ("from ltjax.report.progress import Progress\n"
             "with Progress('first', steps=2, done=0, epochs=1, batch_size=8) as made:\n"
             "  made.advance(2)\n  made.evaluated(test=0.25, held_out=0.5)\n")
  ours, theirs = pty.openpty()
  subprocess.run([sys.executable, "-c", program], cwd=ROOT, stderr=theirs, check=True, timeout=60)
  os.close(theirs)
  text = os.read(ours, 10**5).decode()  # what was written fits into its buffer
  os.close(ours)
  assert "first: 100%" in text and "test=25.0%, held_out=50.0%" in text


def test_splits_that_are_evaluated_together_are_one_line(monkeypatch):
  stream = io.StringIO()
  monkeypatch.setattr("sys.stderr", stream)
  with progress.Progress("first", steps=4, epochs=2, batch_size=8, done=0) as made:
    made.advance(4)
    made.evaluated(test=0.25, held_out=0.5)
  assert stream.getvalue().splitlines()[1:] == ["first: 100%|██████████| epoch 2 of 2, test 25.0%, held out 50.0%"]


def test_an_output_whose_encoding_has_no_blocks_gets_numbers(monkeypatch):
  class Ascii(io.StringIO):
    encoding = "ascii"

  assert shown(Ascii(), monkeypatch, done=0).startswith("first:  25% step 1 of 4 after 12 s\n")


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_other_processes_say_nothing(monkeypatch, stream):
  assert shown(stream(), monkeypatch, done=0, shown=False) == ""


@pytest.mark.parametrize(("seconds", "ahead"), [(0.01, 2), (2.6, 1), (5.1, 0), (60.0, 0)])
def test_slow_calls_are_not_given_in_advance(monkeypatch, seconds, ahead):
  """A stop waits for all calls that the devices have."""
  clock = iter((0.0, seconds))
  monkeypatch.setattr(train.time, "perf_counter", lambda: next(clock))
  flight = train.Flight(None, None, None)
  flight.start(0, np.array([True]))
  flight.collect(None, None)
  assert flight.ahead == ahead


def test_a_run_of_hours_on_a_cpu_is_announced(monkeypatch):
  stages = tuple(tiny.stages(tiny.config(backbone=tiny.ONE_CONV)).values())
  assert forecast.notes(stages) == []
  for stage in stages:
    assert 0 < forecast.seconds_of(stage) <= forecast._at_most(stage)
  total = sum(map(forecast.seconds_of, stages))
  monkeypatch.setattr(forecast, "RATE", forecast.RATE * total / 36000)
  (note,) = forecast.notes(stages)
  assert note.startswith("note: on ") and " representation takes about " in note and " hours, as far as " in note
  monkeypatch.setattr(forecast.decode, "cores", lambda: 1)
  assert forecast.notes(stages)[0].startswith("note: on 1 core representation takes about ")
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert forecast.notes(stages) == []
