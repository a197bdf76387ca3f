"""OLTR: its equations in NumPy and by loops, its start, where gradients flow, and a stage with it.

The released code's modules could not be run here, so no golden values exist.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltjax import bridge, losses
from ltjax.config import parse
from ltjax.errors import ConfigError, DataError
from ltjax.losses import cross_entropy
from ltjax.models import heads, oltr
from tests import tiny

RNG = np.random.default_rng(0)
MAPS, CENTROIDS = RNG.standard_normal((3, 2, 4, 6)), RNG.standard_normal((6, 5))
X = MAPS.mean(axis=(1, 2))


def softmax(z):
  e = np.exp(z - z.max(axis=-1, keepdims=True))
  return e / e.sum(axis=-1, keepdims=True)


def test_attention_is_the_equation():
  attention = {name: (RNG.standard_normal((6, 3)), RNG.standard_normal(3)) for name in ("theta", "phi", "g")}
  attention["mask"] = RNG.standard_normal((3, 6))
  kernel, bias = RNG.standard_normal((2, 4, 6, 8)), RNG.standard_normal(8)
  expected = np.empty_like(MAPS)
  for number, maps in enumerate(MAPS):
    rows = maps.reshape(8, 6)
    theta, phi, g = (rows @ attention[name][0] + attention[name][1] for name in ("theta", "phi", "g"))
    where = softmax(np.einsum("hwd,hwdp->p", maps, kernel) + bias)
    expected[number] = (rows + where[:, None] * (softmax(theta @ phi.T) @ g @ attention["mask"])).reshape(2, 4, 6)
  with jax.enable_x64(True):
    np.testing.assert_allclose(oltr.modulated_attention(MAPS, attention, (kernel, bias)), expected, rtol=1e-9)
    attention["mask"] = np.zeros((3, 6))
    np.testing.assert_array_equal(oltr.modulated_attention(MAPS, attention, (kernel, bias)), MAPS)


def test_the_memory_enriches_a_feature_by_the_equation():
  memory, selector = RNG.standard_normal((3, 5)), RNG.standard_normal((3, 6))
  distances = np.array([[np.sum((x - CENTROIDS[:, c]) ** 2) for c in range(5)] for x in X])
  expected = [10 / np.sqrt(distances[i].min()) * (X[i] + np.tanh(selector[i]) * (CENTROIDS @ softmax(memory[i])))
              for i in range(3)]
  with jax.enable_x64(True):
    np.testing.assert_allclose(oltr.squared_distances(X, CENTROIDS), distances, rtol=1e-9)
    np.testing.assert_allclose(oltr.meta_embedding(X, CENTROIDS, memory, selector), expected, rtol=1e-9)
    slope = jax.grad(lambda m: oltr.meta_embedding(X, m, memory, selector).sum())(jnp.asarray(CENTROIDS))
    near = oltr.meta_embedding(CENTROIDS.T[:3], CENTROIDS, memory, selector)
  assert not slope.any() and np.isfinite(near).all()


def test_short_features_have_smaller_cosines():
  with jax.enable_x64(True):
    found = oltr.squashed_cosines(jnp.asarray(X), jnp.asarray(CENTROIDS))
    lengths = np.linalg.norm(X, axis=1, keepdims=True)
    expected = 16 * lengths / (1 + lengths) * (X / lengths) @ (CENTROIDS / np.linalg.norm(CENTROIDS, axis=0))
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert np.isfinite(jax.grad(lambda x: oltr.squashed_cosines(x, CENTROIDS).sum())(jnp.zeros((2, 6)))).all()


def test_the_loss_by_hand_draws_to_the_own_centroid_and_off_the_others():
  logits, labels, d = RNG.standard_normal((4, 3)), np.array([0, 2, 1, 1]), RNG.uniform(0, 5, (4, 3))
  others = sum(d[i, c] for i in range(4) for c in range(3) if c != labels[i]) / 12
  with jax.enable_x64(True):
    given = dict(weight=0.5, repulsion=0.2, margin=9.0)
    found = losses.discriminative_centroids(logits, labels, features=jnp.asarray(d), **given)
    expected = [float(cross_entropy(logits, labels)[i]) + 0.5 * (d[i, labels[i]] / 2 + 0.2 * (9 - others))
                for i in range(4)]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    slope = jax.grad(lambda d: losses.discriminative_centroids(logits, labels, features=d, **given).mean())(d)
    own = np.eye(3, dtype=bool)[labels]
    np.testing.assert_allclose(slope[own], 0.5 / 2 / 4, rtol=1e-9)
    np.testing.assert_allclose(slope[~own], -0.5 * 0.2 / 12, rtol=1e-9)
    far = losses.discriminative_centroids(logits, labels, features=jnp.asarray(d + 100 * ~own), **given)
    np.testing.assert_allclose(far, cross_entropy(logits, labels) + 0.5 * d[own] / 2, rtol=1e-9)
  with pytest.raises(DataError, match="squared distances of shape"):
    losses.discriminative_centroids(logits, labels, features=d[:, :2])


def test_the_head_starts_without_attention_and_fits_one_size():
  head = heads.OLTR(5)
  params = head.init(jax.random.key(0), MAPS)["params"]
  (logits, distances), plain = head.apply({"params": params}, MAPS, train=True), head.apply({"params": params}, MAPS)
  np.testing.assert_array_equal(logits, plain)
  x = jnp.float32(X)
  np.testing.assert_allclose(distances, oltr.squared_distances(x, params["centroids"]), rtol=1e-4)
  enriched = oltr.meta_embedding(x, params["centroids"], x @ params["kernel"] + params["bias"],
                                 x @ params["selector_kernel"] + params["selector_bias"])
  np.testing.assert_allclose(logits, oltr.squashed_cosines(enriched, params["class_kernel"]), rtol=1e-4, atol=1e-5)
  with pytest.raises(ConfigError, match="built for maps of 2 x 4, got 4 x 2"):
    head.apply({"params": params}, MAPS.transpose(0, 2, 1, 3))
  with pytest.raises(ConfigError, match="positions of feature maps"):
    head.init(jax.random.key(0), X)


def config(**overrides):
  found = tiny.config("ce_digits", epochs=1, backbone=tiny.ONE_CONV, **overrides)
  with found.unlocked():
    found.stages, found.memory = ("representation", "memory"), found.representation.copy_and_resolve_references()
    with found.memory.ignore_type():
      found.memory.update(dict(head=dict(name="OLTR"), head_init=dict(name="class_mean"), loss=dict(
          name="discriminative_centroids")))
  return found


def test_a_second_stage_starts_with_class_means_and_trains_all_parts():
  found = config()
  stage = tiny.stages(found, dataset := tiny.dataset(found))["memory"]
  variables = stage.init()

  started = bridge.start_head(stage, variables)["params"]["head"]
  features = stage.extractor(variables)(dataset.train[0], "features")["features"]
  means = np.stack([features[dataset.train[1] == c].mean(axis=0) for c in range(10)], axis=1)
  np.testing.assert_allclose(started["centroids"], means, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(started["kernel"], variables["params"]["head"]["kernel"])
  state, before = stage.make_state(variables | dict(params=variables["params"] | dict(head=started))), started
  before = jax.device_get(before)
  for step in range(3):
    state, finite = stage.train_steps[1](state, stage.data, *stage.batches(step, 1))
    assert finite
  for name, value in jax.device_get(state.params["head"]).items():
    assert (value != before[name]).any(), name
  assert stage.evaluators["test"](dict(params=state.params, batch_stats=state.batch_stats)).sum() == 400


def test_every_parameter_has_a_gradient():
  head, labels = heads.OLTR(5), np.array([0, 3, 3])
  params = head.init(jax.random.key(0), MAPS)["params"]
  params = jax.tree.map(lambda leaf: leaf + 0.1, params)  # the mask starts at zero, behind which nothing learns

  def loss(params):
    logits, distances = head.apply({"params": params}, MAPS, train=True)
    return losses.discriminative_centroids(logits, labels, features=distances).mean()

  for name, slope in jax.grad(loss)(params).items():
    assert np.abs(slope).max() > 0 or name == "attention_theta_bias", name


@pytest.mark.parametrize(("key", "value", "message"), [
    ("head", dict(name="Linear"), "loss: discriminative_centroids takes the distances of a head for features"),
    ("head", dict(name="ProjectedLinear"), "and ProjectedLinear gives none"),
    ("loss", dict(name="cross_entropy"), "head: cross_entropy of memory does not take the projections of OLTR"),
    ("batch_norm", "eval", "batch_norm: OLTR gives its projections to the loss in train mode only"),
])
def test_senseless_combinations_are_refused_by_name(key, value, message):
  found = config()
  with found.unlocked(), found.memory.ignore_type():
    found.memory[key] = value
    found.memory.head_init = None
  with pytest.raises(ConfigError, match=message) as info:
    parse(found)
  assert "\n" not in str(info.value)
