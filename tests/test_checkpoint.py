"""Checkpoints: what they store and what they refuse, and the bridge from one stage to the next."""

import json
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest

from ltjax import bridge, train
from ltjax.distributed import sharding
from ltjax.errors import ConfigError, SaveError, TrainingError, WorkdirError
from ltjax.workdir import manifest
from ltjax.workdir.checkpoint import Checkpoints
from ltjax.workdir.log import Events, Journal
from tests import tiny
from tests.faults import states

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module", autouse=True)
def shared_compilations():
  with tiny.shared_compilations():
    yield


@pytest.fixture(scope="module")
def stages():
  """Both stages of GCL: everything trained, then only the head."""
  return tiny.stages(tiny.config("gcl_digits", backbone=tiny.ONE_CONV))


def filled(stage, *, step: int = 0):
  """A state in which no two leaves are alike, on the devices."""
  leaves, structure = jax.tree.flatten(stage.make_state(stage.init()))
  rng = np.random.default_rng(0)
  leaves = [rng.normal(size=leaf.shape).astype(leaf.dtype) if leaf.ndim else np.asarray(n, leaf.dtype)
            for n, leaf in enumerate(leaves)]
  state = jax.tree.unflatten(structure, leaves).replace(step=np.int32(step))
  return jax.device_put(state, sharding.replicated(sharding.data_mesh()))


@pytest.mark.parametrize("stage", ["representation", "classifier"])
def test_round_trip(stages, tmp_path, stage):
  state, like = filled(stages[stage], step=7), stages[stage].like
  with Checkpoints(tmp_path / "checkpoints") as checkpoints:
    assert checkpoints.latest() is None
    checkpoints.save(state, wait=True)
    assert checkpoints.latest() == 7
  with Checkpoints(tmp_path / "checkpoints") as checkpoints:
    restored = checkpoints.restore(like)
  tiny.assert_trees_equal(restored, state)
  for leaf, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(like), strict=True):
    assert (leaf.dtype, leaf.sharding) == (wanted.dtype, wanted.sharding)


def test_a_frozen_backbone_has_no_optimiser_state(stages):
  sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(stage.make_state(stage.init()).opt_state))
           for name, stage in stages.items()}
  state = stages["classifier"].make_state(stages["classifier"].init())
  assert sizes["classifier"] == state.params["head"]["kernel"].size
  assert sizes["representation"] == sum(leaf.size for leaf in jax.tree.leaves(state.params))


def test_saving_does_not_wait_yet_keeps_the_state_as_it_was(stages, tmp_path):
  # The step donates its state: later steps must not overwrite the arrays that are being written.
  add = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
  state, stage = filled(stages["representation"]), stages["representation"]
  with Checkpoints(tmp_path / "checkpoints") as checkpoints:
    for _ in range(3):
      state = add(state)
      expected = jax.tree.map(lambda leaf: np.array(leaf), state)
      checkpoints.save(state)
      for _ in range(5):
        state = add(state)
    jax.block_until_ready(state)
    checkpoints.save(state.replace(step=expected.step), wait=True)  # a committed step stays as it is
    tiny.assert_trees_equal(checkpoints.restore(stage.like), expected)


def test_the_last_two_are_retained(stages, tmp_path):
  with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
    for step in (3, 5, 11, 12):
      checkpoints.save(filled(stages["classifier"], step=step))
  assert tiny.saved_steps(tmp_path / "run", "") == [11, 12]


def test_the_best_is_retained_too(stages, tmp_path):
  with Checkpoints(tmp_path / "run" / "checkpoints", keep=1) as checkpoints:
    scores = {}
    for step, score in ((3, 0.5), (5, 0.7), (8, 0.6), (11, None), (12, 0.7), (14, 0.1)):
      scores |= {} if score is None else {step: score}
      checkpoints.save(filled(stages["classifier"], step=step), scores=dict(scores))
  assert tiny.saved_steps(tmp_path / "run", "") == [12, 14]  # of equals the later


def test_a_run_retains_the_best_on_held_out_images(tmp_path):
  config = tiny.config("ce_digits", backbone=tiny.ONE_CONV, epochs=6, dataset__holdout=0.1, keep_checkpoints=1)
  results = tiny.run(config, tmp_path)["stages"]["representation"]
  scores = {line["step"]: line["held_out"] for line in tiny.log(tmp_path, "representation") if "held_out" in line}
  last = max(scores)
  best = max(scores, key=lambda step: (scores[step], step))
  assert tiny.saved_steps(tmp_path, "representation") == sorted({best, last})
  assert results["best_on_held_out"]["balanced_accuracy"] == scores[best] and len(scores) == 6


