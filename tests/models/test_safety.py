"""Numerical safety: finite logits and gradients of every head for features and class vectors without a direction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltjax import losses
from ltjax.models import heads
from tests.models.test_heads import both_modes, every_head

B, D = 4, 16
LABELS = np.zeros(B, np.int32)  # a batch of one class
COUNTS = np.array([1, 10**6, 50, 7, 1, 1, 100, 1, 10**6, 3])
SIZES = {"zero": 0.0, "tiny": 1e-20, "at the clamp": 1e-12, "one": 1.0, "large": 1e4}


def variables(head, size):
  """The head's initial parameters, all but the scales and biases multiplied by `size`."""
  found = head.init(jax.random.key(0), jnp.zeros((1, D)))
  return dict(found, params={
      name: size * value if value.ndim == 2 else value for name, value in found["params"].items()})


@every_head
@both_modes
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_finite_logits_and_gradients_for_features_and_class_vectors_of_any_length(head, train, dtype):
  def loss(params, features, rest):
    found, _ = head.apply(dict(rest, params=params), features, train=train, mutable=["batch_stats"])
    logits, *projections = jax.tree.leaves(found)
    return jnp.mean(losses.cross_entropy(logits, LABELS)) + sum(each.mean() for each in projections), logits

  slopes = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
  for which, size in SIZES.items():
    for length in SIZES.values():
      found = variables(head, length)
      rest = {name: value for name, value in found.items() if name != "params"}
      features = np.asarray(size * np.random.RandomState(0).randn(B, D), dtype)
      found = slopes(found["params"], features, rest)
      assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found)), (which, length)


@pytest.mark.parametrize("adjust", ["arcface", "kps_angular", "gcl_angular", "cosface", "kps", "ldam", "gcl"])
@pytest.mark.parametrize("sign", [1, -1])
def test_margins_on_features_that_lie_along_the_class_vectors(adjust, sign):
  """Rounding may put such a cosine beyond 1."""
  head = heads.Cosine(num_classes=10)
  kernel = head.init(jax.random.key(0), jnp.zeros((1, D)))["params"]["kernel"]
  more = dict(class_counts=COUNTS) if adjust not in ("arcface", "cosface") else {}
  more |= dict(key=jax.random.key(1)) if "gcl" in adjust else {}

  def loss(features, kernel):
    cosines = head.apply(dict(params=dict(kernel=kernel)), features)
    return jnp.mean(losses.cross_entropy(getattr(losses, adjust)(cosines, np.arange(10), **more), np.arange(10)))

  for size in (1e-3, 1.0, 1e3):
    found = jax.value_and_grad(loss, argnums=(0, 1))(sign * size * kernel.T, kernel)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found)), size
