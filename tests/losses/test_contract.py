"""One contract over every function that ltjax.losses exports. A new function needs one row in ROWS."""

import doctest
import inspect
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltjax import losses
from ltjax.errors import DataError

B, C = 6, 5


class Row(NamedTuple):
  function: str
  arrays: str  # argument names, the first one is differentiated; "name=kind" where the kind of array differs
  out: str  # axes of the result
  scalars: dict = {}  # numbers that a schedule may move
  static: dict = {}  # arguments that choose the graph
  permutes: bool = True  # False where a permutation of the classes cannot be carried through


ROWS = [
  Row("cross_entropy", "logits labels", "b", {"label_smoothing": 0.1}),
  Row("cross_entropy", "logits labels=probabilities", "b", {"label_smoothing": 0.0}),
  Row("focal", "logits labels", "b", {"gamma": 1.0}, {"detach": False}),
  Row("focal", "logits labels", "b", {"gamma": 0.5}, {"detach": False}),
  Row("focal", "logits labels", "b", {"gamma": 2.0}, {"detach": True}),
  *(Row("gcl", "cosines labels class_counts noise", "bc", {"scale": 30.0, "margin": 0.1, "noise_scale": 0.5},
        {"cloud_size": name}) for name in ("log", "cosine", "power_1_3", "power_1_4")),
  Row("gcl", "cosines labels class_counts key", "bc", {"scale": 30.0, "margin": 0.0, "noise_scale": 1.0},
      permutes=False),
  Row("effective_number", "class_counts", "c", {"beta": 0.9}),
  Row("inverse_frequency", "class_counts", "c"),
  Row("mean", "losses", ""),
  Row("weighted_mean", "losses weights", ""),
]
CLASS_AXIS = {"logits": 1, "probabilities": 1, "cosines": 1, "noise": 1, "class_counts": 0}
every_row = pytest.mark.parametrize("row", ROWS, ids=[f"{i}-{row.function}" for i, row in enumerate(ROWS)])


def kinds(row):
  return {name: kind or name for name, _, kind in (entry.partition("=") for entry in row.arrays.split())}


def example(kind, seed, extreme):
  rng = np.random.RandomState(seed)
  sign = rng.choice([-1.0, 1.0], (B, C))
  # The label alone on top, so that the cross entropy is exactly zero, and alone at the bottom.
  sign[0], sign[1] = -1, 1
  labels = rng.randint(0, C, B)
  sign[[0, 1], labels[:2]] = 1, -1
  shares = rng.dirichlet(np.ones(C), B)
  made = {
    "logits": 100 * sign if extreme else 3 * rng.randn(B, C),
    "cosines": sign if extreme else rng.uniform(-1, 1, (B, C)),
    "labels": labels,
    "probabilities": np.eye(C)[labels] if extreme else shares,
    "class_counts": np.ones(C, np.int64) if extreme else rng.permutation([1, 1000000, 7, 50, 1]),
    "noise": 5 * sign if extreme else rng.randn(B, C) / 3,
    "losses": 100 * (np.arange(B) % 2) if extreme else rng.uniform(0, 3, B),
    "weights": rng.uniform(0.1, 2, B),
    "key": jax.random.key(seed),
  }[kind]
  if kind == "key":
    return made
  return jnp.asarray(made, jnp.int32 if kind in ("labels", "class_counts") else jnp.float32)


def examples(row, seed=0, extreme=False):
  return {name: example(kind, seed, extreme) for name, kind in kinds(row).items()}


def call(row, arrays, scalars=None):
  scalars = row.scalars if scalars is None else scalars
  return getattr(losses, row.function)(**arrays, **scalars, **row.static)


def traced(row, factor=1.0):
  return {name: jnp.float32(value * factor) for name, value in row.scalars.items()}


def gradient(row, arrays):
  first, *_ = arrays
  shape = jax.eval_shape(lambda: call(row, arrays)).shape
  cotangent = jnp.asarray(np.random.RandomState(9).randn(*shape), jnp.float32)
  return jax.grad(lambda x: jnp.sum(cotangent * call(row, arrays | {first: x})))(arrays[first].astype(jnp.float32))


