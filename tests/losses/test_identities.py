import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltjax import losses
from ltjax.errors import ConfigError, DataError
from ltjax.losses import angular
from ltjax.losses.cross_entropy import at_label

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


def test_weighted_mean_ignores_the_scale_of_the_weights():
  per_example = losses.cross_entropy(LOGITS, LABELS)
  weights = losses.inverse_frequency(COUNTS)[LABELS]
  expected = (weights * per_example).sum() / weights.sum()
  np.testing.assert_allclose(losses.weighted_mean(per_example, weights), expected, rtol=1e-6)
  np.testing.assert_allclose(losses.weighted_mean(per_example, 7 * weights), expected, rtol=1e-6)
  np.testing.assert_allclose(losses.weighted_mean(per_example, jnp.ones(8)), losses.mean(per_example), rtol=1e-6)


def test_precise_cross_entropy_of_large_logits():
  logits = 1e4 + jnp.array([[0.0, -3.0], [0.0, -9.0]])
  np.testing.assert_allclose(losses.cross_entropy(logits, jnp.array([0, 1])),
                             [np.log1p(np.exp(-3.0)), 9 + np.log1p(np.exp(-9.0))], rtol=1e-6)


def test_logit_adjustment_with_tau_zero_changes_nothing_but_a_constant():
  adjusted = losses.logit_adjustment(LOGITS, LABELS, COUNTS, tau=0.0, epsilon=0.0)
  np.testing.assert_array_equal(adjusted, LOGITS)
  balanced = losses.logit_adjustment(LOGITS, LABELS, COUNTS) - LOGITS - jnp.log(jnp.asarray(COUNTS))
  np.testing.assert_allclose(balanced, np.full((8, 5), -np.log(COUNTS.sum())), rtol=1e-6)


def test_adjustments_without_strength_or_with_equal_counts_are_plain():
  equal = np.full(5, 7)
  for adjusted in (
      losses.fbl(LOGITS, LABELS, COUNTS, features=LOGITS, alpha=0.0),
      losses.fbl(LOGITS, LABELS, equal, features=LOGITS, alpha=60.0),
      losses.seesaw(LOGITS, LABELS, COUNTS, p=0.0, q=0.0),
      losses.softmax_equalization(LOGITS, LABELS, COUNTS, mask=jnp.zeros((8, 5), bool)),
      losses.softmax_equalization(LOGITS, LABELS, COUNTS, key=jax.random.key(0), keep=0.0)):
    np.testing.assert_array_equal(adjusted, LOGITS)
  np.testing.assert_array_equal(losses.ldam(COSINES, LABELS, COUNTS, max_margin=0.0), 30 * COSINES)
  np.testing.assert_array_equal(losses.kps(COSINES, LABELS, equal, max_margin=0.0, adjust=1.0), 15 * COSINES)
  np.testing.assert_allclose(losses.arcface(COSINES, LABELS, margin=0.0), 30 * COSINES, rtol=1e-6)


def test_seesaw_multiplies_the_softmax_by_its_two_factors():
  s = np.asarray(jax.nn.softmax(LOGITS), np.float64)
  own = s[np.arange(8), LABELS][:, None]
  ratio = COUNTS[None] / COUNTS[np.asarray(LABELS)][:, None]
  factors = np.minimum(ratio, 1) ** 0.8 * np.maximum(s / np.maximum(own, 0.01), 1) ** 2
  factors[np.arange(8), LABELS] = 1
  terms = factors * np.exp(np.asarray(LOGITS, np.float64))
  expected = -np.log(terms[np.arange(8), LABELS] / terms.sum(axis=1))
  found = losses.cross_entropy(losses.seesaw(LOGITS, LABELS, COUNTS), LABELS)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_seesaw_has_the_gradient_of_constant_factors():
  adjusted, pull = jax.vjp(lambda z: losses.seesaw(z, LABELS, COUNTS), LOGITS)
  np.testing.assert_array_equal(pull(adjusted)[0], adjusted)


def test_softmax_equalization_draws_its_mask_and_never_leaves_the_label_out():
  counts = np.array([1000, 1, 1000, 1, 1])
  key = jax.random.key(3)
  drawn = losses.softmax_equalization(LOGITS, LABELS, counts, key=key, keep=0.5)
  mask = jax.random.bernoulli(key, 0.5, (8, 5))
  np.testing.assert_array_equal(drawn, losses.softmax_equalization(LOGITS, LABELS, counts, mask=mask))
  every = losses.softmax_equalization(LOGITS, LABELS, counts, mask=jnp.ones((8, 5)))
  stays = np.isin(np.arange(5), [0, 2])[None] | (np.arange(5) == np.asarray(LABELS)[:, None])
  np.testing.assert_array_equal(every == LOGITS, stays)
  np.testing.assert_array_equal(jax.nn.softmax(every) > 0, stays)
  for arguments in ({}, dict(key=key, mask=mask)):
    with pytest.raises(ConfigError, match="exactly one"):
      losses.softmax_equalization(LOGITS, LABELS, counts, **arguments)


