"""Optimisers: their recursions, the parameters they update, clipping, accumulation and averages."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from ltjax import metrics, optim, recipes
from ltjax import step as steps
from ltjax.config import bind, parse
from ltjax.errors import ConfigError
from tests import tiny
from tests.tiny import assert_trees_equal

pytestmark = pytest.mark.usefixtures("no_pictures")

SHAPES = {"backbone": {"conv": {"kernel": (3, 2)}, "norm": {"scale": (2,), "bias": (2,)}},
          "head": {"kernel": (2, 4), "bias": (4,)}}
WEIGHT_DECAY, MOMENTUM = 0.05, 0.9


def tree(seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda shape: jnp.asarray(rng.normal(size=shape)), SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def make(factors, name: str = "sgd", *, no_decay=(), clip_norm=0.0, **options) -> optim.Optimizer:
  """An optimiser by its name, by default SGD with momentum and decay."""
  options = options or dict(momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
  return optim.make(bind.Call(getattr(optim, name), options, {}), factors, no_decay=no_decay, clip_norm=clip_norm)


def apply(optimizer, params, grads, state, lr):
  """One update of the trained parameters, as the train step makes it."""
  trained, frozen = optim.split(params, optimizer.factors)
  trained, state = optimizer.update(optim.split(grads, optimizer.factors)[0], state, trained, lr=lr)
  return optim.join(trained, frozen), state


@pytest.mark.parametrize(("train", "lr_factors", "expected"), [
  ((".*",), (), {}),
  ((".*",), (("head/.*", 0.5), ("head/bias", 7.0), ("backbone/.*", 3.0)), {"head": 0.5, "backbone": 3.0}),
  (("head/.*",), (("head/kernel", 0.1),), {"head/kernel": 0.1, "backbone": None}),
  (("head/kernel", "backbone/norm/.*"), (), {"backbone/conv": None, "head/bias": None}),
])
def test_sgd_is_pytorch_s_recursion(train, lr_factors, expected):
  with jax.enable_x64(True):
    params = tree(0)
    factors = optim.learning_rate_factors(params, train, lr_factors)
    optimizer = make(factors)
    state = optimizer.init(params)
    ours, velocity = {path: np.array(value) for path, value in flatten_dict(params, sep="/").items()}, {}
    for step, lr in enumerate((0.1, 0.1, 0.02, 0.3, 0.0, 0.1)):  # PyTorch's velocity does not hold the rate
      grads = tree(step + 1)
      params, state = apply(optimizer, params, grads, state, lr)
      for path, gradient in flatten_dict(grads, sep="/").items():
        factor = next((value for part, value in expected.items() if path.startswith(part)), 1.0)
        if factor is not None:
          velocity[path] = MOMENTUM * velocity.get(path, 0) + np.array(gradient) + WEIGHT_DECAY * ours[path]
          ours[path] = ours[path] - lr * factor * velocity[path]
      for path, value in flatten_dict(params, sep="/").items():
        np.testing.assert_allclose(value, ours[path], rtol=1e-12, err_msg=f"{path} after step {step}")


def test_the_decay_applies_to_every_trained_parameter_even_biases_and_batch_norm():
  params = tree(0)
  factors = optim.learning_rate_factors(params, (".*",))
  optimizer = make(factors)
  zeros = jax.tree.map(jnp.zeros_like, params)
  after, _ = apply(optimizer, params, zeros, optimizer.init(params), lr=0.1)
  for path, value in flatten_dict(after, sep="/").items():
    before = flatten_dict(params, sep="/")[path]
    np.testing.assert_allclose(value, before * (1 - 0.1 * WEIGHT_DECAY), rtol=1e-6, err_msg=path)


@pytest.mark.parametrize(("no_decay", "spared"), [
  (("head/bias",), {"head/bias"}), ((".*/bias", "backbone/norm/.*"), {"head/bias", "backbone/norm/bias",
                                                                     "backbone/norm/scale"}), (("bias",), set())])
@pytest.mark.parametrize("train", [(".*",), ("head/.*", "backbone/norm/.*")])
def test_no_decay_exempts_the_parameters_that_its_patterns_match(no_decay, spared, train):
  params = tree(0)
  factors = optim.learning_rate_factors(params, train)
  optimizer = make(factors, no_decay=no_decay)
  zeros = jax.tree.map(jnp.zeros_like, params)
  after, _ = apply(optimizer, params, zeros, optimizer.init(params), lr=0.1)
  for path, value in flatten_dict(after, sep="/").items():
    still = path in spared or flatten_dict(factors, sep="/")[path] is None
    before = flatten_dict(params, sep="/")[path]
    np.testing.assert_allclose(value, before if still else before * (1 - 0.1 * WEIGHT_DECAY), rtol=1e-6, err_msg=path)


def test_frozen_parameters_have_no_state_and_never_move():
  params = tree(0)
  factors = optim.learning_rate_factors(params, ("head/.*",), (("head/.*", 2.0), ("backbone/.*", 3.0)))
  assert {path for path, factor in flatten_dict(factors, sep="/").items() if factor is None} == {
    "backbone/conv/kernel", "backbone/norm/scale", "backbone/norm/bias"}
  optimizer = make(factors)
  state, now = optimizer.init(params), params
  assert sorted(leaf.shape for leaf in jax.tree.leaves(state)) == [(2, 4), (4,)]
  for step in range(3):
    now, state = apply(optimizer, now, tree(step), state, lr=0.5)
  assert_trees_equal(now["backbone"], params["backbone"])
  for name, value in now["head"].items():
    assert (np.abs(value - params["head"][name]) > 1e-3).all(), name


@pytest.mark.parametrize("train", [(".*",), ("head/.*",), ("backbone/norm/.*", "head/bias")])
def test_join_is_the_inverse_of_split(train):
  params = tree(0)
  factors = optim.learning_rate_factors(params, train)
  trained, frozen = optim.split(params, factors)
  assert_trees_equal(optim.join(trained, frozen), params)
  kept = {path for path, factor in flatten_dict(factors, sep="/").items() if factor is not None}
  for part, there in ((trained, kept), (frozen, set(flatten_dict(params, sep="/")) - kept)):
    flat = flatten_dict(part, sep="/")
    assert flat.keys() == flatten_dict(params, sep="/").keys()
    assert {path for path, value in flat.items() if value is not None} == there


def test_the_first_factor_that_matches_counts_and_one_is_the_default():
  factors = optim.learning_rate_factors(tree(0), (".*",), (("head/bias", 0.5), (".*/bias", 2), ("head/.*", 3.0)))
  assert flatten_dict(factors, sep="/") == {
    "backbone/conv/kernel": 1.0, "backbone/norm/scale": 1.0, "backbone/norm/bias": 2.0, "head/kernel": 3.0,
    "head/bias": 0.5}


@pytest.mark.parametrize(("train", "lr_factors", "message"), [
  (("head",), (), r"classifier\.train: 'head' matches no parameter; there are .*head/kernel"),
  (("head/.*", "neck/.*"), (), r"classifier\.train: 'neck/\.\*' matches no parameter; there are backbone/conv/kernel"),
  ((".*",), (("heads/.*", 0.1),), r"classifier\.train: 'heads/\.\*' matches no parameter"),
  ((), (), r"classifier\.train: nothing is trained; .*'head/\.\*'"),
])
def test_a_pattern_without_parameters_is_named(train, lr_factors, message):
  with pytest.raises(ConfigError, match=message):
    optim.learning_rate_factors(tree(0), train, lr_factors, where="classifier.train")


def test_the_message_about_a_big_model_is_short():
  params = {"backbone": {f"block{k:03}": {"kernel": 0} for k in range(200)}, "head": {"kernel": 0}}
  with pytest.raises(ConfigError, match=r"backbone/block000/kernel, .*\(201 in all\).* head/kernel$") as raised:
    optim.learning_rate_factors(params, ("neck",))
  assert len(str(raised.value)) < 250


def test_a_moving_rate_does_not_recompile():
  params = tree(0)
  factors = optim.learning_rate_factors(params, ("head/.*",))
  optimizer = make(factors)
  traces = []

  @jax.jit
  def step(params, state, lr):
    traces.append(lr)
    return apply(optimizer, params, params, state, lr)

  first, state = step(params, optimizer.init(params), np.float32(0.1))
  second, state = step(first, state, np.float32(0.01))
  step(second, state, np.float32(0.0))
  assert len(traces) == 1
  assert np.abs(second["head"]["bias"] - first["head"]["bias"]).max() > 0


# -- other optimisers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options", "reference"), [
    ("adamw", dict(weight_decay=0.05), lambda lr: optax.adamw(lr, weight_decay=0.05)),
    ("adamw", dict(b1=0.8, b2=0.95, eps=1e-6),
     lambda lr: optax.adamw(lr, b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.01)),
    ("adam", dict(b1=0.8), lambda lr: optax.adam(lr, b1=0.8)),
    ("lamb", dict(weight_decay=0.05), lambda lr: optax.lamb(lr, weight_decay=0.05))])
def test_an_optimiser_is_that_of_optax_on_the_same_gradients(name, options, reference):
  params, rates = tree(0), (0.1, 0.02, 0.3)
  optimizer = make(optim.learning_rate_factors(params, (".*",)), name, **options)
  ours, state, theirs, theirs_state = params, optimizer.init(params), params, None
  for step, lr in enumerate(rates):
    ours, state = apply(optimizer, ours, tree(step + 1), state, lr)
    call = reference(lr)
    theirs_state = call.init(theirs) if theirs_state is None else theirs_state
    updates, theirs_state = call.update(tree(step + 1), theirs_state, theirs)
    theirs = optax.apply_updates(theirs, updates)
  for path, value in flatten_dict(ours, sep="/").items():
    np.testing.assert_allclose(value, flatten_dict(theirs, sep="/")[path], rtol=1e-5, err_msg=path)


def test_lars_scales_each_parameter_by_its_trust_ratio():
  params, grads = tree(0), tree(1)
  optimizer = make(optim.learning_rate_factors(params, (".*",)), "lars", momentum=0.0, trust_coefficient=0.01)
  after, _ = apply(optimizer, params, grads, optimizer.init(params), 0.5)
  for path, value in flatten_dict(params, sep="/").items():
    gradient = flatten_dict(grads, sep="/")[path]
    ratio = 0.01 * np.linalg.norm(value) / np.linalg.norm(gradient)
    np.testing.assert_allclose(flatten_dict(after, sep="/")[path], value - 0.5 * ratio * gradient, rtol=1e-4)


@pytest.mark.parametrize("factor", [0.5, 2.0])  # the limit, as a multiple of the norm
def test_gradients_longer_than_clip_norm_are_scaled_down_to_it(factor):
  params, grads = tree(0), tree(1)
  norm = float(optax.tree.norm(grads))
  optimizer = make(optim.learning_rate_factors(params, (".*",)), clip_norm=factor * norm, weight_decay=0.0)
  after, _ = apply(optimizer, params, grads, optimizer.init(params), 1.0)
  for path, value in flatten_dict(params, sep="/").items():
    step = min(1.0, factor) * flatten_dict(grads, sep="/")[path]
    np.testing.assert_allclose(flatten_dict(after, sep="/")[path], value - step, rtol=1e-4, atol=1e-6)


def test_only_trained_parameters_enter_the_norm():
  params, grads = tree(0), tree(1)
  factors = optim.learning_rate_factors(params, ("head/.*",))
  norm = float(optax.tree.norm(grads["head"]))
  optimizer = make(factors, clip_norm=norm / 4, weight_decay=0.0)
  after, _ = apply(optimizer, params, grads, optimizer.init(params), 1.0)
  np.testing.assert_allclose(after["head"]["bias"], params["head"]["bias"] - grads["head"]["bias"] / 4, rtol=1e-4)


# -- in a stage ------------------------------------------------------------------------------------------------------


class NoNorm(nn.Module):
  """A backbone without BatchNorm, so that a batch may be cut into parts."""

  @nn.compact
  def __call__(self, images, *, train):
    return nn.relu(nn.Conv(4, (3, 3), strides=2, name="conv")(images))


def stage_of(backbone="tests.test_optim:NoNorm", **overrides):
  return tiny.stages(tiny.config("ce_digits", backbone=dict(name=backbone), **overrides))["representation"]


def start(stage):
  return stage.make_state(stage.init())


def test_the_learning_rate_schedule_reaches_every_optimiser():
  stage = stage_of(representation__lr=dict(name="multi_step", base=0.1, at=(1,), factors=(0.01,)),
                   representation__optimizer=dict(name="adam"))
  moved = []
  for at in (0, stage.order.steps_per_epoch):
    indices, scalars = stage.batches(at, 1)
    before = jax.device_get(start(stage).params)
    after, _ = stage.train_steps[1](start(stage), stage.data, indices, dict(scalars, step=np.int32(0)))
    moved.append(np.abs(np.asarray(after.params["head"]["kernel"]) - before["head"]["kernel"]).max())
  np.testing.assert_allclose(moved, [0.1, 0.001], rtol=0.02)  # Adam's first step has the length of its rate
  assert stage.train_steps[1]._cache_size() == 1


BLOCKS = dict(
    cross_entropy=dict(loss=dict(name="cross_entropy"), class_weights=dict(name="inverse_frequency")),
    logit_adjustment=dict(adjust=dict(name="logit_adjustment"), loss=dict(name="cross_entropy")),
    focal=dict(loss=dict(name="focal", gamma=2.0), class_weights=dict(name="effective_number", beta=0.99)))


@pytest.mark.parametrize("reduce", ["weighted_mean", "mean"])
@pytest.mark.parametrize("block", BLOCKS)
def test_the_gradient_of_a_batch_in_parts_is_that_of_the_batch(block, reduce):
  found = {}
  for pieces in (1, 2):
    stage = stage_of(representation__optimizer=recipes.sgd(1e-4, accumulate=pieces), representation__reduce=reduce,
                     representation__mixup=1.0, **{f"representation__{key}": value
                                                   for key, value in BLOCKS[block].items()})
    found[pieces] = jax.jit(steps.make_gradients(stage.parts))(start(stage), stage.data, *stage.batches(0, 1))
  np.testing.assert_allclose(found[2].loss, found[1].loss, rtol=1e-5)
  np.testing.assert_allclose(found[2].logits, found[1].logits, rtol=1e-4, atol=1e-5)
  for (path, two), one in zip(jax.tree_util.tree_leaves_with_path(found[2].grads), jax.tree.leaves(found[1].grads),
                               strict=True):
    assert np.abs(one).max() > 1e-4
    np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-6, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(("overrides", "message"), [
    (dict(optimizer__accumulate=3), "representation.optimizer.accumulate: 3 does not divide .*batch_size=128; give one "
                                    "of 1, 2, 4"),
    (dict(optimizer__accumulate=0), "representation.optimizer.accumulate: expected an integer of at least 1, got 0"),
    (dict(optimizer__accumulate=2, loss=dict(name="lade")), "representation.optimizer.accumulate: the loss of this "
                                                            "stage is of a complete batch"),
    (dict(optimizer__clip_norm=-1.0), "representation.optimizer.clip_norm: expected a number of at least 0"),
    (dict(optimizer__ema=1.0), r"representation.optimizer.ema: expected a number in \[0, 1\), got 1.0"),
    (dict(optimizer__lr=0.1), "representation.optimizer: the learning rate is the stage's own key, representation.lr"),
    (dict(optimizer__momentun=0.9), r"optimizer.momentun: sgd has no such argument \(did you mean 'momentum'\?\)"),
    (dict(optimizer=dict(name="sdg")), "optimizer.name: there is no 'sdg'"),
    (dict(optimizer=dict(name="adam", no_decay=("head/bias",))), "no_decay: adam takes no mask for its weight decay"),
    (dict(optimizer__no_decay=("heads/.*",)), "representation.optimizer.no_decay: 'heads/.\\*' matches no parameter"),
])
def test_clipping_accumulation_and_ema_are_checked(overrides, message):
  config = tiny.config("ce_digits", backbone=tiny.ONE_CONV, **{
      f"representation__{key}": value for key, value in overrides.items()})
  with pytest.raises(ConfigError, match=message):
    parse(config)


def test_the_moving_average_follows_its_recursion_and_is_evaluated(tmp_path):
  config = tiny.config("ce_digits", backbone=tiny.ONE_CONV, epochs=1, representation__train=("head/.*", "backbone/c.*"),
                       representation__batch_norm="train", representation__lr=0.2,
                       representation__optimizer=recipes.sgd(1e-4, ema=0.9))
  stage = tiny.stages(config)["representation"]
  state = start(stage)
  expected = jax.device_get(dict(params=state.params, batch_stats=state.batch_stats))
  for step in range(stage.order.steps):
    state, _ = stage.train_steps[1](state, stage.data, *stage.batches(step, 1))
    now = jax.device_get(dict(params=state.params, batch_stats=state.batch_stats))
    expected = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, expected, now)
  found = jax.device_get(stage.optimizer.averaged(state.ema, state.params))
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6), found, expected)
  tiny.assert_trees_equal(found["params"]["backbone"]["norm"], jax.device_get(state.params["backbone"]["norm"]))

  results = tiny.run(config, tmp_path)["stages"]["representation"]
  assert json.loads((tmp_path / "results.json").read_text())["stages"]["representation"] == results
  saved = tiny.saved(stage, tmp_path)
  for key, variables in (("test_of_average", stage.optimizer.averaged(saved.ema, saved.params)),
                         ("test", dict(params=saved.params, batch_stats=saved.batch_stats))):
    confusion = stage.evaluators["test"](variables)
    assert results[key] == metrics.scores(confusion, stage.class_counts)
  assert results["test_of_average"] != results["test"]


def test_without_a_moving_average_there_is_none_to_evaluate(tmp_path):
  results = tiny.run(tiny.config("ce_digits", backbone=tiny.ONE_CONV, epochs=1), tmp_path)
  assert "test_of_average" not in results["stages"]["representation"]


@pytest.mark.parametrize("name", ["adam", "adamw", "lamb", "lars", "sgd"])
def test_every_optimiser_trains_a_stage(name):
  stage = stage_of(representation__optimizer=dict(name=name), representation__lr=0.01)
  state = start(stage)
  for step in range(2):
    state, finite = stage.train_steps[1](state, stage.data, *stage.batches(step, 1))
    assert finite
  assert (np.asarray(state.params["head"]["kernel"]) != jax.device_get(start(stage).params["head"]["kernel"])).any()


def test_every_optimiser_is_tested_here():
  assert set(optim.__all__) == {"adam", "adamw", "lamb", "lars", "sgd"}
