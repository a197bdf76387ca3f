"""Generated features: how many, of which class, from which rows."""

import collections
import fractions
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltjax.augment import features
from ltjax.errors import ConfigError
from tests import goldens


def exact_counts(labels, num_classes: int, gamma=1, alpha: int = 4) -> list[int]:
  frequency = collections.Counter(np.asarray(labels).tolist())
  weights = {label: fractions.Fraction(1, f**alpha) for label, f in frequency.items()}
  share = {label: fractions.Fraction(gamma) * len(labels) * w / sum(weights.values()) for label, w in weights.items()}
  return [math.ceil(share[label]) if label in share else 0 for label in range(num_classes)]


@pytest.fixture(scope="module")
def counts_of():
  """`generated_counts` compiled once for each shape."""
  return jax.jit(features.generated_counts, static_argnums=1, static_argnames=("gamma", "alpha"))


def batches(number: int):
  """(labels, c) of random batches, balanced and long-tailed, with fewer and with more classes than rows."""
  rng = np.random.default_rng(0)
  for _ in range(number):
    c, b = (int(rng.choice(sizes)) for sizes in ((2, 10, 100), (16, 32, 128, 256)))
    share = rng.choice([1.0, 10.0, 100.0]) ** -np.linspace(0, 1, c)
    yield rng.choice(c, b, p=rng.permutation(share / share.sum())), c


def test_counts_are_exact_and_fit_the_bound(counts_of):
  for labels, c in batches(1000):
    expected = exact_counts(labels, c)
    assert np.asarray(counts_of(labels, c)).tolist() == expected, labels.tolist()
    assert sum(expected) <= features.generation_bound(len(labels), c)


@pytest.mark.parametrize(("gamma", "alpha"), [(0.5, 4), (2, 1), (0.25, 0), (1.5, 2)])
def test_counts_with_other_factors(counts_of, gamma, alpha):
  for labels, c in batches(100):
    found = np.asarray(counts_of(labels, c, gamma=gamma, alpha=alpha))
    assert found.tolist() == exact_counts(labels, c, gamma, alpha)
    assert found.sum() <= features.generation_bound(len(labels), c, gamma=gamma)


@pytest.mark.parametrize(("sizes", "counts"), [
    ((16,), [16]), ((5, 5, 5), [5, 5, 5]), ((4, 4, 4, 4), [4, 4, 4, 4]), ((1, 127), [128, 1]), ((2, 1), [1, 3])])
def test_counts_by_hand(sizes, counts):
  labels = np.repeat(np.arange(len(sizes)), sizes)
  assert features.generated_counts(labels, len(sizes) + 1).tolist() == [*counts, 0]


def partitions(number: int, most: int):
  """The ways to write `number` as a sum of at most `most` numbers, from large to small."""
  def grow(left, limit, parts):
    if not left:
      yield parts
    elif len(parts) < most:
      for first in range(min(left, limit), 0, -1):
        yield from grow(left - first, first, [*parts, first])
  return grow(number, number, [])


@pytest.mark.parametrize(("b", "c"), [(8, 2), (16, 3), (16, 5), (24, 4)])
def test_the_bound_is_attained(b, c):
  most = max(sum(exact_counts(np.repeat(np.arange(len(sizes)), sizes), c)) for sizes in partitions(b, c))
  assert most == features.generation_bound(b, c) == b + c - 1


def test_bounds_of_the_paper():
  assert [features.generation_bound(*of) for of in ((32, 10), (128, 10), (128, 100), (256, 1000))] == [
      41, 137, 227, 511]
  assert features.generation_bound(10, 4, gamma=0.25) == 3 + 3


@goldens.parametrize("paper_afa_generation")
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_golden(case, hyper, inputs, outputs, precision):
  labels, c = inputs["labels"], len(outputs["G"])
  with jax.enable_x64(precision == "float64"):
    parts = [jnp.asarray(inputs[name], precision) for name in ("x_class", "x_var")]
    found = features.generated_counts(labels, c, gamma=hyper["gamma"], alpha=hyper["alpha"])
    drawn = features.plan(jnp.asarray(labels), key=jax.random.key(0), num_classes=c)
    total = int(outputs["total"])
    pad = ((0, hyper["bound"] - total),)
    made = features.combine(*parts, drawn._replace(
        class_rows=np.pad(inputs["i"], pad), variation_rows=np.pad(inputs["j"], pad)))
    np.testing.assert_array_equal(found, outputs["G"])
    assert len(drawn.valid) == hyper["bound"] == features.generation_bound(len(labels), c)
    np.testing.assert_array_equal(drawn.valid, np.arange(hyper["bound"]) < total)
    np.testing.assert_array_equal(drawn.labels[:total], outputs["slot_class"])
    assert made.dtype == precision
    np.testing.assert_allclose(made[:total], outputs["gen"], rtol=1e-9 if precision == "float64" else 1e-6, atol=1e-7)
    assert not made[total:].any()


