import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltjax import losses
from ltjax.errors import ConfigError

LOGITS = jnp.asarray(np.random.RandomState(0).randn(8, 5), jnp.float32)
COSINES = jnp.tanh(LOGITS)
LABELS = jnp.asarray(np.random.RandomState(1).randint(0, 5, 8))
COUNTS = np.array([30, 500, 2, 500, 1])
CLOUDS = ["log", "cosine", "power_1_3", "power_1_4"]


def test_cross_entropy_is_minus_log_of_the_softmax():
  p = jax.nn.softmax(LOGITS)[jnp.arange(8), LABELS]
  np.testing.assert_allclose(losses.cross_entropy(LOGITS, LABELS), -jnp.log(p), rtol=1e-5)


def test_cross_entropy_takes_indices_and_probabilities_alike():
  one_hot = jax.nn.one_hot(LABELS, 5)
  for smoothing in (0.0, 0.3, 1.0):
    np.testing.assert_allclose(losses.cross_entropy(LOGITS, LABELS, label_smoothing=smoothing),
                               losses.cross_entropy(LOGITS, one_hot, label_smoothing=smoothing), rtol=1e-6)


def test_label_smoothing_mixes_the_target_with_the_uniform_distribution():
  smoothed = 0.9 * jax.nn.one_hot(LABELS, 5) + 0.1 / 5
  np.testing.assert_allclose(losses.cross_entropy(LOGITS, LABELS, label_smoothing=0.1),
                             losses.cross_entropy(LOGITS, smoothed), rtol=1e-6)


@pytest.mark.parametrize("soft", [False, True])
def test_an_excluded_class_leaves_the_softmax(soft):
  excluded = LOGITS.at[:, 4].set(-jnp.inf)
  labels = jnp.minimum(LABELS, 3)
  given = jax.nn.one_hot(labels, 5) if soft else labels
  value, slope = jax.value_and_grad(lambda z: losses.mean(losses.cross_entropy(z, given)))(excluded)
  np.testing.assert_allclose(value, losses.mean(losses.cross_entropy(LOGITS[:, :4], labels)), rtol=1e-6)
  assert np.isfinite(slope).all()
  assert not slope[:, 4].any()


def test_focal_with_gamma_zero_is_cross_entropy():
  np.testing.assert_array_equal(losses.focal(LOGITS, LABELS, gamma=0.0), losses.cross_entropy(LOGITS, LABELS))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_is_cross_entropy_times_its_modulator(gamma):
  cross_entropy = losses.cross_entropy(LOGITS, LABELS)
  modulator = (1 - jnp.exp(-cross_entropy)) ** gamma
  np.testing.assert_allclose(losses.focal(LOGITS, LABELS, gamma=gamma), modulator * cross_entropy, rtol=1e-5)
  slope = jax.grad(lambda z: losses.focal(z, LABELS, gamma=gamma, detach=True).sum())(LOGITS)
  expected = modulator[:, None] * (jax.nn.softmax(LOGITS) - jax.nn.one_hot(LABELS, 5))
  np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.5, 1.0, 3.0])
def test_focal_has_a_finite_gradient_where_the_cross_entropy_is_zero(gamma):
  sure = jnp.array([[1000.0, 0.0], [30.0, 0.0], [16.0, 0.0], [15.0, 0.0]])
  labels = jnp.zeros(4, int)
  assert losses.cross_entropy(sure, labels)[0] == 0
  for g in (gamma, jnp.float32(gamma)):
    slope = jax.jit(jax.grad(lambda z, g: losses.focal(z, labels, gamma=g).sum()))(sure, g)
    assert np.isfinite(slope).all()


