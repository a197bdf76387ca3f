"""The train step: what it updates and leaves alone, how often it compiles, and that it names no method."""

import inspect
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltjax import augment, losses, models, optim, recipes, stage, train
from ltjax import step as steps
from ltjax.augment import batches
from ltjax.config import parse, spec
from ltjax.data import evaluate, samplers
from ltjax.errors import ConfigError
from ltjax.losses.objective import Objective
from ltjax.models import heads
from ltjax.schedules import Clock
from ltjax.stage import Stage
from ltjax.workdir import manifest
from tests import tiny

pytestmark = pytest.mark.usefixtures("no_pictures")


def make(name: str = "representation", *, config: str = "ce_digits", backbone=tiny.ONE_CONV, **overrides) -> Stage:
  """One stage of a digits config on the small network."""
  return tiny.stages(tiny.config(config, backbone=backbone, **overrides))[name]


def start(made: Stage) -> stage.TrainState:
  return made.make_state(made.init())


def paths(tree) -> dict:
  """{"backbone/conv/kernel": array} of a nested dict."""
  return {"/".join(key.key for key in path): np.asarray(leaf)
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def one_step(made: Stage, *, at: int = 0):
  """(state before, state after) one compiled step, on the host."""
  before = jax.device_get(start(made))
  after, _ = made.train_steps[1](start(made), made.data, *made.batches(at, 1))
  return before, jax.device_get(after)


# -- the source ------------------------------------------------------------------------------------------------------


def test_a_step_fits_on_one_screen():
  for function in (steps.make_gradients, steps.make_train_step, evaluate.make_eval_step):
    assert len(inspect.getsourcelines(function)[0]) <= 60, function.__name__


PARTS = {name for module in (losses, samplers, heads, models, optim, augment, batches) for name in module.__all__}
WORDS = {
    "afa", "bbn", "branch", "branches", "camc", "cbam", "crt", "cutmix", "cutout", "decouple", "drw", "fbl", "focal",
    "gcl", "generate", "generated", "generation", "kps", "lade", "ldam", "mislas", "mixing", "mixup", "noise",
    "prototype", "prototypes", "randaugment", "rebalancing", "seen", "seesaw", "smoothing", "tde"}
# `mean` is a reduction, but also a statistic of windows and data sets; a `Classifier` is any backbone and head.
EVERYDAY = {"mean", "Classifier"}


def named(source: str) -> set[str]:
  """The parts and methods that occur in a text, as words or as parts of names with underscores."""
  def occurs(name, flags=0):
    return re.search(rf"(?<![A-Za-z]){name}(?![A-Za-z])", source, flags)

  return {name for name in PARTS - EVERYDAY if occurs(name)} | {word for word in WORDS if occurs(word, re.IGNORECASE)}


@pytest.mark.parametrize("module", [steps, train, stage, evaluate])
def test_step_loop_and_stage_name_no_method_not_even_in_words(module):
  assert not named(inspect.getsource(module))


@pytest.mark.parametrize(("source", "found"), [
    ("x = block.mixup", "mixup"), ('getattr(block, "focal")', "focal"), ("key_cutmix = 1", "cutmix"),
    ("# for BBN alone", "bbn"), ("class Prototypes:", "prototypes"), ("isinstance(x, int), reversed(y)", None),
    ("samplers.class_aware", "class_aware")])
def test_a_method_would_be_found(source, found):
  assert named(source) == ({found} if found else set())


# -- updates -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain() -> Stage:
  """Cross entropy without mixup."""
  return make()


@pytest.fixture(scope="module")
def mixed() -> Stage:
  """Cross entropy with mixup."""
  return make(representation__mixup=1.0)


def test_a_step_moves_every_parameter_and_counts(plain):
  before, after = one_step(plain)
  assert (int(before.step), int(after.step)) == (0, 1)
  assert float(after.window["examples"]) == 128 and 0 <= float(after.window["correct"]) <= 128
  for path, value in paths(after.params).items():
    # The gradient of a bias before BatchNorm is zero but for rounding.
    assert path == "backbone/conv/bias" or (value != paths(before.params)[path]).any(), path


@pytest.fixture(scope="module")
def frozen():
  """BatchNorm mode -> (state before, state after) one step of a stage that trains the head."""
  return {mode: one_step(make("classifier", config="gcl_digits", classifier__batch_norm=mode))
          for mode in spec.BATCH_NORM_MODES}


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


@pytest.mark.parametrize(("trained", "refused"), [
    ((".*",), True), (("head/.*", "backbone/norm/scale"), True), (("head/.*", "backbone/conv/.*"), False)])
def test_shift_refuses_to_train_the_parameters_of_batch_norm(trained, refused):
  config = tiny.config("gcl_digits", backbone=tiny.ONE_CONV, classifier__batch_norm="shift",
                       classifier__train=trained)
  if not refused:
    parse(config)
    return
  with pytest.raises(ConfigError, match="classifier.batch_norm: 'shift'"):
    parse(config)


def with_objective(made: Stage, objective) -> steps.Parts:
  """The parts of a stage's step with another loss."""

  class Replaced(NamedTuple):
    made: Objective

    def __call__(self, *args, **kwargs):
      return objective(*args, **kwargs)

    def __getattr__(self, name):
      return getattr(self.made, name)

  return made.parts._replace(objective=Replaced(made.objective))


def _zero_loss(logits, labels, **offered):
  del labels, offered
  return 0.0 * jnp.sum(logits)


def test_weight_decay_applies_to_every_parameter():
  made = make(representation__optimizer=recipes.sgd(0.25))
  rng = np.random.default_rng(0)
  state = start(made)
  state = state.replace(params=jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), state.params))
  indices, scalars = made.batches(0, 1)
  train_step = steps.make_train_step(with_objective(made, _zero_loss))
  after, _ = jax.jit(train_step)(state, made.data, indices, dict(scalars, lr=jnp.float32(0.5)))
  assert {"backbone/norm/scale", "backbone/norm/bias", "backbone/conv/bias", "head/kernel"} <= set(paths(after.params))
  for path, value in paths(after.params).items():
    np.testing.assert_allclose(value, (1 - 0.5 * 0.25) * paths(state.params)[path], rtol=1e-6, err_msg=path)


