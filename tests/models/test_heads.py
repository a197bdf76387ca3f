"""One contract for every head, then golden values, identities and initial values."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltjax import losses
from ltjax.errors import ConfigError
from ltjax.models import heads
from tests import goldens

FLOAT32 = jnp.dtype("float32")
# A new head needs one row per form.
ROWS = [
  ("Linear", {}),
  ("Linear", {"rare_start": True}),
  ("Cosine", {}),
  ("NormalizedLinear", {"scale": 0.5}),
  ("NormalizedLinear", {"scale": 16.0, "normalize_features": True}),
  ("ProjectedLinear", {"dim": 6, "hidden": 7}),
  ("WeightNorm", {}),
  ("WeightNorm", {"shared": True}),
  ("LearnableScale", {}),
  ("LearnableScale", {"cosine": True}),
  ("DisAlign", {}),
  ("DisAlign", {"cosine": True}),
  ("TDE", {}),
  ("TDE", {"num_heads": 4, "alpha": 1.5}),
]
every_head = pytest.mark.parametrize(
    "head", [getattr(heads, name)(num_classes=10, **arguments) for name, arguments in ROWS],
    ids=[" ".join([name, *map(str, arguments.values())]) for name, arguments in ROWS])
both_modes = pytest.mark.parametrize("train", [False, True], ids=["test", "train"])
both_precisions = pytest.mark.parametrize("precision", ["float64", "float32"])


def _random(tree, seed=2):
  """Replaces all leaves by standard normal values."""
  leaves, structure = jax.tree.flatten(tree)
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  return jax.tree.unflatten(
      structure, [jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)])


@functools.cache
def _init(head, dim=64):
  return head.init(jax.random.key(0), jnp.zeros((1, dim)))


@functools.cache
def _variables(head, dim=64):
  """Random parameters and statistics, because initial values may hide a term."""
  return _random(jax.eval_shape(head.init, jax.random.key(0), jnp.zeros((1, dim))))


def _logits(head, variables, features, train):
  """(logits, updates), without the projections that some heads add in training."""
  output, updated = head.apply(variables, features, train=train, mutable=["batch_stats"])
  return output[0] if train and getattr(head, "projects", False) else output, updated


_apply = jax.jit(lambda head, variables, features, train=False: _logits(head, variables, features, train),
                 static_argnums=(0, 3))


@functools.cache
def _features(*shape, dtype=jnp.float32):
  return jax.random.normal(jax.random.key(1), shape).astype(dtype)


def test_the_rows_cover_every_head():
  assert {name for name, _ in ROWS} == set(heads.__all__) - {"CAMC", "OLTR"}  # they take maps


@every_head
def test_call_and_fields(head):
  train = inspect.signature(type(head).__call__).parameters["train"]
  assert train.kind is train.KEYWORD_ONLY and train.default is False
  fields = inspect.signature(type(head)).parameters
  assert all(f"    {name}: " in type(head).__doc__ for name in fields if name not in ("parent", "name"))


@every_head
@both_modes
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_shape_and_full_precision_whatever_the_features(head, train, dtype):
  variables, features = _variables(head), _features(4, 64, dtype=dtype)
  assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(head.init, jax.random.key(0), features))} == {FLOAT32}
  logits, updated = _apply(head, variables, features, train)
  assert logits.shape == (4, 10)
  assert {leaf.dtype for leaf in jax.tree.leaves((logits, updated))} == {FLOAT32}
  assert jax.tree.map(jnp.shape, updated.get("batch_stats")) == jax.tree.map(jnp.shape, variables.get("batch_stats"))
  np.testing.assert_array_equal(logits, _apply(head, variables, features.astype(jnp.float32), train)[0])


@every_head
@both_modes
def test_zero_features_have_a_finite_value_and_gradient(head, train):
  @jax.jit
  def run(variables):
    def logits(params, features):
      return _apply(head, {**variables, "params": params}, features, train)[0]

    value, vjp = jax.vjp(logits, variables["params"], jnp.zeros((4, 64)))
    return value, vjp(jnp.ones_like(value))

  for variables in (_init(head), _variables(head), jax.tree.map(np.zeros_like, _init(head))):
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run(variables)))


@every_head
@both_modes
def test_jit_equals_eager(head, train):
  variables, features = _variables(head), _features(4, 64)
  eager = _logits(head, variables, features, train)
  jitted = _apply(head, variables, features, train)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), eager, jitted)


@every_head
@both_modes
def test_the_order_of_the_classes_does_not_matter(head, train):
  order = np.array([3, 0, 4, 9, 1, 2, 8, 5, 7, 6])
  variables, features = _variables(head), _features(4, 64)
  moved = jax.tree.map(lambda leaf: np.asarray(leaf)[..., order] if leaf.shape[-1:] == (10,) else leaf, variables)
  logits, updated = _apply(head, variables, features, train)
  others, updated_others = _apply(head, moved, features, train)
  np.testing.assert_allclose(others, np.asarray(logits)[:, order], rtol=1e-5, atol=1e-4)
  jax.tree.map(np.testing.assert_array_equal, updated, updated_others)


def _golden(head, given, stored, outputs, precision, *, labels, train=False, weights=None, float32=1e-5):
  """Logits, loss and gradients of `head` against the stored ones.

  `given` holds arrays by path: `features`, `mean` of TDE, and parameters; `stored` maps some of them to the outputs'
  names of their gradients.
  """
  rtol = 1e-9 if precision == "float64" else float32

  def close(ours, theirs):
    assert ours.dtype == precision
    atol = 10 * np.finfo(precision).eps * np.abs(theirs).max()
    np.testing.assert_allclose(ours, np.reshape(theirs, ours.shape), rtol=rtol, atol=atol)

  def loss(arrays):
    params = {name: value for name, value in arrays.items() if name not in ("features", "mean")}
    variables = {"params": params} | ({"batch_stats": {"mean": arrays["mean"]}} if "mean" in arrays else {})
    logits, _ = _apply(head, variables, arrays["features"], train)
    per_example = losses.cross_entropy(logits, labels)
    if weights is None:
      return losses.mean(per_example), logits
    return losses.weighted_mean(per_example, jnp.asarray(weights, precision)[labels]), logits

  with jax.enable_x64(precision == "float64"):
    (value, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        {name: jnp.asarray(array, precision) for name, array in given.items()})
  close(logits, outputs["logits"])
  close(value, outputs["loss"])
  for name, key in stored.items():
    close(gradients[name], outputs[key])


def test_cosine_golden():
  (_, _, inputs, outputs), = goldens.cases("cosine_classifier")
  with jax.enable_x64(True):
    cosines, vjp = jax.vjp(
        lambda kernel, features: heads.Cosine(10).apply({"params": {"kernel": kernel}}, features),
        jnp.asarray(inputs["W"]), jnp.asarray(inputs["feat"]))
    grad_kernel, grad_features = vjp(jnp.asarray(inputs["cotangent"]))
  assert cosines.dtype == np.float64
  np.testing.assert_allclose(cosines, outputs["cos"], rtol=1e-9, atol=1e-15)
  np.testing.assert_allclose(grad_kernel, outputs["grad_W"], rtol=1e-9, atol=1e-15)
  zero = ~inputs["feat"].any(axis=1)
  assert zero.sum() == 1 and np.isfinite(grad_features).all()
  np.testing.assert_allclose(grad_features[~zero], outputs["grad_feat"][~zero], rtol=1e-9, atol=1e-15)


@both_precisions
@goldens.parametrize("lws")
def test_learnable_scale_golden(case, hyper, inputs, outputs, precision):
  given = dict(kernel=inputs["W"], bias=inputs["b"], scale=inputs["scales"], features=inputs["feat"])
  _golden(heads.LearnableScale(10), given, {"scale": "grad_scales"}, outputs, precision, labels=inputs["labels"])


@both_precisions
@goldens.parametrize("disalign")
def test_disalign_golden(case, hyper, inputs, outputs, precision):
  given = dict(
      kernel=inputs["W"], bias=inputs["b"], logit_scale=inputs["logit_scale"], logit_bias=inputs["logit_bias"],
      confidence_kernel=inputs["conf_w"][:, None], confidence_bias=inputs["conf_b"], features=inputs["feat"])
  stored = dict(logit_scale="grad_scale", logit_bias="grad_bias", confidence_kernel="grad_conf_w",
                confidence_bias="grad_conf_b")
  _golden(heads.DisAlign(10), given, stored, outputs, precision, labels=inputs["labels"], weights=outputs["weight"])


@both_precisions
@goldens.parametrize("tde")
def test_tde_golden(case, hyper, inputs, outputs, precision):
  head = heads.TDE(10, alpha=hyper["alpha"], tau=hyper["tau"], gamma=hyper["gamma"], num_heads=hyper["num_head"])
  given = dict(kernel=inputs["W_DxC"], mean=inputs["embed"], features=inputs["feat"])
  training = dict(logits=outputs["logits_train"], loss=outputs["loss"], grad_features=outputs["grad_feat"],
                  grad_kernel=outputs["grad_W_CxD"].T)
  _golden(head, given, {"kernel": "grad_kernel", "features": "grad_features"}, training, precision,
          labels=inputs["labels"], train=True)
  with jax.enable_x64(precision == "float64"):
    given = {name: jnp.asarray(array, precision) for name, array in given.items()}
    logits = head.apply(
        {"params": {"kernel": given["kernel"]}, "batch_stats": {"mean": given["mean"]}}, given["features"])
  rtol = 1e-9 if precision == "float64" else 1e-5
  np.testing.assert_allclose(logits, outputs["logits_eval"], rtol=rtol, atol=rtol * 0.1)


@both_precisions
@goldens.parametrize("paper_normfc")
def test_normfc_golden(case, hyper, inputs, outputs, precision):
  given, stored = dict(kernel=inputs["W"], features=inputs["feat"]), {}
  if magnitude := {"g_c", "g"} & set(inputs):
    name, = magnitude
    head = heads.WeightNorm(10, shared=name == "g")
    given, stored = given | {"scale": inputs[name]}, {"scale": f"grad_{name}"}
  else:
    head = heads.NormalizedLinear(10, scale=hyper["g"], normalize_features=hyper["normalise_x"])
    stored = {"kernel": "grad_W", "features": "grad_feat"}
  _golden(head, given, stored, outputs, precision, labels=inputs["labels"],
          float32=1e-4 if hyper.get("g", 1) >= 30 else 1e-5)


def test_linear_is_affine():
  head = heads.Linear(10)
  variables, features = _init(head), _features(4, 64)
  kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
  np.testing.assert_allclose(
      head.apply(variables, features), np.float64(features) @ np.float64(kernel) + bias, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 10, 8142])
def test_with_a_rare_start_every_class_begins_at_one_of_c(classes):
  head = heads.Linear(classes, rare_start=True)
  plain, rare = (_init(made, 4)["params"] for made in (heads.Linear(classes), head))
  np.testing.assert_array_equal(plain["kernel"], rare["kernel"])
  np.testing.assert_allclose(jax.nn.sigmoid(head.apply(dict(params=rare), jnp.zeros((1, 4)))), 1 / classes, rtol=1e-5)


def test_a_rare_start_needs_two_classes():
  with pytest.raises(ConfigError, match="rare_start needs at least 2 classes, got 1"):
    _init(heads.Linear(1, rare_start=True), 4)


def test_cosine_ignores_lengths():
  head = heads.Cosine(10)
  variables, features = _init(head), _features(4, 64)
  scaled = {"params": {"kernel": variables["params"]["kernel"] * jnp.arange(1.0, 11.0)}}
  cosines = head.apply(variables, features)
  np.testing.assert_allclose(head.apply(scaled, 1e3 * features), cosines, atol=1e-6)
  own = variables["params"]["kernel"].T
  np.testing.assert_allclose(jnp.diag(head.apply(variables, own)), 1, atol=1e-6)


def test_normalized_linear_ignores_the_lengths_of_the_columns():
  features = _features(4, 64)
  for normalize, factor in ((False, 3.0), (True, 1.0)):
    head = heads.NormalizedLinear(10, scale=0.5, normalize_features=normalize)
    variables = _init(head)
    scaled = {"params": {"kernel": variables["params"]["kernel"] * jnp.arange(1.0, 11.0)}}
    logits = head.apply(variables, features)
    np.testing.assert_allclose(head.apply(scaled, features), logits, atol=1e-5)
    np.testing.assert_allclose(head.apply(variables, 3 * features), factor * logits, atol=1e-5)
  cosines = heads.Cosine(10).apply(variables, features)
  np.testing.assert_allclose(logits, 0.5 * cosines, atol=1e-6)


@pytest.mark.parametrize("shared", [False, True])
def test_weight_norm_starts_as_the_normalized_linear_head_with_scale_one(shared):
  head, features = heads.WeightNorm(10, shared=shared), _features(4, 64)
  variables = _init(head)
  fixed = {"params": {"kernel": variables["params"]["kernel"]}}
  np.testing.assert_allclose(
      head.apply(variables, features), heads.NormalizedLinear(10, scale=1.0).apply(fixed, features), rtol=1e-6)


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("name, neutral", [
  ("LearnableScale", {"scale": 1.0}), ("DisAlign", {"logit_scale": 0.0, "logit_bias": 0.0})])
def test_neutral_parameters_give_the_wrapped_head(name, neutral, cosine):
  head, wrapped = getattr(heads, name)(10, cosine=cosine), (heads.Cosine if cosine else heads.Linear)(10)
  params, features = dict(_variables(head)["params"]), _features(4, 64)
  params |= {key: jnp.full(10, value) for key, value in neutral.items()}
  names = ("kernel",) if cosine else ("bias", "kernel")
  assert set(params) - set(names) == set(_init(head)["params"]) - set(_init(wrapped)["params"])
  np.testing.assert_array_equal(
      head.apply({"params": params}, features),
      wrapped.apply({"params": {name: params[name] for name in names}}, features))


def test_disalign_is_the_form_of_the_paper_with_alpha_one_larger():
  head, features = heads.DisAlign(10), _features(4, 64)
  params = _variables(head)["params"]
  logits = heads.Linear(10).apply({"params": {name: params[name] for name in ("kernel", "bias")}}, features)
  confidence = jax.nn.sigmoid(features @ params["confidence_kernel"] + params["confidence_bias"])
  aligned = (params["logit_scale"] + 1) * logits + params["logit_bias"]
  np.testing.assert_allclose(
      head.apply({"params": params}, features), confidence * aligned + (1 - confidence) * logits, rtol=1e-4, atol=1e-4)


def test_tde_keeps_a_running_mean_that_only_training_moves():
  head, features = heads.TDE(10), _features(4, 64)
  variables = _init(head)
  initialised_in_training = head.init(jax.random.key(0), features, train=True)
  assert not variables["batch_stats"]["mean"].any() and not initialised_in_training["batch_stats"]["mean"].any()
  first, updated = _apply(head, variables, features, train=True)
  np.testing.assert_allclose(updated["batch_stats"]["mean"], features.mean(axis=0), rtol=1e-6, atol=1e-6)
  second, later = _apply(head, {**variables, **updated}, 2 * features, train=True)
  np.testing.assert_allclose(later["batch_stats"]["mean"], 2.9 * features.mean(axis=0), rtol=1e-6, atol=1e-6)
  np.testing.assert_allclose(second, first, rtol=1e-5, atol=1e-6)  # features are normalised, the mean plays no part
  np.testing.assert_allclose(head.apply(variables, features), first, rtol=1e-5, atol=1e-6)  # nor a zero one in a test

  _, untouched = _apply(head, {**variables, **later}, features)
  jax.tree.map(np.testing.assert_array_equal, untouched, later)
  others = jax.tree.map(lambda mean: 10 * mean, later)
  np.testing.assert_allclose(
      head.apply({**variables, **later}, features), head.apply({**variables, **others}, features), rtol=1e-5, atol=1e-6)


def test_tde_with_alpha_one_leaves_nothing_along_the_mean():
  head = heads.TDE(10, alpha=1.0)
  variables = _variables(head)
  along = variables["batch_stats"]["mean"] * jnp.repeat(jnp.array([0.1, 7.0]), 32)
  np.testing.assert_allclose(head.apply(variables, along[None]), 0, atol=1e-5)


def test_tde_names_a_wrong_number_of_heads():
  with pytest.raises(ConfigError, match="64 is not a multiple of 5"):
    _init(heads.TDE(10, num_heads=5))


def test_parameters_and_initial_values():
  def params(name, **arguments):
    return _init(getattr(heads, name)(500, **arguments), 400)["params"]

  linear, cosine, normalized = params("Linear"), params("Cosine"), params("NormalizedLinear", scale=1.0)
  tde, disalign = params("TDE"), params("DisAlign")
  assert jax.tree.map(jnp.shape, linear) == {"kernel": (400, 500), "bias": (500,)}
  for found in (cosine, normalized, tde):
    assert jax.tree.map(jnp.shape, found) == {"kernel": (400, 500)}
  shared = params("WeightNorm", shared=True)["scale"]
  assert shared.shape == () and shared == 1
  for name in ("WeightNorm", "LearnableScale"):
    np.testing.assert_array_equal(params(name)["scale"], np.ones(500))
  assert (disalign["logit_scale"] == 1).all() and not disalign["logit_bias"].any()
  np.testing.assert_array_equal(disalign["confidence_kernel"], np.full((400, 1), 0.1, np.float32))

  for kernel in (linear["kernel"] / np.sqrt(2 / 400), normalized["kernel"] / np.sqrt(1 / 400)):
    np.testing.assert_allclose([kernel.mean(), kernel.std()], [0, 1], atol=0.01)
    assert np.abs(kernel).max() > 3.5  # untruncated
  for uniform in (linear["bias"], tde["kernel"]):
    assert 0.045 < uniform.max() <= 0.05 and -0.05 <= uniform.min() < -0.045

  np.testing.assert_allclose(jnp.linalg.norm(cosine["kernel"], axis=0), 1, rtol=1e-5)
  largest = jnp.abs(cosine["kernel"]).max(axis=0)  # of a uniform column: sqrt(3 / 400), hardly more
  assert (largest < 1.15 * np.sqrt(3 / 400)).all() and (cosine["kernel"] < 0).any()
