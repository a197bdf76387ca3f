"""One contract for every function that ltjax.losses exports. A new function needs one row in ROWS."""

import doctest
import inspect
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from ltjax import losses
from ltjax.errors import DataError
from ltjax.losses.arguments import intervals

B, C = 6, 5


class Row(NamedTuple):
  function: str
  arrays: str  # argument names, the first one is differentiated; "name=kind" where the kind of array differs
  out: str  # axes of the result
  scalars: dict = {}  # numbers that a schedule may move
  static: dict = {}  # arguments that choose the graph
  permutes: bool = True  # False where a permutation of the classes cannot be carried through


SMOOTHING = {"head": 0.4, "tail": 0.1}
KPS = {"max_margin": 0.2, "base": 50.0, "scale": 15.0, "adjust": 0.5}
ANGLES = {"max_angle": 0.2, "angle_power": 1.0}
CLOUDS = {"scale": 30.0, "margin": 0.1, "noise_scale": 0.5}
ROWS = [
  Row("cross_entropy", "logits labels", "b", {"label_smoothing": 0.1}),
  Row("cross_entropy", "logits labels=probabilities", "b", {"label_smoothing": 0.0}),
  Row("focal", "logits labels", "b", {"gamma": 1.0}, {"detach": False}),
  Row("focal", "logits labels", "b", {"gamma": 0.5}, {"detach": False}),
  Row("focal", "logits labels", "b", {"gamma": 2.0}, {"detach": True}),
  Row("class_balanced_focal", "logits labels", "b", {"gamma": 1.0}),
  Row("class_balanced_focal", "logits labels", "b", {"gamma": 0.5}),
  Row("sigmoid_equalization", "logits labels class_counts", "b", {"threshold": 0.00177}),
  *(Row("label_aware_smoothing", "logits labels class_counts", "b", SMOOTHING, {"shape": shape, "power": 2.0})
    for shape in ("concave", "linear", "convex", "exp")),
  Row("lade", "logits labels class_counts", "b", {"remine": 0.1}),
  Row("prior_lade", "logits labels class_counts", "b", {"weight": 0.1, "remine": 0.1}),
  *(Row("discriminative_centroids", arrays, "b", {"weight": 0.5, "repulsion": 0.2, "margin": 2.0})
    for arrays in ("logits labels features=noise", "features=noise logits labels")),
  *(Row("hybrid_contrastive", arrays, "b", {"share": 0.75, "temperature": 0.5})
    for arrays in ("logits labels features", "features logits labels")),
  Row("logit_adjustment", "logits labels class_counts", "bc", {"tau": 1.0}, {"epsilon": 1e-12}),
  Row("logit_adjustment", "logits labels class_counts", "bc", {"tau": 2.0}, {"epsilon": 0.0}),
  Row("fbl", "logits labels class_counts features", "bc", {"alpha": 60.0}, {"normalize": True}),
  Row("fbl", "features logits labels class_counts", "bc", {"alpha": 1.0}, {"normalize": False}),
  Row("softmax_equalization", "logits labels class_counts mask", "bc", {"threshold": 0.005, "keep": 0.9}),
  Row("softmax_equalization", "logits labels class_counts key", "bc", {"threshold": 0.005, "keep": 0.9},
      permutes=False),
  Row("seesaw", "logits labels seen_counts", "bc", {"p": 0.8, "q": 2.0}),
  Row("ldam", "cosines labels class_counts", "bc", {"max_margin": 0.5, "scale": 30.0}),
  Row("cosface", "cosines labels", "bc", {"margin": 0.35, "scale": 30.0}),
  *(Row("arcface", "cosines labels", "bc", {"margin": 0.5, "scale": 30.0},
        {"fallback": fallback, "straight_through": straight}) for fallback in (False, True)
    for straight in (False, True)),
  Row("kps", "cosines labels class_counts", "bc", KPS, {"flip": False}),
  Row("kps", "cosines labels class_counts=falling_counts", "bc", KPS, {"flip": True}, permutes=False),
  Row("kps_angular", "cosines labels class_counts", "bc", KPS | ANGLES),
  *(Row("gcl", "cosines labels class_counts noise", "bc", CLOUDS, {"cloud_size": name})
    for name in ("log", "cosine", "power_1_3", "power_1_4")),
  Row("gcl", "cosines labels class_counts key", "bc", CLOUDS | {"margin": 0.0, "noise_scale": 1.0}, permutes=False),
  Row("gcl_angular", "cosines labels class_counts noise", "bc", CLOUDS | {"noise_scale": 0.1}, {"cloud_size": "log"}),
  Row("gcl_angular", "cosines labels class_counts key", "bc", CLOUDS, permutes=False),
  Row("effective_number", "class_counts", "c", {"beta": 0.9}),
  Row("inverse_frequency", "class_counts", "c"),
  Row("mean", "losses", ""),
  Row("weighted_mean", "losses weights", ""),
]
CLASS_AXIS = {"logits": 1, "probabilities": 1, "cosines": 1, "noise": 1, "mask": 1, "class_counts": 0, "seen_counts": 0}
INTEGERS = ("labels", "class_counts", "falling_counts", "seen_counts", "mask")
every_row = pytest.mark.parametrize("row", ROWS, ids=[f"{i}-{row.function}" for i, row in enumerate(ROWS)])


