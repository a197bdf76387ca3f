"""Supervised contrastive learning beside a classifier: the loss by hand in float64, the views, the checks.

The authors released no code, so no golden values exist; small cases are computed with loops.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltjax import losses
from ltjax.config import parse
from ltjax.errors import ConfigError
from ltjax.losses.contrastive import supervised_contrastive
from ltjax.models import heads
from tests import tiny

RNG = np.random.default_rng(0)
FEATURES, LABELS = RNG.standard_normal((7, 4)), np.array([0, 1, 0, 2, 1, 0, 3])
VIEWS = dict(name="contrastive_views", sampler=dict(name="class_balanced"))
LOSS = dict(name="hybrid_contrastive", share=dict(name="parabolic", start=1.0, end=0.0))


def by_hand(features, labels, temperature):
  """Equation 2 of Khosla et al. with loops."""
  v = [x / np.linalg.norm(x) for x in features]
  found = []
  for i in range(len(v)):
    others = [k for k in range(len(v)) if k != i]
    normalizer = sum(math.exp(v[i] @ v[k] / temperature) for k in others)
    positive = [j for j in others if labels[j] == labels[i]]
    found.append(-sum(math.log(math.exp(v[i] @ v[j] / temperature) / normalizer) for j in positive)
                 / max(len(positive), 1))
  return found


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_the_contrastive_loss_is_the_equation(temperature):
  with jax.enable_x64(True):
    found = supervised_contrastive(jnp.asarray(FEATURES), LABELS, temperature=temperature)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, by_hand(FEATURES, LABELS, temperature), rtol=1e-9)


def test_only_directions_count_and_the_order_of_the_rows_does_not():
  order = RNG.permutation(7)
  with jax.enable_x64(True):
    found = supervised_contrastive(jnp.asarray(FEATURES), LABELS)
    longer = supervised_contrastive(jnp.asarray(FEATURES * RNG.uniform(1, 9, (7, 1))), LABELS)
    moved = supervised_contrastive(jnp.asarray(FEATURES[order]), LABELS[order])
  np.testing.assert_allclose(longer, found, rtol=1e-9)
  np.testing.assert_allclose(moved, found[order], rtol=1e-9)


def test_a_step_along_the_gradient_draws_a_class_together():
  def similarity(x, same):
    v = x / np.linalg.norm(x, axis=1, keepdims=True)
    pairs = (LABELS[:, None] == LABELS) == same
    return (v @ v.T)[pairs & ~np.eye(7, dtype=bool)].mean()

  slope = jax.grad(lambda x: supervised_contrastive(x, LABELS, temperature=0.5).mean())(jnp.float32(FEATURES))
  after = FEATURES - 0.5 * np.asarray(slope)
  assert similarity(after, True) > similarity(FEATURES, True)
  assert similarity(after, False) < similarity(FEATURES, False)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_mean_is_the_weighted_sum_of_both_losses(share):
  logits, features, labels = RNG.standard_normal((9, 5)), RNG.standard_normal((9, 4)), RNG.integers(0, 3, 9)
  with jax.enable_x64(True):
    value, (at_logits, at_features) = jax.value_and_grad(lambda z, x: losses.mean(losses.hybrid_contrastive(
        z, labels, features=x, share=share, temperature=0.2)), argnums=(0, 1))(logits, features)
    expected = ((1 - share) * losses.cross_entropy(logits[:3], labels[:3]).mean()
                + share * np.mean(by_hand(features[3:], labels[3:], 0.2)))
  np.testing.assert_allclose(value, expected, rtol=1e-9)
  assert not at_logits[3:].any() and not at_features[:3].any()
  assert bool(at_logits.any()) == (share < 1) and bool(at_features.any()) == (share > 0)


def test_rows_that_are_no_thirds_are_refused():
  with pytest.raises(ConfigError, match="4 rows have no third; add dict"):
    losses.hybrid_contrastive(jnp.zeros((4, 2)), np.zeros(4, int), features=jnp.zeros((4, 2)), share=0.5)


def config(**overrides):
  return tiny.config("ce_digits", epochs=4, backbone=tiny.ONE_CONV, **dict(
      head=dict(name="ProjectedLinear", dim=3, hidden=5), representation__loss=LOSS,
      representation__transforms=(VIEWS,)) | overrides)


@pytest.fixture(scope="module")
def stage():
  return tiny.stages(config(), tiny.dataset(config()))["representation"]


def test_two_views_of_a_batch_and_a_balanced_batch_enter_a_step(stage):
  indices, scalars = stage.batches(0, 1)
  assert indices.shape == (128, 3)
  first, second, other = np.asarray(indices).T
  np.testing.assert_array_equal(first, second)
  assert len(set(first.tolist())) == 128 > len(set(other.tolist()))  # a permutation; independent draws
  found = stage.parts.transform(stage.data, indices, jax.random.key(0), scalars)
  (term,) = found.terms
  np.testing.assert_array_equal(term.labels, stage.dataset.train[1][np.concatenate([other, first, first])])
  _, one, two = np.split(np.asarray(found.inputs), 3)
  same = (one == two).all(axis=(1, 2, 3))
  assert 0 < same.sum() < 50  # shifts by at most one pixel agree in one of nine cases


def test_the_loss_takes_projections_and_evaluation_none(stage):
  variables = stage.init()
  images = jnp.asarray(stage.dataset.test[0][:4], jnp.float32)
  (logits, projections), _ = stage.model.apply(variables, images, train=True, mutable=["batch_stats"])
  assert logits.shape == (4, 10) and projections.shape == (4, 3)
  _, features = stage.model.apply(variables, images, train=False)
  assert features.shape == (4, 4)


def test_the_projection_is_a_layer_between_two_affine_maps_and_the_logits_are_those_of_a_linear_head():
  head, x = heads.ProjectedLinear(10, dim=3, hidden=5), jnp.asarray(FEATURES, jnp.float32)
  params = head.init(jax.random.key(0), x)["params"]
  logits, projections = head.apply({"params": params}, x, train=True)
  np.testing.assert_array_equal(logits, head.apply({"params": params}, x))
  plain = heads.Linear(10).apply({"params": {name: params[name] for name in ("kernel", "bias")}}, x)
  np.testing.assert_array_equal(logits, plain)
  inner = np.maximum(FEATURES @ params["project_kernel1"] + params["project_bias1"], 0)
  np.testing.assert_allclose(projections, inner @ params["project_kernel2"] + params["project_bias2"], rtol=1e-5,
                             atol=1e-6)


@pytest.mark.parametrize(("overrides", "message"), [
    (dict(representation__transforms=()), "loss: hybrid_contrastive reads the rows as contrastive_views arranges them"),
    (dict(representation__transforms=(dict(name="contrastive_views"),)), r"transforms\[0\]: contrastive_views needs"),
    (dict(representation__batch_norm="eval"), "batch_norm: ProjectedLinear gives its projections to the loss in train"),
    (dict(representation__mixup=1.0), "mixup: contrastive_views makes three batches, which mixup would"),
    (dict(representation__adjust=dict(name="fbl", alpha=1.0)), "adjust: fbl would take the projections"),
    (dict(representation__loss=dict(name="focal")), "head: focal of representation does not take the projections"),
    (dict(representation__optimizer__accumulate=2), "accumulate: the loss of this stage is of a complete batch"),
    (dict(representation__loss=dict(name="hybrid_contrastive")), "hybrid_contrastive needs share"),
    (dict(representation__loss=dict(name="hybrid_contrastive", share=2.0)), r"share: expected a number in \[0, 1\]"),
])
def test_senseless_combinations_are_refused_by_name(overrides, message):
  with pytest.raises(ConfigError, match=message) as info:
    parse(config(**overrides))
  assert "\n" not in str(info.value)
