"""Numerical safety: finite values and gradients of every loss at the ends of its arguments' ranges."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltjax import losses
from tests.losses.test_contract import ROWS, B, C, kinds, traced

LABELS = {"mixed": [0, 1, 2, 3, 4, 0], **{f"all {c}": [c] * B for c in (0, 1, 4)}}
COUNTS = {
  "falling": [10**6, 50, 7, 1, 1], "rising": [1, 7, 50, 10**4, 10**6], "all 1": [1] * C, "all 10^6": [10**6] * C,
  "almost equal": [10**6, 10**6 - 1, 10**6, 10**6 - 1, 10**6], "one rare": [10**6] * 4 + [1],
}
BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))
DIRECTIONS = {  # of logits times 1e4, of cosines times 1
  "zero": lambda label, rng: np.zeros((B, C)),
  "all up": lambda label, rng: np.ones((B, C)),
  "all down": lambda label, rng: -np.ones((B, C)),
  "label up": lambda label, rng: 2.0 * label - 1,
  "label down": lambda label, rng: 1.0 - 2 * label,
  "label alone": lambda label, rng: 1.0 * label,
  "almost up": lambda label, rng: np.full((B, C), BELOW_ONE),
  "almost down": lambda label, rng: np.full((B, C), -BELOW_ONE),
  "between": lambda label, rng: rng.uniform(-1, 1, (B, C)),
}
FEATURES = {"zero": 0.0, "tiny": 1e-20, "at the clamp": 1e-12, "one": 1.0, "large": 1e4}
SCALARS = {"as usual": lambda scalars: scalars, "nothing": lambda scalars: {
  name: value if name in ("scale", "base", "temperature") else 0.0 * value for name, value in scalars.items()}}


@functools.cache
def extremes(dtype):
  """(names [n], {kind: array [n ...]}) of all combinations; tests with equal shapes compile each operation once."""
  rng, names, found = np.random.RandomState(0), [], []
  for (where, counts), (whose, labels), (which, direction), (length, size) in itertools.product(
      COUNTS.items(), LABELS.items(), DIRECTIONS.items(), FEATURES.items()):
    label = np.eye(C)[labels]
    directions = direction(label, rng)
    floats = dict(logits=1e4 * directions, cosines=directions, probabilities=label, features=np.full((B, 8), size),
                  noise=5 * directions, losses=np.abs(1e4 * directions[:, 0]), weights=np.float64([1, *counts]))
    integers = dict(labels=labels, class_counts=counts, falling_counts=sorted(counts, reverse=True),
                    seen_counts=np.where(np.equal(counts, 1), 0, counts), mask=np.ones((B, C)))
    names.append(f"counts {where}, labels {whose}, logits {which}, features {length}")
    found.append({kind: np.asarray(array, dtype) for kind, array in floats.items()} |
                 {kind: np.asarray(array, np.int32) for kind, array in integers.items()})
  return names, jax.tree.map(lambda *arrays: np.stack(arrays), *found)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("row", ROWS, ids=[f"{i}-{row.function}" for i, row in enumerate(ROWS)])
def test_finite_values_and_gradients_at_the_extremes(row, dtype):
  names, made = extremes(dtype)
  arrays = {name: made[kind] for name, kind in kinds(row).items() if kind != "key"}
  key = {"key": jax.random.key(0)} if "key" in kinds(row) else {}
  moved = [name for name, kind in kinds(row).items() if kind in ("logits", "cosines", "features", "losses")]

  def finite(arrays, scalars):
    def loss(floats):
      result = getattr(losses, row.function)(**arrays | floats | key, **scalars, **row.static)
      if row.out == "bc":
        result = losses.cross_entropy(result, arrays["labels"])
      return jnp.mean(result)

    found = jax.value_and_grad(loss)({name: arrays[name] for name in moved})
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(found)]).all()

  for which, scalars in SCALARS.items():
    good = jax.vmap(finite, in_axes=(0, None))(arrays, scalars(traced(row)))
    assert good.shape == (len(names),)
    assert not [f"{name}, scalars {which}" for name, ok in zip(names, good.tolist(), strict=True) if not ok]