def test_gcl_without_cloud_is_a_scaled_margin():
  logits = losses.gcl(COSINES, LABELS, COUNTS, noise=jnp.zeros((8, 5)), scale=20.0, margin=0.1)
  np.testing.assert_allclose(logits, 20 * (COSINES - 0.1 * jax.nn.one_hot(LABELS, 5)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cloud_size", CLOUDS)
def test_gcl_cloud_is_exactly_zero_on_the_head_and_one_on_the_rarest_class(cloud_size):
  cloud = -losses.gcl(jnp.zeros((1, 5)), jnp.array([0]), COUNTS, noise=jnp.ones((1, 5)), scale=1.0, noise_scale=1.0,
                      cloud_size=cloud_size)[0]
  np.testing.assert_array_equal(cloud[jnp.array([1, 3])], 0)
  np.testing.assert_allclose(cloud[4], 1, rtol=1e-6)
  assert 0 < cloud[0] < cloud[2] < cloud[4]


@pytest.mark.parametrize("cloud_size", CLOUDS)
@pytest.mark.parametrize("count", [1, 7, 500])
def test_gcl_has_no_cloud_between_equal_classes(cloud_size, count):
  logits = losses.gcl(COSINES, LABELS, np.full(5, count), noise=jnp.ones((8, 5)), cloud_size=cloud_size)
  np.testing.assert_array_equal(logits, 30 * COSINES)


def test_gcl_clips_its_noise_and_takes_the_absolute_value():
  far = losses.gcl(COSINES, LABELS, COUNTS, noise=jnp.full((8, 5), -5.0))
  np.testing.assert_array_equal(far, losses.gcl(COSINES, LABELS, COUNTS, noise=jnp.ones((8, 5))))


def test_gcl_draws_a_third_of_a_normal_for_each_element_and_key():
  key = jax.random.key(0)
  drawn = losses.gcl(COSINES, LABELS, COUNTS, key=key)
  noise = jax.random.normal(key, (8, 5)) / 3
  np.testing.assert_array_equal(drawn, losses.gcl(COSINES, LABELS, COUNTS, noise=noise))
  assert (drawn != losses.gcl(COSINES, LABELS, COUNTS, key=jax.random.key(1)))[:, 4].all()
  assert len(np.unique(30 * COSINES[:, 4] - drawn[:, 4])) == 8


def test_gcl_wants_one_source_of_noise_and_a_known_cloud():
  with pytest.raises(ConfigError, match="neither"):
    losses.gcl(COSINES, LABELS, COUNTS)
  with pytest.raises(ConfigError, match="both"):
    losses.gcl(COSINES, LABELS, COUNTS, key=jax.random.key(0), noise=COSINES)
  with pytest.raises(ConfigError, match="power_1_3"):
    losses.gcl(COSINES, LABELS, COUNTS, noise=COSINES, cloud_size="sqrt")


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999, 0.9999999])
def test_effective_number_is_accurate_in_float32(beta):
  counts = np.array([1000000, 1, 30, 2, 100000])
  exact = [1 / sum(beta**k for k in range(min(n, 200000))) for n in counts.tolist()] if beta < 0.9999 else None
  weights = losses.effective_number(counts, beta=beta)
  with jax.enable_x64(True):
    better = losses.effective_number(counts, beta=beta)
  np.testing.assert_allclose(weights, better, rtol=2e-6)
  np.testing.assert_allclose(weights.sum(), 5, rtol=1e-6)
  if exact:
    np.testing.assert_allclose(better, np.array(exact) * 5 / sum(exact), rtol=1e-9)


def test_effective_number_goes_from_ones_to_the_inverse_frequency():
  np.testing.assert_array_equal(losses.effective_number(COUNTS, beta=0.0), 1)
  nearly = losses.effective_number(COUNTS, beta=1 - 1e-9)
  np.testing.assert_allclose(nearly, losses.inverse_frequency(COUNTS), rtol=1e-6)
  for beta in (1.0, -0.1):
    with pytest.raises(ConfigError, match="beta"):
      losses.effective_number(COUNTS, beta=beta)


def test_weighted_mean_ignores_the_scale_of_the_weights():
  per_example = losses.cross_entropy(LOGITS, LABELS)
  weights = losses.inverse_frequency(COUNTS)[LABELS]
  expected = (weights * per_example).sum() / weights.sum()
  np.testing.assert_allclose(losses.weighted_mean(per_example, weights), expected, rtol=1e-6)
  np.testing.assert_allclose(losses.weighted_mean(per_example, 7 * weights), expected, rtol=1e-6)
  np.testing.assert_allclose(losses.weighted_mean(per_example, jnp.ones(8)), losses.mean(per_example), rtol=1e-6)