def test_kps_with_adjustment_grows_the_scale_with_rarity():
  plain = losses.kps(COSINES, LABELS, COUNTS)
  half, full = (losses.kps(COSINES, LABELS, COUNTS, adjust=a) for a in (0.5, 1.0))
  factor = full[:, 0] / plain[:, 0]
  rarity = (np.log(COUNTS.max() / COUNTS) / np.log(50) + 1)[np.asarray(LABELS)]
  np.testing.assert_allclose(factor, rarity, rtol=1e-5)
  np.testing.assert_allclose(half, (plain + full) / 2, rtol=1e-5, atol=1e-6)


def test_released_kps_needs_its_order_and_stops_at_fifty():
  with pytest.raises(DataError, match="class 1 has more than class 0"):
    losses.kps(COSINES, LABELS, COUNTS, flip=True)
  ones = jnp.ones((1, 5))
  falling = np.array([10**6, 10**4, 100, 10, 1])
  capped = losses.kps(ones, jnp.array([4]), falling, adjust=1.0, scale=20.0, max_margin=0.0, flip=True)
  np.testing.assert_allclose(capped[0, 4], 50, rtol=1e-6)
  assert losses.kps(ones, jnp.array([4]), falling, adjust=1.0, scale=20.0, max_margin=0.0)[0, 4] > 80


def test_kps_angular_never_grows_with_the_angle():
  angles = jnp.linspace(0.01, jnp.pi - 0.01, 200)
  cosines = jnp.stack([jnp.cos(angles), jnp.zeros(200)], axis=1)
  for max_angle in (0.0, 0.2, 3.0):
    label = losses.kps_angular(cosines, jnp.zeros(200, int), np.array([1, 100]), max_angle=max_angle, max_margin=0.1)
    assert (np.diff(label[:, 0]) < 0).all()


def test_arcface_falls_back_if_the_angle_leaves_the_half_circle():
  cosines = jnp.cos(jnp.array([[1.0, 2.0], [3.0, 2.0]]))
  labels = jnp.array([0, 0])
  plain, other = (losses.arcface(cosines, labels, margin=0.5, scale=1.0, fallback=f) for f in (False, True))
  np.testing.assert_allclose(plain[:, 0], np.cos([1.5, 3.5]), rtol=1e-5)
  np.testing.assert_allclose(other[:, 0], [np.cos(1.5), np.cos(3.0) - 0.5 * np.sin(0.5)], rtol=1e-5)
  np.testing.assert_array_equal(plain[:, 1], cosines[:, 1])


def test_class_balanced_focal_with_gamma_zero_is_the_sum_of_binary_cross_entropies():
  target = jax.nn.one_hot(LABELS, 5)
  binary = -(target * jax.nn.log_sigmoid(LOGITS) + (1 - target) * jax.nn.log_sigmoid(-LOGITS)).sum(axis=1)
  np.testing.assert_allclose(losses.class_balanced_focal(LOGITS, LABELS, gamma=0.0), binary, rtol=1e-5)
  np.testing.assert_allclose(losses.sigmoid_equalization(LOGITS, LABELS, COUNTS, threshold=0.0), binary, rtol=1e-5)


def test_label_aware_smoothing_between_equal_ends_is_label_smoothing():
  for shape in ("concave", "linear", "convex", "exp"):
    found = losses.label_aware_smoothing(LOGITS, LABELS, COUNTS, head=0.2, tail=0.2, shape=shape)
    np.testing.assert_allclose(found, losses.cross_entropy(LOGITS, LABELS, label_smoothing=0.2), rtol=1e-5)
  equal = losses.label_aware_smoothing(LOGITS, LABELS, np.full(5, 3), head=0.2, tail=0.0)
  np.testing.assert_allclose(equal, losses.cross_entropy(LOGITS, LABELS, label_smoothing=0.2), rtol=1e-5)
  with pytest.raises(ConfigError, match="concave"):
    losses.label_aware_smoothing(LOGITS, LABELS, COUNTS, head=0.2, tail=0.0, shape="round")


