"""A run that was stopped, or killed, and run again is the run that was never interrupted: bit for bit."""

import json
import pathlib
from typing import NamedTuple

import jax
import pytest

from ltjax import main, recipes
from ltjax.data import samplers
from ltjax.stage import Stage
from ltjax.train import Interrupted
from ltjax.workdir import lock, manifest
from tests import tiny

pytestmark = [pytest.mark.usefixtures("no_pictures"), pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="bits are compared, and accelerators may add in another order every time")]


def ce_digits(backbone=tiny.ONE_CONV, **overrides):
  return tiny.config("ce_digits", backbone=backbone, steps_per_call=1, **overrides)


# Two stages of 10 steps each: a log line every 3 steps, an evaluation and a checkpoint every 5.
CONFIGS = dict(
    # instance sampling, then cben with a frozen backbone; noisy logits and mixup in both stages
    gcl=lambda: tiny.config(backbone=tiny.ONE_CONV, steps_per_call=1, classifier__mixup=1.0),
    # no mixup; all parameters trained in both samplings, one without decay
    balanced=lambda: ce_digits(representation__sampler=dict(name="class_balanced"),
                               representation__optimizer__no_decay=("head/bias",)),
    # turns of a class cut by batches and by epochs
    aware=lambda: ce_digits(representation__sampler=dict(name="class_aware", samples_per_class=3)),
    # two batches per step, and a weight that moves with the epochs
    bbn=lambda: ce_digits(
        backbone=dict(name="ResNetBBN", depth=14, widths=(4, 4, 8)), representation__transforms=(dict(
            name="two_branches", sampler=dict(name="reverse"), share=dict(name="parabolic", start=1.0, end=0.0)),)),
    # looked at on held-out images wherever it is saved
    held_out=lambda: ce_digits(dataset__holdout=0.1, keep_checkpoints=1),
    # features generated from the second epoch on, by another compiled step
    generating=lambda: ce_digits(
        backbone=dict(name="ResNetCIFAR", depth=8, widths=(4, 4, 8), insert=dict(name="AFA")),
        representation__transforms=(dict(name="generate_features", weight=dict(name="switch", at=1, after=2.0)),)),
    # counts of a loss, moments of an optimiser and a moving average; a batch in two parts
    stateful=lambda: ce_digits(
        representation__adjust=dict(name="seesaw"), representation__lr=0.01, representation__optimizer=dict(
            name="adamw", weight_decay=0.05, clip_norm=1.0, accumulate=2, ema=0.9)))


@pytest.fixture(scope="module", autouse=True)
def shared_compilations():
  with tiny.shared_compilations():
    yield


class Killed(Exception):
  """Stands for a crash: nothing in ltjax catches it, and nothing is saved on the way out."""


class Straight(NamedTuple):
  """A run without interruption."""

  config: object
  workdir: pathlib.Path
  results: dict
  stages: dict[str, Stage]
  states: dict
  loop_iterations: int


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
  """name -> the uninterrupted run of that config, trained once."""
  runs = {}

  def get(name: str) -> Straight:
    if name not in runs:
      config, workdir, calls = CONFIGS[name](), tmp_path_factory.mktemp(name), []
      results = main.run(config, workdir, lambda: calls.append(1))
      stages = tiny.stages(config)
      states = {name: tiny.saved(stage, workdir) for name, stage in stages.items()}
      runs[name] = Straight(config, workdir, results, stages, states, len(calls))
    return runs[name]

  return get


def kill_at(step: int):
  """A `stop` that raises after `step` training steps of this call: the step is done, nothing of it is written."""
  calls = iter(range(1, 10**9))

  def stop():
    if next(calls) == step:
      raise Killed
    return False

  return stop


def newest(config, workdir) -> tuple[str, int] | None:
  """Where a rerun starts: the last stage that has a checkpoint, and its step."""
  found = [(stage, max(steps)) for stage in config.stages if (steps := tiny.saved_steps(workdir, stage))]
  return found[-1] if found else None


def assert_same_run(expected: Straight, workdir: pathlib.Path, results: dict) -> None:
  for stage in expected.config.stages:
    for name in ("metrics.jsonl", "feature_norms.jsonl"):
      assert tiny.log(workdir, stage, name) == tiny.log(expected.workdir, stage, name)
    tiny.assert_trees_equal(tiny.saved(expected.stages[stage], workdir), expected.states[stage])
    for key in ("test", "per_class", "best_selected_on_test", "best_on_held_out", "steps"):
      assert results["stages"][stage][key] == expected.results["stages"][stage][key], key
  assert results["final"] == expected.results["final"]
  assert json.loads((workdir / "results.json").read_text()) == json.loads(json.dumps(results))


STOPS = [
    ("gcl", (2,), ("representation", 2)),  # before the first log line and the first checkpoint
    ("gcl", (5,), ("representation", 5)),  # exactly at a checkpoint and an evaluation, inside a log window
    ("gcl", (7,), ("representation", 7)),  # inside a log window that has a checkpoint inside
    ("gcl", (9,), ("representation", 9)),  # exactly at a log line
    ("gcl", (10,), ("representation", 10)),  # at the last step of the first stage, which is saved but not evaluated yet
    ("gcl", (13,), ("classifier", 3)),  # in the second stage
    ("gcl", (4, 4), ("representation", 8)),  # twice in one stage
    ("gcl", (8, 9), ("classifier", 7)),  # once in each
    ("balanced", (1, 1), ("representation", 2)),
    ("balanced", (10,), ("representation", 10)),  # at the last step of the run
    ("aware", (4,), ("representation", 4)),
    ("held_out", (4,), ("representation", 4)),  # where it is saved, before anything is looked at
    ("held_out", (3, 2), ("representation", 5)),
    ("bbn", (4, 3), ("representation", 7)),  # in both epochs
    ("generating", (4, 3), ("representation", 7)),  # before generation begins, and after
    ("stateful", (4, 3), ("representation", 7)),
]


