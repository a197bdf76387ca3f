"""A run that was stopped, or killed, and run again is the run that was never interrupted: bit for bit."""

import json
import pathlib
from typing import NamedTuple

import jax
import pytest

from ltjax import main, models, recipes, train
from ltjax.config import bind as build
from ltjax.data import samplers
from ltjax.report import plots
from ltjax.train import Interrupted
from ltjax.workdir import lock, manifest
from ltjax.workdir.checkpoint import Checkpoints
from tests import tiny

pytestmark = pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="bits are compared, and accelerators may add in another order every time")

MODEL = build.model
# Two stages of 10 steps each: a log line every 3 steps, an evaluation and a checkpoint every 5.
CONFIGS = dict(
    # instance sampling, then cben with a frozen backbone; noisy logits and mixup in both stages
    gcl=lambda: tiny.config("gcl_digits", steps_per_call=1, classifier__mixup=1.0),
    # no mixup; all parameters trained in both samplings, one without decay
    balanced=lambda: tiny.config("ce_digits", steps_per_call=1, representation__sampler=dict(name="class_balanced"),
                                 representation__no_decay=("head/bias",)),
    # turns of a class cut by batches and by epochs
    aware=lambda: tiny.config("ce_digits", steps_per_call=1,
                              representation__sampler=dict(name="class_aware", samples_per_class=3)),
    # two batches a step, and a share that moves with the epochs
    bbn=lambda: tiny.config(
        "ce_digits", steps_per_call=1, backbone__name="ResNetBBN", backbone__depth=14,
        representation__branches=dict(sampler=dict(name="reverse"), share=dict(name="parabolic", start=1.0, end=0.0))),
    # looked at on held-out images wherever it is saved
    held_out=lambda: tiny.config("ce_digits", steps_per_call=1, dataset__holdout=0.1, keep_checkpoints=1),
    # features generated from the second epoch on, by a compiled step of its own
    generating=lambda: tiny.config(
        "ce_digits", steps_per_call=1, backbone__insert=dict(name="AFA"),
        representation__generation=dict(gamma=1.0, alpha=4.0, weight=dict(name="switch", at=1, after=2.0))))


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
  """The report's pictures are a third of the time of a tiny run and say nothing about resuming."""
  for name in ("training_curves", "accuracy_by_class_size", "confusion_matrix"):
    monkeypatch.setattr(plots, name, lambda *args: None)


class Killed(Exception):
  """Stands for a crash: nothing in ltjax catches it, and nothing is saved on the way out."""


class Straight(NamedTuple):
  """A run without interruption."""

  config: object
  workdir: pathlib.Path
  results: dict
  likes: dict  # the shapes of each stage's state
  states: dict
  loop_iterations: int


def saved(workdir: pathlib.Path, stage: str, like):
  """The newest state that `stage` has saved."""
  with Checkpoints(workdir / stage / "checkpoints") as checkpoints:
    return checkpoints.restore(like)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
  """name -> the uninterrupted run of that config, trained once."""
  runs = {}

  def get(name: str) -> Straight:
    if name not in runs:
      config, workdir, calls = CONFIGS[name](), tmp_path_factory.mktemp(name), []
      results = main.run(config, workdir, lambda: calls.append(1))
      likes = {stage: tiny.parts(config, stage).stage.like for stage in config.stages}
      states = {stage: saved(workdir, stage, like) for stage, like in likes.items()}
      runs[name] = Straight(config, workdir, results, likes, states, len(calls))
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
    assert tiny.log(workdir, stage) == tiny.log(expected.workdir, stage)
    tiny.assert_trees_equal(saved(workdir, stage, expected.likes[stage]), expected.states[stage])
    for key in ("test", "per_class", "best_selected_on_test", "best_on_held_out", "steps"):
      assert results["stages"][stage][key] == expected.results["stages"][stage][key], key
  assert results["final"] == expected.results["final"]
  assert json.loads((workdir / "results.json").read_text()) == json.loads(json.dumps(results))


