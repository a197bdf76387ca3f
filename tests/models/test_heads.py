import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltjax.models import heads
from tests import goldens

ALL = [getattr(heads, name) for name in heads.__all__]


def _init(head, dim=64, num_classes=10, dtype=jnp.float32):
  return jax.jit(head(num_classes).init)(jax.random.key(0), jnp.zeros((1, dim), dtype))


def _features(*shape, dtype=jnp.float32):
  return jax.random.normal(jax.random.key(1), shape).astype(dtype)


def test_cosine_golden():
  (_, _, inputs, outputs), = goldens.cases("cosine_classifier")
  with jax.enable_x64(True):
    cosines, vjp = jax.vjp(
        lambda kernel, features: heads.Cosine(10).apply({"params": {"kernel": kernel}}, features),
        jnp.asarray(inputs["W"]), jnp.asarray(inputs["feat"]))
    grad_kernel, grad_features = vjp(jnp.asarray(inputs["cotangent"]))
  assert cosines.dtype == np.float64
  np.testing.assert_allclose(cosines, outputs["cos"], rtol=1e-9, atol=1e-15)
  np.testing.assert_allclose(grad_kernel, outputs["grad_W"], rtol=1e-9, atol=1e-15)
  zero = ~inputs["feat"].any(axis=1)
  assert zero.sum() == 1 and np.isfinite(grad_features).all()
  np.testing.assert_allclose(grad_features[~zero], outputs["grad_feat"][~zero], rtol=1e-9, atol=1e-15)


def test_linear_is_affine():
  variables, features = _init(heads.Linear), _features(4, 64)
  kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
  np.testing.assert_allclose(
      heads.Linear(10).apply(variables, features), np.float64(features) @ np.float64(kernel) + bias, atol=1e-5)


def test_cosine_ignores_lengths():
  variables, features = _init(heads.Cosine), _features(4, 64)
  scaled = {"params": {"kernel": variables["params"]["kernel"] * jnp.arange(1.0, 11.0)}}
  cosines = heads.Cosine(10).apply(variables, features)
  np.testing.assert_allclose(heads.Cosine(10).apply(scaled, 1e3 * features), cosines, atol=1e-6)
  own = variables["params"]["kernel"].T
  np.testing.assert_allclose(jnp.diag(heads.Cosine(10).apply(variables, own)), 1, atol=1e-6)


def test_parameters_and_initial_values():
  linear, cosine = _init(heads.Linear, 400, 500)["params"], _init(heads.Cosine, 400, 500)["params"]
  assert jax.tree.map(jnp.shape, linear) == {"kernel": (400, 500), "bias": (500,)}
  assert jax.tree.map(jnp.shape, cosine) == {"kernel": (400, 500)}

  kernel = linear["kernel"] / np.sqrt(2 / 400)
  np.testing.assert_allclose([kernel.mean(), kernel.std()], [0, 1], atol=0.01)
  assert np.abs(kernel).max() > 3.5  # untruncated
  assert 0.045 < linear["bias"].max() <= 0.05 and -0.05 <= linear["bias"].min() < -0.045

  np.testing.assert_allclose(jnp.linalg.norm(cosine["kernel"], axis=0), 1, rtol=1e-5)
  largest = jnp.abs(cosine["kernel"]).max(axis=0)  # of a uniform column: sqrt(3 / 400), hardly more
  assert (largest < 1.15 * np.sqrt(3 / 400)).all() and (cosine["kernel"] < 0).any()


@pytest.mark.parametrize("head", ALL)
def test_gradient_is_finite_at_zero(head):
  variables = _init(head)
  for zeros in (variables, jax.tree.map(jnp.zeros_like, variables)):
    logits, vjp = jax.vjp(head(10).apply, zeros, jnp.zeros((4, 64)))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((logits, vjp(jnp.ones_like(logits)))))


@pytest.mark.parametrize("head", ALL)
def test_bfloat16_features_are_computed_in_float32(head):
  variables, features = _init(head, dtype=jnp.bfloat16), _features(4, 64, dtype=jnp.bfloat16)
  logits = head(10).apply(variables, features)
  assert {leaf.dtype for leaf in jax.tree.leaves((variables, logits))} == {jnp.dtype("float32")}
  np.testing.assert_array_equal(logits, head(10).apply(variables, features.astype(jnp.float32)))


@pytest.mark.parametrize("head", ALL)
def test_jit_equals_eager(head):
  variables, features = _init(head), _features(4, 64)
  np.testing.assert_allclose(
      jax.jit(head(10).apply)(variables, features), head(10).apply(variables, features), rtol=1e-6, atol=1e-6)