# -- the objective ---------------------------------------------------------------------------------------------------


def objective(**overrides) -> spec.StageSpec:
  """The blocks of a stage of 10 epochs of cross entropy."""
  block = recipes.stage(epochs=10, batch_size=4, optimizer=recipes.sgd(0.0), **(
      dict(lr=0.1, loss=dict(name="cross_entropy")) | overrides))
  return parse(tiny.config("ce_digits", backbone=tiny.ONE_CONV, head=dict(name="Cosine"),
                           representation=block)).stage("representation")


LOGITS = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
LABELS, COUNTS = np.array([0, 0, 1, 2, 0, 1]), np.array([100, 10, 3])


def loss_of(made: spec.StageSpec, epoch: int = 0) -> float:
  clock, counts, call = Clock(epoch, 1, 10), COUNTS.astype(np.float32), made.objective
  scalars = dict(loss=call.loss.at(clock), adjust=call.adjust.at(clock) if call.adjust else {})
  if made.class_weights:
    scalars["class_weights"] = np.asarray(made.class_weights(COUNTS, **made.class_weights.at(clock)))
  return float(call(LOGITS, LABELS, features=None, key=jax.random.key(0), scalars=scalars, class_counts=counts))


def test_class_weights_divide_by_their_sum():
  weights = np.asarray(losses.inverse_frequency(COUNTS))[LABELS]
  values = np.asarray(losses.cross_entropy(LOGITS, LABELS))
  weighted = loss_of(objective(class_weights=dict(name="inverse_frequency")))
  np.testing.assert_allclose(weighted, (weights * values).sum() / weights.sum(), rtol=1e-6)
  assert abs(weighted - (weights * values).mean()) > 0.01
  by_number = loss_of(objective(class_weights=dict(name="inverse_frequency"), reduce="mean"))
  np.testing.assert_allclose(by_number, (weights * values).mean(), rtol=1e-6)
  np.testing.assert_allclose(loss_of(objective()), values.mean(), rtol=1e-6)