def kinds(row):
  return {name: kind or name for name, _, kind in (entry.partition("=") for entry in row.arrays.split())}


every_row_with_counts = pytest.mark.parametrize(
    "row", [row for row in ROWS if "class_counts" in kinds(row)], ids=lambda row: row.function)


def example(kind, seed, extreme):
  rng = np.random.RandomState(seed)
  sign = rng.choice([-1.0, 1.0], (B, C))
  # The label alone on top, so that the cross entropy is exactly zero, and alone at the bottom.
  sign[0], sign[1] = -1, 1
  labels = rng.randint(0, C, B)
  sign[[0, 1], labels[:2]] = 1, -1
  shares = rng.dirichlet(np.ones(C), B)
  made = {
    "logits": 1e4 * sign if extreme else 3 * rng.randn(B, C),
    "cosines": sign if extreme else rng.uniform(-1, 1, (B, C)),
    "labels": np.zeros_like(labels) if extreme == "one class" else labels,
    "probabilities": np.eye(C)[labels] if extreme else shares,
    "class_counts": np.ones(C, np.int64) if extreme else rng.permutation([1, 1000000, 7, 50, 1]),
    "falling_counts": np.ones(C, np.int64) if extreme else np.array([1000000, 50, 7, 1, 1]),
    "seen_counts": np.zeros(C, np.int64) if extreme else rng.permutation([0, 1000000, 7, 50, 1]),
    "features": np.zeros((B, 8)) if extreme else rng.randn(B, 8),
    "mask": rng.randint(0, 2, (B, C)),
    "noise": 5 * sign if extreme else rng.randn(B, C) / 3,
    "losses": 100 * (np.arange(B) % 2) if extreme else rng.uniform(0, 3, B),
    "weights": rng.uniform(0.1, 2, B),
    "key": jax.random.key(seed),
  }[kind]
  if kind == "key":
    return made
  return jnp.asarray(made, jnp.int32 if kind in INTEGERS else jnp.float32)


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
  assert all(set(row.scalars) <= set(intervals(getattr(losses, row.function))) for row in ROWS)


@every_row
def test_lists_are_as_good_as_arrays(row):
  arrays = examples(row)
  lists = {name: array if kinds(row)[name] == "key" else array.tolist() for name, array in arrays.items()}
  np.testing.assert_array_equal(call(row, lists), call(row, arrays))


@every_row
def test_the_return_annotation_tells_the_kind_of_function(row):
  """A config finds adjustments, losses, class weights and reductions by it."""
  assert inspect.signature(getattr(losses, row.function)).return_annotation.dim_str == " ".join(row.out)


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
@pytest.mark.parametrize("extreme", [False, True, "one class"])
def test_shape_dtype_and_finite_value_and_gradient(row, extreme):
  arrays = examples(row, extreme=extreme)
  result = call(row, arrays)
  assert result.shape == tuple({"b": B, "c": C}[axis] for axis in row.out)
  assert result.dtype == jnp.float32
  assert np.isfinite(result).all()
  assert np.isfinite(gradient(row, arrays)).all()
  floats = [name for name in arrays if jnp.issubdtype(arrays[name].dtype, jnp.floating)]
  low = arrays | {name: arrays[name].astype(jnp.bfloat16) for name in floats}
  assert np.isfinite(call(row, low)).all()
  assert np.isfinite(gradient(row, low)).all()


@pytest.mark.parametrize("row", [row for row in ROWS if row.out == "bc"], ids=lambda row: row.function)
@pytest.mark.parametrize("extreme", [False, True, "one class"])
def test_the_cross_entropy_of_adjusted_logits_is_finite(row, extreme):
  arrays = examples(row, extreme=extreme)
  first, *_ = arrays

  def loss(x):
    return losses.mean(losses.cross_entropy(call(row, arrays | {first: x}), arrays["labels"]))

  value, slope = jax.value_and_grad(loss)(arrays[first])
  assert np.isfinite(value)
  assert np.isfinite(slope).all()


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