@pytest.fixture(scope="module")
def drawn():
  """(labels, 300 plans of this one batch)."""
  labels = np.array([3, 0, 0, 7, 0, 3, 0, 0, 0, 3, 0, 0])
  make = jax.jit(jax.vmap(lambda key: features.plan(labels, key=key, num_classes=9, alpha=1.0)))
  return labels, jax.device_get(make(jax.random.split(jax.random.key(0), 300)))


def test_the_parts_come_from_rows_of_the_class_and_from_any_other_row(drawn):
  labels, plans = drawn
  valid = plans.valid
  assert (labels[plans.class_rows] == plans.labels)[valid].all()
  assert (plans.class_rows != plans.variation_rows).all()
  assert ((plans.variation_rows >= 0) & (plans.variation_rows < len(labels))).all()
  expected = [label for label in (3, 0, 7) for _ in range(exact_counts(labels, 9, alpha=1)[label])]
  assert all(row[mask].tolist() == expected for row, mask in zip(plans.labels, valid, strict=True))


def test_the_draws_are_uniform(drawn):
  labels, plans = drawn
  for label in (0, 3):
    rows = plans.class_rows[plans.valid & (plans.labels == label)]
    shares = np.bincount(rows, minlength=len(labels)) / len(rows)
    np.testing.assert_allclose(shares[labels == label], 1 / (labels == label).sum(), atol=5 / len(rows) ** 0.5)
  steps = (plans.variation_rows - plans.class_rows) % len(labels)
  shares = np.bincount(steps.ravel(), minlength=len(labels)) / steps.size
  np.testing.assert_allclose(shares[1:], 1 / (len(labels) - 1), atol=5 / steps.size**0.5)


def _maps(seed=0, rows=12):
  rng = np.random.default_rng(seed)
  return [jnp.asarray(rng.normal(size=(rows, 2, 3, 4)), jnp.float32) for _ in range(2)]


LABELS = jnp.array([0, 1, 1, 0, 2, 0, 0, 1, 0, 0, 0, 0])


def test_jit_equals_eager_and_the_key_decides():
  def made(key):
    return features.generate(*_maps(), LABELS, key=key, num_classes=4)

  eager, jitted, other = made(jax.random.key(0)), jax.jit(made)(jax.random.key(0)), made(jax.random.key(1))
  for one, two in zip(eager, jitted, strict=True):
    np.testing.assert_array_equal(one, two)
  assert eager[0].shape == (features.generation_bound(12, 4), 2, 3, 4) and (eager[0] != other[0]).any()
  np.testing.assert_array_equal(eager[1], other[1])


def test_a_permutation_of_the_classes_permutes_the_counts():
  order = np.array([2, 3, 0, 1])
  found, permuted = (np.asarray(features.generated_counts(labels, 4)) for labels in (LABELS, order[LABELS]))
  np.testing.assert_array_equal(permuted[order], found)


def test_slots_that_are_not_valid_carry_nothing():
  """Their rows are poisoned: NaN reaches neither the value nor the gradient."""
  maps = [jnp.concatenate([part, jnp.full_like(part[:1], jnp.nan)]) for part in _maps()]
  plan = features.plan(LABELS, key=jax.random.key(0), num_classes=4)
  assert 0 < plan.valid.sum() < len(plan.valid)
  poisoned = plan._replace(class_rows=jnp.where(plan.valid, plan.class_rows, 12),
                           variation_rows=jnp.where(plan.valid, plan.variation_rows, 12))

  def value(parts, plan):
    return jnp.sum(jnp.sin(features.combine(*parts, plan)))

  clean, found = (jax.value_and_grad(value)(maps, of) for of in (plan, poisoned))
  assert np.isfinite(found[0])
  np.testing.assert_array_equal(found[0], clean[0])
  for one, two in zip(found[1], clean[1], strict=True):
    np.testing.assert_array_equal(one, two)
    assert np.isfinite(one).all() and one.any()


@pytest.mark.parametrize(("call", "message"), [
    (lambda: features.generated_counts(LABELS, 4, gamma=0.0), "gamma must be in"),
    (lambda: features.generated_counts(LABELS, 4, alpha=-1.0), "alpha must be in"),
    (lambda: features.generation_bound(8, 4, gamma=-1.0), "gamma must be in"),
    (lambda: features.plan(LABELS[:1], key=jax.random.key(0), num_classes=4), "at least 2, got 1"),
])
def test_senseless_arguments_are_refused(call, message):
  with pytest.raises(ConfigError, match=message):
    call()
