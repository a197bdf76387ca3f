"""The train step: what it moves, what it leaves alone, how often it compiles, and that it names no method."""

import inspect
import logging
import pathlib
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltjax import losses, models, optim, recipes, train
from ltjax import step as steps
from ltjax.config import bind as build
from ltjax.data import samplers
from ltjax.errors import ConfigError
from ltjax.evaluate import Evaluator
from ltjax.models import heads
from ltjax.train import Interrupted
from ltjax.workdir.checkpoint import Checkpoints
from tests import tiny


@pytest.fixture
def small(monkeypatch):
  """Makes every run use the small network."""
  monkeypatch.setattr(build, "model", tiny.one_conv)


def parts(stage: str = "representation", model=tiny.one_conv, name: str = "ce_digits", **overrides) -> tiny.Parts:
  return tiny.parts(tiny.config(name, **overrides), stage, model)


def paths(tree) -> dict:
  """{"backbone/conv/kernel": array} of a nested dict."""
  return {"/".join(key.key for key in path): np.asarray(leaf)
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def one_step(made: tiny.Parts, *, at: int = 0):
  """(state before, state after) one compiled step, on the host."""
  state = made.state()
  after, _ = jax.jit(made.train_step)(state, made.stage.data, *made.stage.batches(at, 1))
  return jax.device_get(state), jax.device_get(after)


# -- the source ------------------------------------------------------------------------------------------------------


def test_a_step_fits_on_one_screen():
  for function in (steps.make_train_step, steps.make_eval_step):
    assert len(inspect.getsourcelines(function)[0]) <= 60, function.__name__


METHODS = {name for module in (losses, samplers, heads, models) for name in module.__all__} | {"mixup"}
WORDS = {"mean"}  # `data["mean"]` is the images', not a loss


@pytest.mark.parametrize("module", [steps, train])
def test_step_and_loop_name_no_method(module):
  source = inspect.getsource(module)
  # The one switch of the loading of a batch, and the type of the network, are passed on by name.
  source = source.replace("mixup=block.mixup", "").replace("models.Classifier", "")
  assert {"gcl", "focal", "cben", "Cosine", "ResNetCIFAR"} <= METHODS
  found = {name for name in METHODS - WORDS if re.search(rf"\b{name}\b", source)}
  assert not found, f"{module.__name__} names {found}"


# -- what moves ------------------------------------------------------------------------------------------------------


def test_a_step_moves_every_parameter_and_counts():
  before, after = one_step(parts())
  assert (int(before.step), int(after.step)) == (0, 1)
  assert float(after.window["examples"]) == 128 and 0 <= float(after.window["correct"]) <= 128
  for path, value in paths(after.params).items():
    # The gradient of a bias before BatchNorm is zero but for rounding.
    assert path == "backbone/conv/bias" or (value != paths(before.params)[path]).any(), path


@pytest.fixture(scope="module")
def frozen():
  """BatchNorm mode -> (state before, state after) one step of a stage that trains the head."""
  return {mode: one_step(parts("classifier", name="gcl_digits", classifier__batch_norm=mode, classifier__mixup=0.0))
          for mode in build.BATCH_NORM_MODES}


@pytest.mark.parametrize(("batch_norm", "moves"), [("eval", False), ("train", True), ("shift", True)])
def test_a_frozen_backbone_keeps_its_bits_and_its_statistics_follow_the_mode(frozen, batch_norm, moves):
  before, after = frozen[batch_norm]
  tiny.assert_trees_equal(after.params["backbone"], before.params["backbone"])
  assert (after.params["head"]["kernel"] != before.params["head"]["kernel"]).all()
  for path, value in paths(after.batch_stats).items():
    assert (value != paths(before.batch_stats)[path]).all() == moves, path


def test_eval_mode_uses_the_running_statistics_and_train_mode_the_batch(frozen):
  loss = {mode: float(after.window["loss"]) for mode, (_, after) in frozen.items()}
  assert loss["train"] == loss["shift"] != loss["eval"]


@pytest.mark.parametrize("trained", [(".*",), ("head/.*", "backbone/norm/scale")])
def test_shift_refuses_to_train_the_parameters_of_batch_norm(trained):
  with pytest.raises(ConfigError, match="classifier.batch_norm: 'shift'"):
    parts("classifier", name="gcl_digits", classifier__batch_norm="shift", classifier__train=trained)
  parts("classifier", name="gcl_digits", classifier__batch_norm="shift",
        classifier__train=("head/.*", "backbone/conv/.*"))


def _zero_loss(logits, labels, **offered):
  del labels, offered
  return 0.0 * jnp.sum(logits)


def test_weight_decay_falls_on_every_parameter():
  made = parts()
  rng = np.random.default_rng(0)
  state = made.state()
  state = state.replace(params=jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), state.params))
  train_step = steps.make_train_step(
      made.model, optim.sgd(momentum=0.9, weight_decay=0.25, factors=made.factors), made.factors, _zero_loss, made.load,
      batch_norm="train", on_nonfinite="stop")
  indices, scalars = made.stage.batches(0, 1)
  after, _ = jax.jit(train_step)(state, made.stage.data, indices, dict(scalars, lr=jnp.float32(0.5)))
  assert {"backbone/norm/scale", "backbone/norm/bias", "backbone/conv/bias", "head/kernel"} <= set(paths(after.params))
  for path, value in paths(after.params).items():
    np.testing.assert_allclose(value, (1 - 0.5 * 0.25) * paths(state.params)[path], rtol=1e-6, err_msg=path)