def test_without_held_out_images_the_score_is_not_computed(tmp_path):
  results = tiny.run(tiny.config("ce_digits", backbone=tiny.ONE_CONV, epochs=1), tmp_path)
  assert results["stages"]["representation"]["best_on_held_out"] is None
  assert not any("held_out" in line for line in tiny.log(tmp_path, "representation"))


def test_saving_a_step_twice_is_harmless(stages, tmp_path):
  state, like = filled(stages["classifier"], step=4), stages["classifier"].like
  for _ in range(2):
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
      checkpoints.save(state)
      checkpoints.save(state, wait=True)
      tiny.assert_trees_equal(checkpoints.restore(like), state)
  assert tiny.saved_steps(tmp_path / "run", "") == [4]


def test_half_written_files_of_a_crash_are_removed_and_never_restored(stages, tmp_path):
  folder = tmp_path / "checkpoints"
  with Checkpoints(folder) as checkpoints:
    checkpoints.save(filled(stages["classifier"], step=4))
  stale = folder / "9.partial.orbax-checkpoint-tmp"
  (stale / "model").mkdir(parents=True)
  (stale / "model" / "half").write_text("a")
  (folder / "8.partial").mkdir()
  with Checkpoints(folder) as checkpoints:
    assert checkpoints.latest() == 4
    checkpoints.save(filled(stages["classifier"], step=9), wait=True)
  with Checkpoints(folder) as checkpoints:
    assert int(checkpoints.restore(stages["classifier"].like).step) == 9
  assert sorted(path.name for path in folder.iterdir()) == ["4", "9"]


def model_of(state) -> dict:
  """The part of a state that the bridge passes on."""
  return dict(params=state.params, batch_stats=state.batch_stats)


def test_the_bridge_reads_the_model_whatever_the_optimiser(stages, tmp_path):
  earlier = filled(stages["representation"], step=10)
  with Checkpoints(tmp_path / "checkpoints") as checkpoints:
    checkpoints.save(earlier, wait=True)
    variables = checkpoints.restore_model(model_of(stages["classifier"].like))
  tiny.assert_trees_equal(variables, model_of(earlier))
  state = stages["classifier"].make_state(variables)
  assert int(state.step) == 0 and float(state.window["examples"]) == 0
  assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(state.opt_state))


@pytest.mark.parametrize(("patterns", "drawn"), [
    ((), set()),
    (("head/.*",), {"head/kernel"}),
    (("head/.*", "backbone/norm/scale"), {"head/kernel", "backbone/norm/scale"}),
    ((".*",), {"head/kernel", "backbone/conv/kernel", "backbone/conv/bias", "backbone/norm/scale",
               "backbone/norm/bias"}),
])
def test_reset_draws_exactly_the_parameters_that_its_patterns_match(stages, patterns, drawn):
  stage = stages["classifier"]
  earlier, fresh = filled(stage), stage.init()
  variables = bridge.take_over(model_of(earlier), stage.init, patterns)
  tiny.assert_trees_equal(variables["batch_stats"], fresh["batch_stats"] if patterns == (".*",) else
                          earlier.batch_stats)
  assert jax.tree.structure(variables["params"]) == jax.tree.structure(earlier.params)
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
    name = "/".join(key.key for key in path)
    source = fresh["params"] if name in drawn else earlier.params
    top, *rest = name.split("/")
    wanted = source[top]
    for key in rest:
      wanted = wanted[key]
    np.testing.assert_array_equal(leaf, wanted, err_msg=name)


@pytest.mark.parametrize("pattern", ["haed/.*", "head", "kernel"])
def test_a_reset_pattern_without_a_match_is_an_error_before_the_first_stage(tmp_path, pattern):
  config = tiny.config("gcl_digits", backbone=tiny.ONE_CONV, classifier__reset=("head/.*", pattern))
  with pytest.raises(ConfigError, match=re.escape(f"classifier.reset: {pattern!r} matches no parameter")):
    tiny.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def assert_one_sentence(error: Exception) -> None:
  assert "\n" not in str(error) and len(str(error)) < 600, str(error)


def test_a_checkpoint_of_other_classes_is_refused_in_one_sentence(stages, tmp_path):
  with Checkpoints(tmp_path / "checkpoints") as checkpoints:
    checkpoints.save(filled(stages["representation"], step=4), wait=True)
    data = stages["representation"].dataset
    seven = data._replace(class_names=data.class_names[:7], train=tuple(part[data.train[1] < 7] for part in data.train))
    like = tiny.stages(tiny.config("gcl_digits", backbone=tiny.ONE_CONV), seven)["representation"].like
    for restore, wanted in ((checkpoints.restore, like), (checkpoints.restore_model, model_of(like))):
      with pytest.raises(WorkdirError, match=r"head/kernel is float32\[4,10\], expected float32\[4,7\]") as info:
        restore(wanted)
      assert_one_sentence(info.value)