STOPS = [
    ("gcl", (2,), ("representation", 2)),  # before the first log line and the first checkpoint
    ("gcl", (5,), ("representation", 5)),  # exactly at a checkpoint and an evaluation, inside a log window
    ("gcl", (7,), ("representation", 7)),  # inside a log window that has a checkpoint inside
    ("gcl", (9,), ("representation", 9)),  # exactly at a log line
    ("gcl", (10,), ("classifier", 1)),  # at the last step of the first stage: ends after one step of the second
    ("gcl", (13,), ("classifier", 3)),  # in the second stage
    ("gcl", (4, 4), ("representation", 8)),  # twice in one stage
    ("gcl", (8, 9), ("classifier", 7)),  # once in each
    ("balanced", (1, 1), ("representation", 2)),
    ("aware", (4,), ("representation", 4)),
    ("held_out", (4,), ("representation", 4)),  # where it is saved, before anything is looked at
    ("held_out", (3, 2), ("representation", 5)),
    ("bbn", (4, 3), ("representation", 7)),  # in both epochs
    ("generating", (4, 3), ("representation", 7)),  # before generation begins, and after
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


def test_the_straight_run_says_what_the_tests_here_rely_on(straight):
  run = straight("gcl")
  assert run.loop_iterations == 20  # stop() is asked once a step
  assert [(line["step"], "test" in line) for line in tiny.log(run.workdir, "classifier")] == [
      (3, False), (5, True), (6, False), (9, False), (10, False), (10, True)]
  assert {stage: int(state.step) for stage, state in run.states.items()} == dict(representation=10, classifier=10)
  assert all(tiny.saved_steps(run.workdir, stage) == [5, 10] for stage in run.config.stages)
  # The runs that are compared do train: another seed gives other numbers.
  first, second = (state.params["head"]["kernel"] for state in run.states.values())
  assert (first != second).any()


def test_a_finished_run_rerun_changes_nothing_and_trains_no_step(straight, monkeypatch):
  def refuse(*args, **kwargs):
    raise AssertionError("a step was trained")

  run = straight("gcl")
  def contents():  # but who holds the folder, and since when
    return {path: path.read_bytes() for path in run.workdir.rglob("*") if path.is_file() and path.name != lock.NAME}

  files = contents()
  monkeypatch.setattr(train.steps, "make_train_step", lambda *args, **kwargs: refuse)
  results = main.run(run.config, run.workdir, refuse)
  assert results == run.results
  assert contents() == files


# -- every sampler and CAMC's prototypes, by a network that compiles in a moment ---------------------------------------


def sampled(name: str):
  """One stage of ten steps with a sampler."""
  given = dict(power=dict(q=0.3), class_aware=dict(samples_per_class=3), progressive=dict(progress=dict(name="linear")))
  return tiny.config("ce_digits", steps_per_call=1, representation__sampler=dict(name=name, **given.get(name, {})))


def camc():
  """Ten steps, and ten of a head with prototypes of the images that the first stage knows."""
  config = tiny.config("ce_digits", steps_per_call=1)
  with config.unlocked():
    config.stages = ("representation", "classifier")
    config.classifier = recipes.stage(
        epochs=2, batch_size=128, lr=0.1, weight_decay=2e-4, train=("head/.*",), loss=dict(name="cross_entropy"),
        sampler=dict(name="class_balanced"), head=dict(name="CAMC", scale=16.0, threshold=100))
  return config


def with_head(config, class_counts, stage: str = "") -> models.Classifier:
  """Stands in for `build.model`: one convolution, but the head of the config."""
  return models.Classifier(backbone=tiny.OneConv(), head=MODEL(config, class_counts, stage).head)


@pytest.mark.parametrize("name", [*samplers.__all__, "camc"])
def test_every_sampler_and_prototypes_resumed_are_those_of_the_straight_run(tmp_path, monkeypatch, name):
  monkeypatch.setattr(build, "model", with_head)
  config = camc() if name == "camc" else sampled(name)
  whole = tiny.run(config, tmp_path / "whole")
  for stop_after in (4, 3) if name != "camc" else (4, 9):  # inside an epoch, and inside the next; of each stage
    with pytest.raises(Interrupted):
      tiny.run(config, tmp_path / "parts", stop_after=stop_after)
  parts = tiny.run(config, tmp_path / "parts")
  assert parts["final"] == whole["final"]
  for stage in config.stages:
    assert tiny.log(tmp_path / "parts", stage) == tiny.log(tmp_path / "whole", stage)
    found, wanted = (manifest.read(tmp_path / folder / stage / "checkpoints" / "10") for folder in ("parts", "whole"))
    assert found["values_sha256"] == wanted["values_sha256"]