# -- the objective ---------------------------------------------------------------------------------------------------


def objective(**overrides):
  return build.Objective(
      recipes.stage(epochs=10, batch_size=4, weight_decay=0.0, **(dict(lr=0.1, loss=dict(name="cross_entropy"))
                                                                  | overrides)), "stage")


LOGITS = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
LABELS, COUNTS = np.array([0, 0, 1, 2, 0, 1]), np.array([100, 10, 3])


def loss_of(made: build.Objective, epoch: int = 0) -> float:
  scalars = made.scalars(train.Order(LABELS, 3, batch_size=6, epochs=10, seed=0, stage="stage").clock(epoch), COUNTS)
  counts = COUNTS.astype(np.float32)
  return float(made(LOGITS, LABELS, features=None, key=jax.random.key(0), scalars=scalars, class_counts=counts,
                    seen_counts=counts))


def test_class_weights_divide_by_their_sum():
  weights = np.asarray(losses.inverse_frequency(COUNTS))[LABELS]
  values = np.asarray(losses.cross_entropy(LOGITS, LABELS))
  weighted = loss_of(objective(class_weights=dict(name="inverse_frequency")))
  np.testing.assert_allclose(weighted, (weights * values).sum() / weights.sum(), rtol=1e-6)
  assert abs(weighted - (weights * values).mean()) > 0.01
  np.testing.assert_allclose(loss_of(objective()), values.mean(), rtol=1e-6)


def test_class_weights_follow_their_schedule():
  made = objective(class_weights=dict(
      name="effective_number", beta=dict(name="switch", at=5, before=0.0, after=0.9)))
  weights = np.asarray(losses.effective_number(COUNTS, beta=0.9))[LABELS]
  values = np.asarray(losses.cross_entropy(LOGITS, LABELS))
  np.testing.assert_allclose(loss_of(made, 4), values.mean(), rtol=1e-6)
  np.testing.assert_allclose(loss_of(made, 5), (weights * values).sum() / weights.sum(), rtol=1e-6)
  np.testing.assert_allclose(loss_of(made, 4), values.mean(), rtol=1e-6)


@pytest.mark.parametrize(("block", "key"), [("loss", "gamma"), ("adjust", "scale")])
def test_a_scheduled_hyper_parameter_reaches_the_loss_without_another_compilation(block, key):
  blocks = dict(loss=dict(name="focal", gamma=1.0), adjust=dict(name="gcl", scale=2.0))

  def with_value(value):
    return objective(**{**blocks, block: {**blocks[block], key: value}})

  scheduled = with_value(dict(name="linear", start=1.0, end=10.0))
  for epoch in (0, 3, 9):
    np.testing.assert_allclose(loss_of(scheduled, epoch), loss_of(with_value(1.0 + epoch)), rtol=1e-6)
  assert loss_of(scheduled, 0) != loss_of(scheduled, 9)

  value = dict(name="linear", start=1.0, end=10.0)
  made = parts(**{f"representation__{block}": {**blocks[block], key: value}})
  train_step = jax.jit(made.train_step)
  sums = [float(train_step(made.state(), made.stage.data, indices, dict(scalars, step=0))[0].window["loss"])
          for indices, scalars in ((made.stage.batches(0, 1)[0], made.stage.batches(step, 1)[1]) for step in (0, 9))]
  assert sums[0] != sums[1]
  assert train_step._cache_size() == 1


def _criterion_calls(made: tiny.Parts) -> list:
  """(key, labels) of every call of the criterion in two steps."""
  calls = []

  def recording(logits, labels, *, key, **offered):
    jax.debug.callback(lambda *call: calls.append(tuple(part.tolist() for part in call)), jax.random.key_data(key),
                       labels)
    return _zero_loss(logits, labels)

  train_step = jax.jit(
      steps.make_train_step(made.model, made.tx, made.factors, recording, made.load, batch_norm="train",
                            on_nonfinite="stop"))
  state = made.state()
  for step in (0, 1):
    state, _ = train_step(state, made.stage.data, *made.stage.batches(step, 1))
  jax.block_until_ready(state)
  jax.effects_barrier()
  return calls