def test_a_checkpoint_of_another_network_is_refused_in_one_sentence(stages, tmp_path):
  with Checkpoints(tmp_path / "checkpoints") as checkpoints:
    checkpoints.save(filled(stages["representation"], step=4), wait=True)
    like = tiny.stages(tiny.config("gcl_digits"))["representation"].like
    with pytest.raises(WorkdirError, match="backbone/norm/mean is .*, expected absent;.*; and .* more;") as info:
      checkpoints.restore(like)
    assert_one_sentence(info.value)


def test_a_checkpoint_without_its_model_is_refused_in_one_sentence(stages, tmp_path):
  folder = tmp_path / "checkpoints"
  with Checkpoints(folder) as checkpoints:
    checkpoints.save(filled(stages["representation"], step=4), wait=True)
  (folder / "4" / "model").rename(tmp_path / "elsewhere")
  with Checkpoints(folder) as checkpoints, pytest.raises(WorkdirError, match="damaged: model.* cannot be read") as info:
    checkpoints.restore(stages["representation"].like)
  assert_one_sentence(info.value)


# -- checkpoints that are not this run's or this step's, and folders that others touch ---------------------------------


def saved_in(folder, *steps, **options) -> None:
  with Checkpoints(folder, **options) as checkpoints:
    for step in steps:
      checkpoints.save(states.state(step), wait=True)


@pytest.mark.parametrize("other", ["theirs", ""])
def test_a_checkpoint_of_another_run_is_damage(tmp_path, other):
  saved_in(tmp_path / "mine", 1, run="mine")
  saved_in(tmp_path / "theirs", 2, run=other)
  shutil.copytree(tmp_path / "theirs" / "2", tmp_path / "mine" / "2")
  states.assert_is(Checkpoints(tmp_path / "mine", read_only=True).restore(states.LIKE), 2)  # as predict reads it
  with Checkpoints(tmp_path / "mine", run="mine", strict=True) as checkpoints:
    for restore, like in ((checkpoints.restore, states.LIKE), (checkpoints.restore_model, model_of(states.LIKE))):
      with pytest.raises(WorkdirError, match="mine/2: .* damaged: manifest.json belongs to another run: this") as info:
        restore(like)
      assert_one_sentence(info.value)
  told = []
  with Checkpoints(tmp_path / "mine", run="mine", on_fallback=told.append) as checkpoints:
    states.assert_is(checkpoints.restore(states.LIKE), 1)
  assert len(told) == 1 and "manifest.json belongs to another run" in told[0]
  assert manifest.read(tmp_path / "mine" / "1")["run"] == "mine"


def test_a_copy_of_a_checkpoint_under_another_step_is_damage(tmp_path):
  saved_in(tmp_path, 1, 2)
  shutil.copytree(tmp_path / "1", tmp_path / "9999")
  told = []
  with Checkpoints(tmp_path, on_fallback=told.append) as checkpoints:
    states.assert_is(checkpoints.restore(states.LIKE), 2)
  assert len(told) == 1 and "9999: the checkpoint is damaged: manifest.json belongs to step 1: this is a" in told[0]


def test_folders_not_named_after_a_step_are_left_alone(tmp_path):
  saved_in(tmp_path, 5)
  for name in ("007", "\u00b2", "\u0663", "notes"):
    (tmp_path / name).mkdir()
  for name in ("x.partial", "9", "7.partial"):
    (tmp_path / name).write_text("mine")
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.steps() == [5]
    states.assert_is(checkpoints.restore(states.LIKE), 5)
    with pytest.raises(SaveError, match="9: the checkpoint could not be saved .*; that of step 5 is intact"):
      checkpoints.save(states.state(9), wait=True)
  assert (tmp_path / "9").read_text() == (tmp_path / "7.partial").read_text() == "mine"


def test_a_failed_removal_at_the_start_is_one_error(tmp_path, monkeypatch):
  saved_in(tmp_path, 5)
  (tmp_path / "6.partial").mkdir()

  def refuse(path, *args, **kwargs):
    raise PermissionError(1, "Operation not permitted", str(path))

  monkeypatch.setattr(shutil, "rmtree", refuse)
  with pytest.raises(WorkdirError, match="6.partial cannot be made or removed .Operation not permitted") as info:
    Checkpoints(tmp_path)
  assert_one_sentence(info.value)


def test_a_blocked_removal_names_the_checkpoint_that_stays_and_the_saved_one(tmp_path, monkeypatch):
  saved_in(tmp_path, 1, 2)
  whole = pathlib.Path.rename

  def rename(self, target):
    if self.name == "1":
      raise PermissionError(1, "Operation not permitted", str(self))
    return whole(self, target)

  monkeypatch.setattr(pathlib.Path, "rename", rename)
  with Checkpoints(tmp_path) as checkpoints, pytest.raises(SaveError) as info:
    checkpoints.save(states.state(3), wait=True)
  assert f"{tmp_path / '1'}: the old checkpoint could not be removed" in str(info.value)
  assert "that of step 3 is saved" in str(info.value)
  assert Checkpoints(tmp_path).steps() == [1, 2, 3]


