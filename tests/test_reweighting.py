"""Weights that held-out images teach: against second-order derivatives in float64, and in the step.

No values of the released codes exist here; the references differentiate through the step that both methods look ahead.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltjax.config import parse
from ltjax.data import sources
from ltjax.errors import ConfigError
from ltjax.losses import cross_entropy, reweighting
from tests import tiny

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((7, 3)), RNG.integers(0, 4, 7)
HELD, TRUTH = RNG.standard_normal((8, 3)), np.arange(8) % 4
PARAMS = dict(w=RNG.standard_normal((3, 5)), v=RNG.standard_normal((5, 4)))


def logits(params, x):
  return jnp.tanh(x @ params["w"]) @ params["v"]


def losses(params):
  return cross_entropy(logits(params, X), Y)


def held_out(params):
  return cross_entropy(logits(params, HELD), TRUTH).mean()


def ahead(params, weights_of, rate):
  """The parameters after a step of gradient descent on weighted losses."""
  slope = jax.grad(lambda p: jnp.sum(weights_of(losses(p)) * losses(p)))(params)
  return jax.tree.map(lambda p, g: p - rate * g, params, slope)


def test_the_weights_are_those_of_a_derivative_through_the_step():
  with jax.enable_x64(True):
    found, state = reweighting.agreement(losses, held_out, PARAMS)
    gradient = jax.grad(lambda e: held_out(ahead(PARAMS, lambda values: e, 0.3)))(jnp.zeros(7))
    positive = np.maximum(-gradient, 0)
    np.testing.assert_allclose(found, 7 * positive / positive.sum(), rtol=1e-9)
  assert state is None and 0 < (np.asarray(found) == 0).sum() < 7


def test_no_example_counts_where_all_contradict():
  with jax.enable_x64(True):
    found, _ = reweighting.agreement(losses, lambda p: -losses(p).mean(), PARAMS)
    alone, _ = reweighting.agreement(lambda p: losses(p)[:1], lambda p: -losses(p)[0], PARAMS)
  assert np.isfinite(found).all() and alone.tolist() == [0.0]


def test_an_example_that_is_the_held_out_one_has_the_weight():
  with jax.enable_x64(True):
    found, _ = reweighting.agreement(losses, lambda p: losses(p)[2], PARAMS)
  assert np.argmax(found) == 2


def net(seed=0):
  return reweighting.init_weight_net(jax.random.key(seed), hidden=6)


def test_the_weight_net_learns_by_the_derivative_through_the_step():
  rate, lr = 0.5, 0.3
  with jax.enable_x64(True):
    state = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), net())
    state["momentum"] = jax.tree.map(lambda leaf: leaf + 0.1, state["momentum"])
    weights, after = reweighting.weight_net(losses, held_out, PARAMS, state, lr, rate=rate)
    # Differentiates through the step, in which the weights depend on the losses, as the released code does.
    gradient = jax.grad(lambda v: held_out(ahead(PARAMS, lambda values: reweighting.weights_of(v, values), lr)))(
        state["params"])
    for name, value in state["params"].items():
      decayed = gradient[name] + 5e-4 * value
      momentum = 0.9 * state["momentum"][name] + decayed
      np.testing.assert_allclose(after["momentum"][name], momentum, rtol=1e-8)
      np.testing.assert_allclose(after["params"][name], value - rate * (decayed + 0.9 * momentum), rtol=1e-8)
    expected = reweighting.weights_of(after["params"], losses(PARAMS))
    np.testing.assert_allclose(weights, 7 * expected, rtol=1e-9)
  assert any(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(gradient))


def test_weights_are_positive_and_sum_to_one_and_a_net_of_zeros_counts_all_alike():
  found = reweighting.weights_of(net()["params"], jnp.array([0.0, 1.0, 50.0]))
  assert (np.asarray(found) > 0).all() and np.sum(found) == pytest.approx(1)
  zeros = jax.tree.map(jnp.zeros_like, net()["params"])
  np.testing.assert_allclose(reweighting.weights_of(zeros, jnp.array([0.0, 9.0])), 0.5)


# -- the held-out images ----------------------------------------------------------------------------------------------


def test_as_many_images_of_each_class_are_held_out_and_few_of_them_are_missed_in_training():
  labels = np.repeat([0, 1, 2], 10)
  selected = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 20])
  train, held = sources.hold_out_each(labels, selected, 4, seed=0)
  assert np.bincount(labels[held]).tolist() == [4, 4, 4] and not np.intersect1d(train, held).size
  assert np.bincount(labels[train]).tolist() == [6, 3, 1]  # only class 0 has no other images
  assert set(train) <= set(selected.tolist())
  np.testing.assert_array_equal(sources.hold_out_each(labels, selected, 4, seed=0)[1], held)
  with pytest.raises(ConfigError, match="holdout_each: class 0 has 10 images, 10 of them to train on, so 10 cannot"):
    sources.hold_out_each(labels, selected, 10, seed=0)


def test_one_rule_holds_out():
  given = dict(imbalance=5.0, profile="exponential", subset_seed=0)
  plain, found = sources.digits(**given), sources.digits(**given, holdout_each=5)
  assert found.held_out_counts.tolist() == [5] * 10
  assert set(found.selected) <= set(plain.selected)
  with pytest.raises(ConfigError, match="set one of them to 0"):
    sources.digits(**given, holdout=0.1, holdout_each=5)


# -- the step ---------------------------------------------------------------------------------------------------------


def config(name="learning_to_reweight", each=5, **overrides):
  found = tiny.config("ce_digits", epochs=2, backbone=tiny.ONE_CONV, **dict(representation__transforms=(
      dict(name=name, sampler=dict(name="class_balanced")),)) | overrides)
  with found.unlocked():
    if each:
      found.dataset.holdout_each = each
  return found


@pytest.fixture(scope="module")
def dataset():
  return tiny.dataset(config())


def test_the_second_batch_is_of_held_out_images(dataset):
  stage = tiny.stages(config(), dataset)["representation"]
  indices, scalars = stage.batches(0, 1)
  count = len(dataset.train[1])
  assert indices.shape == (128, 2)
  first, second = np.asarray(indices).T
  assert first.max() < count <= second.min() and second.max() < count + 50
  batch, held_out, _ = stage.parts.transform(stage.data, indices, jax.random.key(0), scalars)
  np.testing.assert_array_equal(batch.terms[0].labels, dataset.train[1][first])
  np.testing.assert_array_equal(held_out.terms[0].labels, dataset.held_out[1][second - count])


@pytest.mark.parametrize("name", ["learning_to_reweight", "meta_weight_net"])
def test_a_step_follows_the_weighted_loss(name, dataset):
  stage = tiny.stages(config(name, representation__optimizer=dict(name="sgd", momentum=0.0)), dataset)["representation"]
  state, (indices, scalars) = stage.make_state(stage.init()), stage.batches(0, 1)
  before = jax.device_get(state.params)
  batch, other, weigh = stage.parts.transform(
      stage.data, indices, jax.random.fold_in(stage.data["key"], 0), scalars)
  stats = jax.device_get(state.batch_stats)

  def rows(params, part):
    (z, _), _ = stage.model.apply(dict(params=params, batch_stats=stats), part.inputs, train=True,
                                  mutable=["batch_stats"])
    return cross_entropy(z, part.terms[0].labels)

  weights, weigher = jax.jit(lambda params, own: weigh(
      lambda p: rows(p, batch), lambda p: rows(p, other).mean(), params, own, scalars["lr"]))(
          before, (state.loss_state or {}).get("weigher"))
  assert np.mean(weights) == pytest.approx(1, abs=1e-4) and np.std(weights) > (0.1 if weigher is None else 0)
  value, slope = jax.jit(jax.value_and_grad(lambda params: (weights * rows(params, batch)).mean()))(before)
  after, finite = stage.train_steps[1](state, stage.data, indices, scalars)
  assert finite
  np.testing.assert_allclose(after.window["loss"], 128 * value, rtol=1e-4)
  jax.tree.map(lambda new, old, g: np.testing.assert_allclose(new, old - scalars["lr"] * g, rtol=1e-3, atol=1e-5),
               jax.device_get(after.params), before, slope)
  if weigher is not None:
    jax.tree.map(lambda new, expected: np.testing.assert_allclose(new, expected, rtol=1e-4, atol=1e-6),
                 jax.device_get(after.loss_state["weigher"]), weigher)
    assert not np.array_equal(after.loss_state["weigher"]["params"]["kernel1"],
                              stage.wrap(stage.init()).loss_state["weigher"]["params"]["kernel1"])


@pytest.mark.parametrize(("overrides", "message"), [
    (dict(representation__loss=dict(name="prior_lade")), "weighs each example, but prior_lade is the loss of"),
    (dict(representation__optimizer__accumulate=2), "accumulate: learning_to_reweight weighs the examples of"),
    (dict(representation__mixup=1.0), "mixup: learning_to_reweight makes two batches, which mixup would"),
    (dict(representation__transforms=(dict(name="learning_to_reweight", sampler=dict(name="instance")),)),
     "sampler: instance draws without replacement"),
    (dict(representation__transforms=(dict(name="learning_to_reweight"),)), "learning_to_reweight needs sampler="),
])
def test_senseless_combinations_are_refused_by_name(overrides, message):
  with pytest.raises(ConfigError, match=message) as info:
    parse(config(**overrides))
  assert "\n" not in str(info.value)


def test_held_out_images_are_needed():
  found = config(each=0)
  with pytest.raises(ConfigError, match="learning_to_reweight learns on held-out images and there are none; write"):
    tiny.stages(found, tiny.dataset(found))