def test_mixup_calls_the_criterion_twice_with_fresh_noise():
  calls = _criterion_calls(parts(representation__mixup=1.0))
  assert len(calls) == 4
  assert len({tuple(key) for key, _ in calls}) == 4, "a key was used twice"
  assert len({tuple(labels) for _, labels in calls}) == 4
  assert len({tuple(sorted(labels)) for _, labels in calls}) == 2  # each batch, and its permutation


def test_without_mixup_the_criterion_is_called_once():
  assert len(_criterion_calls(parts())) == 2


def test_the_window_sums_loss_and_shares_of_right_predictions():
  made = parts(representation__mixup=1.0)
  state = made.state()
  indices, scalars = made.stage.batches(0, 1)
  after, _ = jax.jit(made.train_step)(state, made.stage.data, indices, scalars)
  key_load, _ = jax.random.split(jax.random.fold_in(made.stage.data["key"], 0))
  images, targets = made.load(made.stage.data, indices, key_load, scalars)
  (logits, _), _ = made.model.apply(
      dict(params=state.params, batch_stats=state.batch_stats), images, train=True, mutable=["batch_stats"])
  expected = sum(float(share) * float(losses.cross_entropy(logits, labels).sum()) for labels, share in targets)
  right = sum(float(share) * int((logits.argmax(axis=-1) == labels).sum()) for labels, share in targets)
  np.testing.assert_allclose(after.window["loss"], expected, rtol=1e-5)
  np.testing.assert_allclose(after.window["correct"], right, rtol=1e-5)


# -- compilation and cost --------------------------------------------------------------------------------------------


class Run(NamedTuple):
  """A run of two stages, and what was seen of it."""

  config: object
  workdir: pathlib.Path
  compiled: list[str]  # the names of the compiled functions
  evaluated: list[steps.TrainState]


@pytest.fixture(scope="module")
def two_stages(tmp_path_factory):
  workdir, compiled, evaluated, call = tmp_path_factory.mktemp("run"), [], [], Evaluator.__call__
  config = tiny.config(
      "gcl_digits", epochs=3, steps_per_call=1, checkpoint_every_epochs=100,
      representation__lr=dict(name="multi_step", base=0.1, at=(1, 2), factors=(0.1, 0.01)), representation__mixup=0.0,
      representation__adjust=dict(name="gcl", scale=dict(name="linear", start=10.0, end=30.0)), classifier__mixup=0.0)

  class Listener(logging.Handler):
    def emit(self, record):
      if match := re.match(r"Compiling jit\((\w+)\)", record.getMessage()):
        compiled.append(match[1])

  def evaluate(self, state, stops=None):
    evaluated.append(state)
    return call(self, state)

  listener = Listener()
  logging.getLogger("jax").addHandler(listener)
  try:
    with pytest.MonkeyPatch.context() as patch, jax.log_compiles():
      patch.setattr(build, "model", tiny.one_conv)
      patch.setattr(Evaluator, "__call__", evaluate)
      tiny.run(config, workdir)
  finally:
    logging.getLogger("jax").removeHandler(listener)
  return Run(config, workdir, compiled, evaluated)


def test_a_run_compiles_each_step_once(two_stages):
  rates = [line["lr"] for line in tiny.log(two_stages.workdir, "representation") if "lr" in line]
  assert len(set(rates)) == 3, "nothing was scheduled"
  found = two_stages.compiled
  assert {name: found.count(name) for name in ("train_step", "train_steps", "eval_step")} == dict(
      train_step=2, train_steps=0, eval_step=2)  # once in each of the two stages


def test_the_state_is_donated(two_stages):
  assert len(two_stages.evaluated) == 6

  def gone(state):
    return [leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.opt_state, state.batch_stats))]

  # The CPU does not donate an array that is being saved: of these states only the last of each stage is.
  assert [all(gone(state)) for state in two_stages.evaluated] == [True, True, False] * 2
  assert not any(gone(two_stages.evaluated[2]) + gone(two_stages.evaluated[5]))


def test_a_stage_with_a_frozen_backbone_leaves_its_bits_alone(two_stages):
  first, second = (_saved(two_stages.config, two_stages.workdir, stage) for stage in two_stages.config.stages)
  tiny.assert_trees_equal(first.params["backbone"], second.params["backbone"])
  tiny.assert_trees_equal(first.batch_stats, second.batch_stats)
  assert (first.params["head"]["kernel"] != second.params["head"]["kernel"]).all()


