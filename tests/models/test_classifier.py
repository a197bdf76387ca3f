import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltjax import models
from ltjax.models import heads


def _model(head=heads.Linear, **kwargs):
  return models.Classifier(backbone=models.ResNetCIFAR(depth=8, **kwargs), head=head(10))


@pytest.fixture(scope="module")
def digits():
  return jax.random.normal(jax.random.key(1), (16, 8, 8, 1))


@pytest.fixture(scope="module")
def variables(digits):
  return jax.jit(lambda: _model().init(jax.random.key(0), digits, train=False))()


@pytest.mark.parametrize("head, stateful", [
    (heads.Linear, False), (heads.Cosine, False), (heads.LearnableScale, False), (heads.TDE, True)])
def test_exactly_two_top_keys(digits, head, stateful):
  variables = jax.eval_shape(lambda: _model(head).init(jax.random.key(0), digits, train=False))
  assert set(variables) == {"params", "batch_stats"}
  assert set(variables["params"]) == {"backbone", "head"}
  assert set(variables["batch_stats"]) == ({"backbone", "head"} if stateful else {"backbone"})


@pytest.mark.parametrize("train", [False, True])
def test_the_head_gets_the_train_flag(digits, variables, train):
  params = {**variables["params"], "head": {"kernel": variables["params"]["head"]["kernel"]}}
  batch_stats = {**variables["batch_stats"], "head": {"mean": jnp.ones(64)}}
  (_, features), updated = jax.jit(lambda v: _model(heads.TDE).apply(v, digits, train=train, mutable=["batch_stats"]))(
      {"params": params, "batch_stats": batch_stats})
  expected = 0.9 + features.mean(axis=0) if train else jnp.ones(64)
  np.testing.assert_allclose(updated["batch_stats"]["head"]["mean"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("train", [False, True])
def test_jit_equals_eager(digits, variables, train):
  def apply(variables, images):
    return _model().apply(variables, images, train=train, mutable=["batch_stats"])

  eager, jitted = apply(variables, digits), jax.jit(apply)(variables, digits)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), eager, jitted)
  moved = jax.tree.map(lambda a, b: (a != b).any(), eager[1]["batch_stats"], variables["batch_stats"])
  assert all(bool(leaf) == train for leaf in jax.tree.leaves(moved))


def test_features_are_the_pooled_maps_and_logits_the_head_of_them(digits, variables):
  def part(name):
    return {key: value[name] for key, value in variables.items() if name in value}

  logits, features = _model().apply(variables, digits, train=False)
  maps = models.ResNetCIFAR(depth=8).apply(part("backbone"), digits, train=False)
  np.testing.assert_allclose(features, maps.mean(axis=(1, 2)), rtol=1e-6)
  np.testing.assert_allclose(logits, heads.Linear(10).apply(part("head"), features), rtol=1e-6)


def test_bfloat16_gives_float32_logits_close_to_float32(digits, variables):
  def run(dtype):
    return jax.jit(lambda v, x: _model(dtype=dtype).apply(v, x, train=False))(variables, digits)

  (logits, features), (expected, _) = run(jnp.bfloat16), run(jnp.float32)
  assert logits.dtype == features.dtype == jnp.float32
  assert 0 < jnp.abs(logits - expected).max() < 0.03 * jnp.abs(expected).max()


def test_gradient_reaches_every_parameter(digits, variables):
  def loss(params):
    (logits, _), _ = _model().apply({**variables, "params": params}, digits, train=True, mutable=["batch_stats"])
    return jnp.sum(jnp.sin(logits))

  gradients = jax.jit(jax.grad(loss))(variables["params"])
  assert all(jnp.isfinite(leaf).all() and leaf.any() for leaf in jax.tree.leaves(gradients))