@pytest.mark.parametrize(("name", "stops", "where"), STOPS, ids=[f"{name}-{stops}" for name, stops, _ in STOPS])
def test_stopped_and_rerun_is_the_straight_run(straight, tmp_path, name, stops, where):
  expected = straight(name)
  for stop_after in stops:
    with pytest.raises(Interrupted):
      tiny.run(expected.config, tmp_path, stop_after=stop_after)
    assert not (tmp_path / "results.json").exists()
  assert newest(expected.config, tmp_path) == where
  assert_same_run(expected, tmp_path, tiny.run(expected.config, tmp_path))


KILLS = [
    ("gcl", 4, None),  # no checkpoint yet: starts afresh, the log of step 3 goes
    ("gcl", 9, ("representation", 5)),  # the log has a line of step 6
    ("gcl", 11, ("representation", 10)),  # in the first step after the bridge
    ("gcl", 19, ("classifier", 5)),
    ("balanced", 9, ("representation", 5)),
    ("bbn", 7, ("representation", 5)),
    ("stateful", 7, ("representation", 5)),
]


@pytest.mark.parametrize(("name", "step", "where"), KILLS, ids=[f"{name}-{step}" for name, step, _ in KILLS])
def test_killed_and_rerun_is_the_straight_run(straight, tmp_path, name, step, where):
  expected = straight(name)
  with pytest.raises(Killed):
    main.run(expected.config, tmp_path, kill_at(step))
  assert newest(expected.config, tmp_path) == where
  stage = expected.config.stages[(step - 1) // 10]
  if step != 11:  # there the bridge had just been crossed
    written = tiny.log(tmp_path, stage)[-1]["step"]
    assert written > (where[1] if where and where[0] == stage else 0), "the log was to be ahead of the checkpoint"
  with (tmp_path / stage / "metrics.jsonl").open("a") as file:
    file.write('{"step": 9, "epoch": 1.8, "lo')  # the line that was being written
  assert_same_run(expected, tmp_path, tiny.run(expected.config, tmp_path))


def test_the_straight_run_is_what_the_tests_here_rely_on(straight):
  run = straight("gcl")
  assert run.loop_iterations == 20  # stop() is called once per step
  assert [(line["step"], "test" in line) for line in tiny.log(run.workdir, "classifier")] == [
      (3, False), (5, True), (6, False), (9, False), (10, False), (10, True)]
  assert [line["step"] for line in tiny.log(run.workdir, "classifier", "feature_norms.jsonl")] == [5, 10]
  assert {stage: int(state.step) for stage, state in run.states.items()} == dict(representation=10, classifier=10)
  assert all(tiny.saved_steps(run.workdir, stage) == [5, 10] for stage in run.config.stages)
  # The compared runs do train: another seed gives other numbers.
  first, second = (state.params["head"]["kernel"] for state in run.states.values())
  assert (first != second).any()


def test_repeating_a_finished_run_changes_nothing_and_trains_no_step(straight, monkeypatch):
  def refuse(*args, **kwargs):
    raise AssertionError("a step was trained")

  run = straight("gcl")

  def contents():  # except for the holder of the folder and its start
    return {path: path.read_bytes() for path in run.workdir.rglob("*") if path.is_file() and path.name != lock.NAME}

  files = contents()
  monkeypatch.setattr(Stage, "train_steps", property(refuse))
  results = main.run(run.config, run.workdir, refuse)
  assert results == run.results
  assert contents() == files


# -- every sampler and CAMC's prototypes, by a network that compiles in a moment ---------------------------------------


def sampled(name: str):
  """One stage of ten steps with a sampler."""
  given = dict(power=dict(q=0.3), class_aware=dict(samples_per_class=3), progressive=dict(progress=dict(name="linear")))
  return ce_digits(representation__sampler=dict(name=name, **given.get(name, {})))


def camc():
  """Ten steps, and ten of a head with prototypes of the images that the first stage knows."""
  return ce_digits(stages=("representation", "classifier"), classifier=recipes.stage(
      epochs=2, batch_size=128, lr=0.1, optimizer=recipes.sgd(2e-4), train=("head/.*",),
      loss=dict(name="cross_entropy"), sampler=dict(name="class_balanced"),
      head=dict(name="CAMC", scale=16.0, threshold=100)))


@pytest.mark.parametrize(("name", "stops"), [
    *((name, (4, 3)) for name in samplers.__all__),  # inside an epoch, and inside the next
    ("camc", (4, 9))])  # in each stage
def test_every_sampler_and_prototypes_resumed_are_those_of_the_straight_run(tmp_path, name, stops):
  config = camc() if name == "camc" else sampled(name)
  straight = tiny.run(config, tmp_path / "straight")
  for stop_after in stops:
    with pytest.raises(Interrupted):
      tiny.run(config, tmp_path / "stopped", stop_after=stop_after)
  stopped = tiny.run(config, tmp_path / "stopped")
  assert stopped["final"] == straight["final"]
  for stage in config.stages:
    assert tiny.log(tmp_path / "stopped", stage) == tiny.log(tmp_path / "straight", stage)
    found, wanted = (manifest.read(tmp_path / folder / stage / "checkpoints" / "10")
                     for folder in ("stopped", "straight"))
    assert found["values_sha256"] == wanted["values_sha256"]