@pytest.mark.parametrize("made_again", [False, True])
def test_a_folder_that_was_moved_stops_the_run_and_is_not_made_again(tmp_path, made_again):
  folder = tmp_path / "run" / "checkpoints"
  with Checkpoints(folder) as checkpoints:
    checkpoints.save(states.state(1), wait=True)
    (tmp_path / "run").rename(tmp_path / "moved")
    if made_again:
      folder.mkdir(parents=True)
    with pytest.raises(SaveError, match="the work folder was moved or removed during the run") as info:
      checkpoints.save(states.state(2), wait=True)
  assert_one_sentence(info.value)
  assert folder.exists() == made_again and not list(folder.glob("*"))
  states.assert_is(Checkpoints(tmp_path / "moved" / "checkpoints").restore(states.LIKE), 1)


def test_logs_are_on_the_disk_before_the_checkpoint_that_knows_them(tmp_path, monkeypatch):
  journal, calls = Journal(tmp_path / "metrics.jsonl", upto=0), []
  journal.write(step=3, loss=1.0)
  monkeypatch.setattr(journal, "flush", lambda: calls.append(sorted(path.name for path in (tmp_path / "c").iterdir())))
  with Checkpoints(tmp_path / "c") as checkpoints:
    checkpoints.save(states.state(3), logs=(journal,), wait=True)
    journal.write(step=4, loss=2.0)
    assert calls == [["3.partial"]]
    checkpoints.restore(states.LIKE)
    assert checkpoints.logs == manifest.read(tmp_path / "c" / "3")["logs"]
    assert checkpoints.logs["metrics.jsonl"]["lines"] == 1


def test_a_run_reports_a_lost_log_and_refuses_another_runs_checkpoint(tmp_path):
  config = tiny.config("ce_digits", epochs=2, backbone=tiny.ONE_CONV, steps_per_call=1)
  tiny.run(config, tmp_path / "c")
  for name in ("a", "b"):
    with pytest.raises(train.Interrupted):
      tiny.run(config, tmp_path / name, stop_after=7)
  (tmp_path / "a" / "representation" / "metrics.jsonl").unlink()
  tiny.run(config, tmp_path / "a")
  assert Events(tmp_path / "a" / "events.jsonl").counts() == dict(log_losses=1)
  shutil.copytree(tmp_path / "a" / "representation" / "checkpoints" / "10",
                  tmp_path / "b" / "representation" / "checkpoints" / "10")
  tiny.run(config, tmp_path / "b")
  assert Events(tmp_path / "b" / "events.jsonl").counts() == dict(checkpoint_fallbacks=1)
  assert tiny.log(tmp_path / "b", "representation") == tiny.log(tmp_path / "c", "representation")


def all_finite(tree) -> bool:
  return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(tree)))


# The loss of a step is that of the parameters before it, so it is still finite at the first update that overflows
# (which a weight decay of 1e10 brings about).
@pytest.mark.parametrize(("weight_decay", "stop_after"), [(0.0, None), (0.0, 1), (1e10, None), (1e10, 1)])
@pytest.mark.parametrize("log_every", [1, 1000])
def test_numbers_that_are_not_finite_end_the_run_and_are_never_saved(
    tmp_path, weight_decay, stop_after, log_every):
  config = tiny.config(
      "ce_digits", backbone=tiny.ONE_CONV, representation__lr=dict(name="constant", value=1e30),
      log_every_steps=log_every, steps_per_call=1, representation__optimizer__weight_decay=weight_decay)
  bad = 0 if weight_decay else 1  # the step in which it happens
  first = train.Interrupted if (weight_decay, stop_after) == (0.0, 1) else TrainingError
  with pytest.raises(first):
    tiny.run(config, tmp_path, stop_after=stop_after)
  with pytest.raises(TrainingError, match=f"representation: .* in step {bad} .*learning rate 1e.30") as info:
    tiny.run(config, tmp_path)
  assert_one_sentence(info.value)
  assert tiny.saved_steps(tmp_path, "representation") == [bad]
  with Checkpoints(tmp_path / "representation" / "checkpoints") as checkpoints:
    assert all_finite(checkpoints.restore(tiny.stages(config)["representation"].like))
  record = json.loads((tmp_path / "not_finite.json").read_text())
  order = tiny.stages(config)["representation"].order
  assert (record["stage"], record["step"], record["examples"]) == (
      "representation", bad, order.batch(bad).tolist())