@every_row_with_counts
def test_class_counts_of_any_kind_and_an_empty_class_by_name(row):
  arrays = examples(row)
  counts = np.asarray(arrays["class_counts"])
  for given in (counts.astype(np.int64), counts.astype(np.float64), jnp.asarray(counts, jnp.float32)):
    np.testing.assert_array_equal(call(row, arrays | {"class_counts": given}), call(row, arrays))
  for bad in (0, -1):
    counts = counts.copy()
    counts[3] = bad
    with pytest.raises(DataError, match=f"class 3 has {bad}"):
      call(row, arrays | {"class_counts": counts})
  if "labels" in arrays:
    with pytest.raises(DataError, match="class_counts must be one number for each of the 5 classes"):
      call(row, arrays | {"class_counts": counts[:3]})


@every_row_with_counts
def test_a_traced_count_of_zero_is_harmless_where_no_label_is_of_that_class(row):
  arrays = examples(row)
  empty = 4 if "falling_counts" in kinds(row).values() else 3
  if "labels" in arrays:
    arrays["labels"] = jnp.where(arrays["labels"] == empty, 0, arrays["labels"])
  (counts_name,) = (name for name in arrays if name.endswith("counts"))
  others = np.delete(np.asarray(arrays[counts_name], np.float64), empty)
  by_prior = any(word in row.function for word in ("lade", "logit_adjustment", "equalization"))
  first, *_ = arrays

  def loss(x, counts, scalars):
    result = call(row, arrays | {first: x, counts_name: counts}, scalars)
    if row.out == "bc":
      result = losses.cross_entropy(result, arrays["labels"], label_smoothing=0.1)
    return jnp.sum(result), result

  @jax.jit
  def run(counts, scalars):
    if first == counts_name:
      return loss(counts, counts, scalars)
    return jax.value_and_grad(loss, has_aux=True)(arrays[first], counts, scalars)

  zero, stand_in = (jnp.asarray(np.insert(others, empty, count), jnp.float32)
                    for count in (0, 1e-30 * others.sum() if by_prior else others.min()))
  usual = traced(row)
  for scalars in (usual, {name: value if name in ("scale", "base") else 0 * value for name, value in usual.items()}):
    found, expected = (jax.tree.leaves(run(counts, scalars)) for counts in (zero, stand_in))
    assert all(np.isfinite(leaf).all() for leaf in found)
    for ours, theirs in zip(found, expected, strict=True):
      np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["ldam", "label_aware_smoothing"])
def test_debug_mode_names_a_label_of_a_class_without_images(name):
  row = next(row for row in ROWS if row.function == name)
  arrays = examples(row) | {"labels": jnp.arange(B) % C}

  def loss(counts):
    return jnp.sum(call(row, arrays | {"class_counts": counts}))

  counts = jnp.asarray(arrays["class_counts"], jnp.float32)
  zero = counts.at[C - 1].set(0)
  assert np.isfinite(jax.jit(lambda counts: loss(counts))(zero))  # JAX traces a function once, in either mode
  with jax.debug_nans(True):
    assert np.isfinite(jax.jit(loss)(counts))
    with pytest.raises(DataError, match=f"class_counts must be positive, but class {C - 1} has 0"):
      jax.jit(loss)(zero)  # JAX runs again, without jit, what gave NaN
    checked = jax.jit(checkify.checkify(loss, errors=checkify.nan_checks)).lower(counts).compile()
  assert checked(counts)[0].get() is None
  assert "nan generated by primitive" in checked(zero)[0].get()


@pytest.mark.parametrize("row", [row for row in ROWS if kinds(row).get("labels") == "labels"],
                         ids=lambda row: row.function)
def test_labels_out_of_range_are_named(row):
  if row.function in ("fbl", "logit_adjustment"):
    pytest.skip("does not use its labels")
  for bad in (-1, C):
    labels = np.asarray(examples(row)["labels"]).copy()
    labels[2] = bad
    for given in (labels, jnp.asarray(labels)):
      with pytest.raises(DataError, match=rf"labels must be in \[0, 5\), but label 2 is {bad}"):
        call(row, examples(row) | {"labels": given})
  for given in (np.zeros(B + 1, int), np.zeros(B)):
    with pytest.raises(DataError, match="labels must be"):
      call(row, examples(row) | {"labels": given})


def test_probabilities_that_do_not_sum_to_one():
  logits, shares = jnp.zeros((2, 3)), np.array([[0.2, 0.3, 0.5], [0.2, 0.3, 0.4]])
  with pytest.raises(DataError, match="sum to 1, but row 1 sums to 0.9"):
    losses.cross_entropy(logits, shares)
  with pytest.raises(DataError, match="row 0 sums to 1 and its smallest is -0.5"):
    losses.cross_entropy(logits, np.array([[1.5, -0.5, 0.0], [0.2, 0.3, 0.5]]))
  with pytest.raises(DataError, match="shape"):
    losses.cross_entropy(logits, np.ones((2, 2)) / 2)