def test_fbl_pulls_the_features_of_rare_classes_outwards():
  features = jnp.ones((2, 4))
  labels = jnp.array([4, 1])

  def objective(features):
    logits = losses.fbl(jnp.zeros((2, 5)), labels, COUNTS, features=features, alpha=1.0)
    return losses.cross_entropy(logits, labels).sum()

  slope = jax.grad(objective)(features)
  assert (slope[0] < 0).all()
  assert (slope[1] > 0).all()


def test_prior_lade_is_the_sum_of_its_parts():
  parts = losses.prior_lade(LOGITS, LABELS, COUNTS, weight=0.0) + 0.1 * losses.lade(LOGITS, LABELS, COUNTS)
  np.testing.assert_allclose(losses.prior_lade(LOGITS, LABELS, COUNTS), parts, rtol=1e-6)


def test_arcface_has_the_derivatives_of_autodiff_in_both_modes():
  def plain(cosines, margin):
    turned = cosines * jnp.cos(margin) - jnp.sqrt(jnp.maximum(1 - cosines**2, 1e-7)) * jnp.sin(margin)
    return 30 * jnp.where(LABELS[:, None] == jnp.arange(5), turned, cosines)

  def ours(cosines, margin):
    return losses.arcface(cosines, LABELS, margin=margin)

  at, by = (COSINES, jnp.float32(0.4)), (jnp.cos(COSINES), jnp.float32(0.7))
  for found, expected in zip(jax.jvp(ours, at, by), jax.jvp(plain, at, by), strict=True):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)

  def curvature(f):
    return jax.grad(lambda x: (jax.grad(lambda x: (f(x, 0.4) ** 2).sum())(x) * by[0]).sum())(COSINES)

  np.testing.assert_allclose(curvature(ours), curvature(plain), rtol=1e-3, atol=1e-3)
  slopes = [jax.grad(lambda m, f=f: (f(COSINES, m) * by[0]).sum())(0.4) for f in (ours, plain)]
  np.testing.assert_allclose(*slopes, rtol=1e-4)


@pytest.mark.parametrize("margin", [0.0, 1.5])
def test_gcl_angular_has_the_derivatives_of_autodiff_in_both_modes(margin):
  noise = jnp.asarray(np.random.RandomState(2).randn(8, 5), jnp.float32)

  def plain(cosines, amount):
    delta = jnp.log(COUNTS.max() / COUNTS) / np.log(COUNTS.max() / COUNTS.min())
    t = jnp.pi / 2 * amount * delta * jnp.abs(jnp.clip(noise, -1, 1))
    t = t + jnp.where(LABELS[:, None] == jnp.arange(5), margin, 0)
    turned = cosines * jnp.cos(t) - jnp.sqrt(1 - cosines**2) * jnp.sin(t)
    return 30 * jnp.where(cosines > -jnp.cos(t), turned, cosines - jnp.sin(t))

  def ours(cosines, amount):
    return losses.gcl_angular(cosines, LABELS, COUNTS, noise=noise, margin=margin, noise_scale=amount)

  at, by = (COSINES, jnp.float32(0.9)), (jnp.cos(COSINES), jnp.float32(0.7))
  for found, expected in zip(jax.jvp(ours, at, by), jax.jvp(plain, at, by), strict=True):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-4)
  grads = [jax.grad(lambda x, a, f=f: (f(x, a) * by[0]).sum(), argnums=(0, 1))(*at) for f in (ours, plain)]
  for found, expected in zip(*grads, strict=True):
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_sine_and_cosine_of_the_angular_losses_are_those_of_numpy():
  angles = np.linspace(0, np.pi, 1001)
  for dtype, atol in ((np.float32, 1e-6), (np.float64, 1e-14)):
    with jax.enable_x64(dtype == np.float64):
      found = angular._sine_and_cosine(jnp.asarray(angles, dtype))
      for ours, exact in zip(found, (np.sin(angles), np.cos(angles)), strict=True):
        assert ours.dtype == dtype
        np.testing.assert_allclose(ours, exact, rtol=0, atol=atol)


def test_the_entry_at_the_label_has_the_gradient_of_a_gather():
  def plain(x):
    return x[jnp.arange(8), LABELS]

  slopes = jnp.arange(1.0, 9)
  gradients = [jax.grad(lambda x, f=f: (f(x) * slopes).sum())(LOGITS)
               for f in (plain, lambda x: at_label(x, LABELS))]
  np.testing.assert_array_equal(*gradients)
  found = jax.jvp(lambda x: at_label(x, LABELS), (LOGITS,), (jnp.cos(LOGITS),))
  np.testing.assert_array_equal(found[1], plain(jnp.cos(LOGITS)))