def flops(made: tiny.Parts) -> float:
  """Of the step as it is traced, so before XLA could drop what nothing uses."""
  return jax.jit(made.train_step).lower(
      made.state(), made.stage.data, *made.stage.batches(0, 1)).cost_analysis()["flops"]


def test_a_frozen_backbone_costs_no_backward_pass():
  whole, head = (flops(parts(model=build.model, representation__train=train)) for train in ((".*",), ("head/.*",)))
  assert 0.2 * whole < head < 0.6 * whole


def inside_loops(hlo: str) -> set[str]:
  """The lines of all computations that a `while` of an HLO text calls, directly or not."""
  computation = re.compile(r"^(?:ENTRY )?%?([\w.\-]+)[^\n]*\{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
  bodies = {match[1]: match[2] for match in computation.finditer(hlo)}

  def called(text):
    return set(re.findall(r"(?:body|condition|to_apply|calls)=%?([\w.\-]+)", text)) & set(bodies)

  left = {name for text in bodies.values() for name in re.findall(r"while\(.*body=%?([\w.\-]+)", text)}
  reached = set()
  while left:
    name = left.pop()
    reached.add(name)
    left |= called(bodies[name]) - reached
  return {line for name in reached for line in bodies[name].splitlines()}


@pytest.mark.parametrize("unroll", [True, False])
def test_on_a_cpu_convolutions_stay_outside_loops(unroll):
  # The second case shows that the first can fail.
  made = parts(name="gcl_digits")
  lowered = jax.jit(steps.repeat(made.train_step, 3, unroll=unroll)).lower(
      made.state(), made.stage.data, *made.stage.batches(0, 3))
  hlo = lowered.as_text(dialect="hlo")
  assert "convolution(" in hlo and "while(" in hlo  # JAX's random numbers loop, too
  assert any("convolution(" in line for line in inside_loops(hlo)) == (not unroll)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other backends loop on purpose")
def test_the_compiled_steps_of_a_cpu_are_unrolled():
  made = parts(steps_per_call=2)
  assert made.stage.chunk == 2
  lowered = made.stage.train_steps[2].lower(made.state(), made.stage.data, *made.stage.batches(0, 2))
  hlo = lowered.as_text(dialect="hlo")
  assert "convolution(" in hlo and not any("convolution(" in line for line in inside_loops(hlo))


# -- steps per call --------------------------------------------------------------------------------------------------


def _saved(config, workdir, stage: str) -> steps.TrainState:
  with Checkpoints(workdir / stage / "checkpoints") as checkpoints:
    return jax.device_get(checkpoints.restore(tiny.parts(config, stage, tiny.one_conv).stage.like))


def _chunked(workdir, steps_per_call: int, stop_after: int | None = None):
  """(log, last state) of a run with boundaries at steps 5, 7, 10: calls of 2, 3 and 5 steps fit, and leave a rest."""
  config = tiny.config("ce_digits", log_every_steps=7, steps_per_call=steps_per_call,
                       representation__lr=dict(name="constant", value=0.01))
  if stop_after:
    with pytest.raises(Interrupted):
      tiny.run(config, workdir, stop_after=stop_after)
  tiny.run(config, workdir)
  return tiny.log(workdir, "representation"), _saved(config, workdir, "representation")


@pytest.fixture(scope="module")
def one_at_a_time(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(build, "model", tiny.one_conv)
    return _chunked(tmp_path_factory.mktemp("one"), 1)


@pytest.mark.parametrize("steps_per_call", [2, 3, 5])
def test_steps_per_call_changes_nothing(small, tmp_path, one_at_a_time, steps_per_call):
  log, state = one_at_a_time
  chunked_log, chunked = _chunked(tmp_path, steps_per_call)
  assert [(line["step"], line.get("test"), line.get("lr")) for line in chunked_log] == [
      (line["step"], line.get("test"), line.get("lr")) for line in log]
  # Not bit for bit: XLA fuses across the steps of one call.
  for (path, leaf), other in zip(
      jax.tree_util.tree_leaves_with_path(chunked), jax.tree.leaves(state), strict=True):
    np.testing.assert_allclose(leaf, other, rtol=1e-3, atol=1e-4, err_msg=jax.tree_util.keystr(path))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="bits are compared")
def test_stopped_between_calls_of_several_steps(small, tmp_path):
  log, state = _chunked(tmp_path / "straight", 2)
  stopped_log, stopped = _chunked(tmp_path / "stopped", 2, stop_after=3)
  assert stopped_log == log
  tiny.assert_trees_equal(stopped, state)
