import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from ltjax import optim
from ltjax.errors import ConfigError
from tests.tiny import assert_trees_equal

SHAPES = {"backbone": {"conv": {"kernel": (3, 2)}, "norm": {"scale": (2,), "bias": (2,)}},
          "head": {"kernel": (2, 4), "bias": (4,)}}
WEIGHT_DECAY, MOMENTUM = 0.05, 0.9


def tree(seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda shape: jnp.asarray(rng.normal(size=shape)), SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def apply(tx, params, grads, state, factors, lr):
  """One update of the trained parameters, as the train step makes it."""
  trained, frozen = optim.split(params, factors)
  updates, state = tx.update(optim.split(grads, factors)[0], state, trained, lr=lr)
  return optim.join(optax.apply_updates(trained, updates), frozen), state


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
    tx = optim.sgd(momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, factors=factors)
    state = tx.init(optim.split(params, factors)[0])
    ours, velocity = {path: np.array(value) for path, value in flatten_dict(params, sep="/").items()}, {}
    for step, lr in enumerate((0.1, 0.1, 0.02, 0.3, 0.0, 0.1)):  # PyTorch's velocity does not hold the rate
      grads = tree(step + 1)
      params, state = apply(tx, params, grads, state, factors, lr)
      for path, gradient in flatten_dict(grads, sep="/").items():
        factor = next((value for part, value in expected.items() if path.startswith(part)), 1.0)
        if factor is not None:
          velocity[path] = MOMENTUM * velocity.get(path, 0) + np.array(gradient) + WEIGHT_DECAY * ours[path]
          ours[path] = ours[path] - lr * factor * velocity[path]
      for path, value in flatten_dict(params, sep="/").items():
        np.testing.assert_allclose(value, ours[path], rtol=1e-12, err_msg=f"{path} after step {step}")


def test_the_decay_alone_moves_every_trained_parameter_batch_norm_and_biases_too():
  params = tree(0)
  factors = optim.learning_rate_factors(params, (".*",))
  tx = optim.sgd(momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, factors=factors)
  zeros = jax.tree.map(jnp.zeros_like, params)
  after, _ = apply(tx, params, zeros, tx.init(params), factors, lr=0.1)
  for path, value in flatten_dict(after, sep="/").items():
    before = flatten_dict(params, sep="/")[path]
    np.testing.assert_allclose(value, before * (1 - 0.1 * WEIGHT_DECAY), rtol=1e-6, err_msg=path)


@pytest.mark.parametrize(("no_decay", "spared"), [
  (("head/bias",), {"head/bias"}), ((".*/bias", "backbone/norm/.*"), {"head/bias", "backbone/norm/bias",
                                                                     "backbone/norm/scale"}), (("bias",), set())])
@pytest.mark.parametrize("train", [(".*",), ("head/.*", "backbone/norm/.*")])
def test_the_decay_spares_what_it_is_told_to(no_decay, spared, train):
  params = tree(0)
  factors = optim.learning_rate_factors(params, train)
  tx = optim.sgd(momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, factors=factors, no_decay=no_decay)
  zeros = jax.tree.map(jnp.zeros_like, params)
  after, _ = apply(tx, params, zeros, tx.init(optim.split(params, factors)[0]), factors, lr=0.1)
  for path, value in flatten_dict(after, sep="/").items():
    still = path in spared or flatten_dict(factors, sep="/")[path] is None
    before = flatten_dict(params, sep="/")[path]
    np.testing.assert_allclose(value, before if still else before * (1 - 0.1 * WEIGHT_DECAY), rtol=1e-6, err_msg=path)


def test_frozen_parameters_have_no_state_and_never_move():
  params = tree(0)
  factors = optim.learning_rate_factors(params, ("head/.*",), (("head/.*", 2.0), ("backbone/.*", 3.0)))
  assert {path for path, factor in flatten_dict(factors, sep="/").items() if factor is None} == {
    "backbone/conv/kernel", "backbone/norm/scale", "backbone/norm/bias"}
  tx = optim.sgd(momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, factors=factors)
  state, now = tx.init(optim.split(params, factors)[0]), params
  assert sorted(leaf.shape for leaf in jax.tree.leaves(state)) == [(2, 4), (4,)]
  for step in range(3):
    now, state = apply(tx, now, tree(step), state, factors, lr=0.5)
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
def test_what_cannot_be_trained_is_named(train, lr_factors, message):
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
  tx = optim.sgd(momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, factors=factors)
  traces = []

  @jax.jit
  def step(params, state, lr):
    traces.append(lr)
    return apply(tx, params, params, state, factors, lr)

  first, state = step(params, tx.init(optim.split(params, factors)[0]), np.float32(0.1))
  second, state = step(first, state, np.float32(0.01))
  step(second, state, np.float32(0.0))
  assert len(traces) == 1
  assert np.abs(second["head"]["bias"] - first["head"]["bias"]).max() > 0