def test_class_weights_follow_their_schedule_forth_and_back():
  made = make(epochs=10, representation__class_weights=dict(
      name="effective_number", beta=dict(name="switch", at=5, before=0.0, after=0.9)))
  for epoch, beta in ((4, 0.0), (5, 0.9), (4, 0.0)):
    found = made.scalars(made.order.clock(epoch * made.order.steps_per_epoch))["class_weights"]
    np.testing.assert_allclose(found, losses.effective_number(made.class_counts, beta=beta), rtol=1e-6)
  made = objective(class_weights=dict(
      name="effective_number", beta=dict(name="switch", at=5, before=0.0, after=0.9)))
  weights = np.asarray(losses.effective_number(COUNTS, beta=0.9))[LABELS]
  values = np.asarray(losses.cross_entropy(LOGITS, LABELS))
  np.testing.assert_allclose(loss_of(made, 4), values.mean(), rtol=1e-6)
  np.testing.assert_allclose(loss_of(made, 5), (weights * values).sum() / weights.sum(), rtol=1e-6)


@pytest.mark.parametrize(("block", "key"), [("loss", "gamma"), ("adjust", "scale")])
def test_a_scheduled_hyper_parameter_reaches_the_loss_without_another_compilation(block, key):
  blocks = dict(loss=dict(name="focal", gamma=1.0), adjust=dict(name="gcl", scale=2.0))
  value = dict(name="linear", start=1.0, end=10.0)

  def with_value(value):
    return objective(**{**blocks, block: {**blocks[block], key: value}})

  scheduled = with_value(value)
  for epoch in (0, 3, 9):
    np.testing.assert_allclose(loss_of(scheduled, epoch), loss_of(with_value(1.0 + epoch)), rtol=1e-6)
  assert loss_of(scheduled, 0) != loss_of(scheduled, 9)

  made = make(head=dict(name="Cosine"), representation__adjust=blocks["adjust"], representation__loss=blocks["loss"],
              **{f"representation__{block}__{key}": value})
  indices, first = made.batches(0, 1)
  after = [made.train_steps[1](start(made), made.data, indices, dict(scalars, step=first["step"]))[0]
           for scalars in (first, made.batches(9, 1)[1])]
  assert float(after[0].window["loss"]) != float(after[1].window["loss"])
  assert made.train_steps[1]._cache_size() == 1


def _criterion_calls(made: Stage) -> list:
  """(key, labels) of every call of the criterion in two steps."""
  calls = []

  def recording(logits, labels, *, key, **offered):
    jax.debug.callback(lambda *call: calls.append(tuple(part.tolist() for part in call)), jax.random.key_data(key),
                       labels)
    return _zero_loss(logits, labels)

  train_step = jax.jit(steps.make_train_step(with_objective(made, recording)))
  state = start(made)
  for step in (0, 1):
    state, _ = train_step(state, made.data, *made.batches(step, 1))
  jax.block_until_ready(state)
  jax.effects_barrier()
  return calls


def test_mixup_calls_the_criterion_twice_with_fresh_noise(mixed):
  calls = _criterion_calls(mixed)
  assert len(calls) == 4
  assert len({tuple(key) for key, _ in calls}) == 4, "a key was used twice"
  assert len({tuple(labels) for _, labels in calls}) == 4
  assert len({tuple(sorted(labels)) for _, labels in calls}) == 2  # each batch, and its permutation


def test_without_mixup_the_criterion_is_called_once(plain):
  assert len(_criterion_calls(plain)) == 2