def test_the_table_covers_every_function_and_argument():
  covered = {}
  for row in ROWS:
    covered.setdefault(row.function, set()).update(kinds(row), row.scalars, row.static)
  exported = {name: set(inspect.signature(getattr(losses, name)).parameters) for name in losses.__all__}
  assert covered == exported


@pytest.mark.parametrize("name", losses.__all__)
def test_signature_and_docstring(name):
  function = getattr(losses, name)
  parameters = inspect.signature(function).parameters.values()
  assert all((p.default is p.empty) or p.kind is p.KEYWORD_ONLY for p in parameters)
  assert not any(p.kind is p.VAR_KEYWORD for p in parameters)
  assert all(part in function.__doc__ for part in ("Args:", "Returns:", "References:", ">>> "))
  space = vars(inspect.getmodule(function))
  (found,) = doctest.DocTestFinder(recurse=False).find(function, globs=space)
  assert doctest.DocTestRunner().run(found).failed == 0


@every_row
@pytest.mark.parametrize("extreme", [False, True])
def test_shape_dtype_and_finite_value_and_gradient(row, extreme):
  arrays = examples(row, extreme=extreme)
  result = call(row, arrays)
  assert result.shape == tuple({"b": B, "c": C}[axis] for axis in row.out)
  assert result.dtype == jnp.float32
  assert np.isfinite(result).all()
  assert np.isfinite(gradient(row, arrays)).all()


@every_row
def test_jit_equals_eager_and_compiles_once(row):
  traces = []

  @jax.jit
  def compiled(arrays, scalars):
    traces.append(1)
    return call(row, arrays, scalars)

  np.testing.assert_allclose(compiled(examples(row), traced(row)), call(row, examples(row)), rtol=2e-5, atol=1e-6)
  changed = compiled(examples(row, seed=1), traced(row, 0.5))
  expected = call(row, examples(row, seed=1), {name: value * 0.5 for name, value in row.scalars.items()})
  np.testing.assert_allclose(changed, expected, rtol=2e-5, atol=1e-6)
  assert len(traces) == 1


@every_row
def test_vmap_equals_a_loop(row):
  both = [examples(row, seed) for seed in (0, 1)]
  stacked = {name: jnp.stack([arrays[name] for arrays in both]) for name in both[0]}
  np.testing.assert_allclose(jax.vmap(lambda arrays: call(row, arrays))(stacked),
                             jnp.stack([call(row, arrays) for arrays in both]), rtol=2e-5, atol=1e-6)


@every_row
def test_the_order_of_the_classes_does_not_matter(row):
  if not row.permutes:
    pytest.skip("the noise of a key does not move with the classes")
  order = np.array([3, 0, 4, 1, 2])
  arrays = examples(row)
  moved = {name: jnp.take(arrays[name], order, axis=CLASS_AXIS[kind]) if kind in CLASS_AXIS else arrays[name]
           for name, kind in kinds(row).items()}
  if kinds(row).get("labels") == "labels":
    moved["labels"] = np.argsort(order)[arrays["labels"]]
  result = call(row, arrays)
  expected = jnp.take(result, order, axis=row.out.index("c")) if "c" in row.out else result
  np.testing.assert_allclose(call(row, moved), expected, rtol=2e-5, atol=1e-6)


@every_row
def test_bfloat16_inputs_are_promoted_before_the_mathematics(row):
  arrays = examples(row)
  floats = [name for name in arrays if jnp.issubdtype(arrays[name].dtype, jnp.floating)]
  low = arrays | {name: arrays[name].astype(jnp.bfloat16) for name in floats}
  same = arrays | {name: low[name].astype(jnp.float32) for name in floats}
  assert call(row, low).dtype == jnp.float32
  np.testing.assert_array_equal(call(row, low), call(row, same))


@pytest.mark.parametrize("row", [row for row in ROWS if "class_counts" in row.arrays], ids=lambda row: row.function)
def test_class_counts_of_any_kind_and_an_empty_class_by_name(row):
  arrays = examples(row)
  counts = np.asarray(arrays["class_counts"])
  for given in (counts.astype(np.int64), counts.astype(np.float64), jnp.asarray(counts, jnp.float32)):
    np.testing.assert_array_equal(call(row, arrays | {"class_counts": given}), call(row, arrays))
  counts = counts.copy()
  counts[3] = 0
  with pytest.raises(DataError, match="class 3 has 0"):
    call(row, arrays | {"class_counts": counts})
