"""Statistics of groups: the groups one by one, flax's BatchNorm, and DataParallel's running statistics."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltjax import models
from ltjax.errors import ConfigError
from ltjax.models import batch_norm
from ltjax.models.batch_norm import GroupedBatchNorm


def _draw(*shape, dtype=jnp.float32):
  return 3 * jax.random.normal(jax.random.key(len(shape)), shape, dtype) + 1


def _train(model, variables, x):
  return model.apply(variables, x, mutable=["batch_stats"])


VARIABLES = dict(params=dict(scale=jnp.arange(1.0, 6), bias=jnp.arange(5.0)),
                 batch_stats=dict(mean=jnp.full(5, 2.0), var=jnp.full(5, 3.0)))
PLAIN = nn.BatchNorm(use_running_average=False, momentum=0.9, epsilon=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_groups_are_normalised_separately_and_the_first_updates_the_running_statistics(groups):
  x = _draw(6, 3, 4, 5)
  found, updated = _train(GroupedBatchNorm(groups=groups), VARIABLES, x)
  alone = [_train(PLAIN, VARIABLES, part) for part in jnp.split(x, groups)]
  np.testing.assert_allclose(found, jnp.concatenate([maps for maps, _ in alone]), rtol=1e-5, atol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updated, dict(alone[0][1]))


def test_groups_of_one_example_differ_from_the_batch():
  x = _draw(4, 3, 3, 5)
  per_example, _ = _train(GroupedBatchNorm(groups=4), VARIABLES, x)
  together, _ = _train(GroupedBatchNorm(groups=1), VARIABLES, x)
  assert np.abs(per_example - together).max() > 0.1
  np.testing.assert_allclose(per_example.mean(axis=(1, 2)), jnp.broadcast_to(VARIABLES["params"]["bias"], (4, 5)),
                             atol=1e-5)


def test_variables_are_those_of_flax():
  x = _draw(2, 2, 2, 5)
  grouped, plain = (model.init(jax.random.key(0), x) for model in (GroupedBatchNorm(groups=2), PLAIN))
  assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), dict(grouped)) == jax.tree.map(
      lambda leaf: (leaf.shape, leaf.dtype), dict(plain))


def test_bfloat16_maps_have_float32_statistics():
  x = _draw(4, 2, 2, 5, dtype=jnp.bfloat16)
  found, updated = _train(GroupedBatchNorm(groups=2, dtype=jnp.bfloat16), VARIABLES, x)
  assert found.dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(updated)} == {jnp.dtype("float32")}


def test_a_network_of_groups_is_the_network_of_each():
  """Outputs and gradients, as DataParallel adds them up."""
  images = _draw(4, 16, 16, 3)
  whole, alone = (models.ResNet(depth=10, width=4, stem="cifar", bn_groups=groups) for groups in (2, 1))
  variables = jax.jit(lambda: whole.init(jax.random.key(0), images, train=False))()

  def loss(model, params, images):
    maps, updated = model.apply(variables | dict(params=params), images, train=True, mutable=["batch_stats"])
    return jnp.sum(jnp.sin(maps)), (maps, updated)

  step = jax.jit(jax.value_and_grad(loss, argnums=1, has_aux=True), static_argnums=0)
  (_, (maps, updated)), grads = step(whole, variables["params"], images)
  parts = [step(alone, variables["params"], part) for part in jnp.split(images, 2)]
  np.testing.assert_allclose(maps, jnp.concatenate([part[0][1][0] for part in parts]), rtol=1e-3, atol=1e-4)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), updated, parts[0][0][1][1])
  jax.tree.map(lambda a, b, c: np.testing.assert_allclose(a, b + c, rtol=1e-2, atol=1e-3), grads,
               *(part[1] for part in parts))
  evaluate = jax.jit(lambda model, images: model.apply(variables, images, train=False), static_argnums=0)
  np.testing.assert_array_equal(evaluate(whole, images[:3]), evaluate(alone, images[:3]))


def test_batches_that_cannot_be_grouped():
  with pytest.raises(ConfigError, match="bn_groups=4 does not divide a batch of 6"):
    _train(GroupedBatchNorm(groups=4), VARIABLES, _draw(6, 2, 2, 5))
  with pytest.raises(ConfigError, match="bn_groups=2: the statistics of groups cannot leave out rows"):
    GroupedBatchNorm(groups=2).apply(VARIABLES, _draw(6, 2, 2, 5), mask=jnp.ones((6, 1, 1, 1), bool),
                                     mutable=["batch_stats"])


class TwoLayers(nn.Module):
  """Two normalisations of the input, side by side."""

  groups: int

  @nn.compact
  def __call__(self, x):
    plain = partial(nn.BatchNorm, use_running_average=False, momentum=0.9, epsilon=1e-5)
    last = partial(GroupedBatchNorm, groups=self.groups) if self.groups > 1 else plain
    return plain(name="first")(x), last(name="last")(x)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("trains", ["first", "last"])
def test_only_the_layers_that_match_follow_the_batch(groups, trains):
  x, model = _draw(4, 3, 3, 5), TwoLayers(groups)
  variables = {kind: dict(first=tree, last=tree) for kind, tree in VARIABLES.items()}
  everything, all_moved = _train(model, variables, x)
  with batch_norm.moving((trains,)):
    found, moved = _train(model, variables, x)
  evaluated = nn.BatchNorm(use_running_average=True, epsilon=1e-5).apply(VARIABLES, x)
  for index, name in enumerate(("first", "last")):
    np.testing.assert_array_equal(found[index], everything[index] if name == trains else evaluated)
    jax.tree.map(np.testing.assert_array_equal, moved["batch_stats"][name],
                 all_moved["batch_stats"][name] if name == trains else VARIABLES["batch_stats"])