def test_the_window_sums_the_loss_and_the_weighted_correct_predictions(mixed):
  state = start(mixed)
  indices, scalars = mixed.batches(0, 1)
  batch = mixed.parts.transform(mixed.data, indices, jax.random.fold_in(mixed.data["key"], 0), scalars)
  (logits, _), _ = mixed.model.apply(
      dict(params=state.params, batch_stats=state.batch_stats), batch.inputs, train=True, mutable=["batch_stats"])
  expected = sum(float(term.weight) * float(losses.cross_entropy(logits, term.labels).sum()) for term in batch.terms)
  correct = sum(float(term.weight) * int((logits.argmax(axis=-1) == term.labels).sum()) for term in batch.terms)
  after, _ = mixed.train_steps[1](state, mixed.data, indices, scalars)
  assert len(batch.terms) == 2
  np.testing.assert_allclose(after.window["loss"], expected, rtol=1e-5)
  np.testing.assert_allclose(after.window["correct"], correct, rtol=1e-5)


# -- state of a loss -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("block", "keys"), [
    (dict(), None), (dict(representation__adjust=dict(name="seesaw")), {"seen_counts"})])
def test_a_run_has_a_loss_state_only_if_a_loss_declares_one(tmp_path, block, keys):
  config = tiny.config("ce_digits", backbone=tiny.ONE_CONV, epochs=1, **block)
  tiny.run(config, tmp_path)
  made = tiny.stages(config)["representation"]
  state = tiny.saved(made, tmp_path)
  assert (state.loss_state and set(state.loss_state)) == keys
  checkpoint = tmp_path / "representation" / "checkpoints" / "5"
  arrays = manifest.read(checkpoint)["arrays"]
  stored = {path.split("/")[2] for path in arrays if path.startswith("training/loss_state/")}
  assert stored == (keys or set())
  assert any(path.startswith("training/opt_state/") for path in arrays)
  assert not any(path.startswith("training/ema/") for path in arrays)


@pytest.mark.parametrize("mixup", [0.0, 1.0])
def test_the_running_counts_of_seesaw_are_those_counted_by_hand(mixup):
  made = make(representation__adjust=dict(name="seesaw"), representation__mixup=mixup)
  state, expected = start(made), np.zeros(10)
  np.testing.assert_array_equal(state.loss_state["seen_counts"], expected)
  for step in range(3):
    indices, scalars = made.batches(step, 1)
    batch = made.parts.transform(made.data, indices, jax.random.fold_in(made.data["key"], step), scalars)
    for term in batch.terms:
      expected += float(term.weight) * np.bincount(term.labels, minlength=10)
    state, _ = made.train_steps[1](state, made.data, indices, scalars)
    np.testing.assert_allclose(state.loss_state["seen_counts"], expected, rtol=1e-5)
    np.testing.assert_allclose(expected.sum(), 128 * (step + 1), rtol=1e-6)
  if not mixup:
    examples = np.concatenate([made.order.batch(step) for step in range(3)])
    np.testing.assert_array_equal(expected, np.bincount(made.dataset.train[1][examples], minlength=10))


def test_the_loss_of_a_step_reads_the_counts_that_include_its_batch():
  made = make(representation__adjust=dict(name="seesaw", p=3.0))
  state = start(made)
  indices, scalars = made.batches(0, 1)
  batch = made.parts.transform(made.data, indices, jax.random.fold_in(made.data["key"], 0), scalars)
  (logits, _), _ = made.model.apply(dict(params=state.params, batch_stats=state.batch_stats), batch.inputs, train=True,
                                    mutable=["batch_stats"])
  labels, seen = batch.terms[0].labels, np.bincount(batch.terms[0].labels, minlength=10)
  expected = losses.cross_entropy(losses.seesaw(logits, labels, seen, p=3.0), labels).sum()
  after, _ = made.train_steps[1](state, made.data, indices, scalars)
  np.testing.assert_allclose(after.window["loss"], expected, rtol=1e-5)
