"""One run by one process, then four, then two equals the uninterrupted run of one process.

`python -m tests.test_elastic` is the processes' program; a single process is this one.
"""

import json
import pathlib
import signal
import sys
import time
from unittest import mock

import jax
import numpy as np
import pytest

from ltjax import main, train
from ltjax.distributed import processes
from ltjax.stage import Stage
from tests import tiny
from tests.faults.runs import environment
from tests.processes import Processes

STEPS = 5  # of each of two stages
# (number of processes, number of steps before one of them is asked to stop, that process)
PARTS = ((1, 3, 0), (4, 3, 2), (2, None, 0))


def config():
  """Two stages, at rates that let no difference in the last digit grow."""
  slow = dict(name="constant", value=1e-4)
  return tiny.config("gcl_digits", epochs=1, backbone=tiny.ONE_CONV, log_every_steps=1, eval_batch_size=100,
                     steps_per_call=1, representation__lr=slow, classifier__lr=slow)


def work(workdir: pathlib.Path, stop_after: int | None, who: int) -> dict:
  """`main.run`; returns which examples this process had, and how it ended."""
  seen, batches = [], Stage.batches

  def recorded(self, first, count):
    indices, scalars = batches(self, first, count)
    seen.append((first, np.concatenate([np.asarray(shard.data) for shard in indices.addressable_shards]).tolist()))
    return indices, scalars

  calls = iter(range(1, 10**9))

  def stop():
    return next(calls) >= (stop_after or 10**9) and jax.process_index() == who

  ended = "finished"
  with mock.patch.object(Stage, "batches", recorded):
    try:
      main.run(config(), workdir, stop)
    except train.Interrupted:
      ended = "stopped"
  return json.loads(json.dumps(dict(seen=seen, ended=ended, processes=jax.process_count())))


def part(workdir: pathlib.Path, count: int, stop_after: int | None, who: int, cache: pathlib.Path) -> list[dict]:
  """The report of each of `count` processes about its part of the run."""
  if count == 1:
    return [work(workdir, stop_after, who)]
  with Processes(["tests.test_elastic", str(workdir), str(stop_after or 0), str(who)], count,
                 environment=environment(cache)) as run:
    ended = run.all_ended(200)
  assert [process.code for process in ended] == [0] * count, [process.err[-2000:] for process in ended]
  return [json.loads(process.out.splitlines()[-1]) for process in ended]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  """Compiled programs, for all runs of these tests."""
  return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, cache, no_pictures):
  """(folder and answer of the uninterrupted run, folder and answers part by part of the other one)."""
  complete, parts = tmp_path_factory.mktemp("complete"), tmp_path_factory.mktemp("parts")
  with tiny.shared_compilations():
    straight = work(complete, None, 0)
    return complete, straight, parts, [part(parts, *arguments, cache) for arguments in PARTS]


def test_the_parts_are_what_the_test_is_about(runs):
  for (count, stop_after, _), answers in zip(PARTS, runs[3], strict=True):
    assert [answer["processes"] for answer in answers] == [count] * count
    assert {answer["ended"] for answer in answers} == {"stopped" if stop_after else "finished"}


def test_all_stop_at_the_same_step(runs):
  for answers in runs[3]:
    assert len({tuple(step for step, _ in answer["seen"]) for answer in answers}) == 1


def test_the_examples_are_the_same_in_the_same_order(runs):
  _, straight, _, parts = runs
  found = [[first, [example for answer in answers for example in answer["seen"][place][1]]]
           for answers in parts for place, (first, _) in enumerate(answers[0]["seen"])]
  assert found == straight["seen"] and len(found) == 2 * STEPS


def test_losses_are_equal_up_to_rounding_and_counts_are_equal(runs):
  complete, _, parts, _ = runs
  for stage in ("representation", "classifier"):
    expected, found = tiny.log(complete, stage), tiny.log(parts, stage)
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    assert [line.get("test") for line in found] == [line.get("test") for line in expected]
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in (expected, found)]
    assert len(set(losses[0])) == STEPS
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
  results = [json.loads((folder / "results.json").read_text()) for folder in (complete, parts)]
  assert results[0]["final"] == results[1]["final"]
  assert [found["hardware"]["processes"] for found in results] == [1, 2]


def test_logs_are_written_once(runs):
  _, _, parts, _ = runs
  for stage in ("representation", "classifier"):
    lines = [(line["step"], *sorted(line)) for line in tiny.log(parts, stage)]
    assert len(lines) == len(set(lines))


def test_a_signal_to_one_process_stops_all_of_them_with_everything_saved(tmp_path, cache):
  number, workdir = signal.SIGTERM, tmp_path / "run"
  with Processes(["ltjax.main", "--config=configs/ce_digits.py", f"--workdir={workdir}",
                  "--config.backbone=dict(name='tests.tiny:OneConv')", "--config.representation.epochs=1000",
                  "--config.log_every_steps=1"], 2, environment=environment(cache)) as run:
    log = workdir / "representation" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text()):
      assert time.monotonic() < deadline, run.text(0, "err")
      time.sleep(0.1)
    run.send(1, number)
    ended = run.all_ended(60)
  assert [process.code for process in ended] == [75, 75], [process.err[-2000:] for process in ended]
  assert number.name in ended[1].err and "everything is saved" in ended[0].err
  (step,) = tiny.saved_steps(workdir, "representation")
  assert step == tiny.log(workdir, "representation")[-1]["step"]


if __name__ == "__main__":
  processes.start()
  answer = work(pathlib.Path(sys.argv[1]), int(sys.argv[2]) or None, int(sys.argv[3]))
  print(json.dumps(answer))
  processes.leave(0, answer["ended"])
