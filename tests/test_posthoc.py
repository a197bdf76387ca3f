import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltjax import posthoc
from ltjax.errors import ConfigError, DataError
from tests import goldens

both_precisions = pytest.mark.parametrize("precision", ["float64", "float32"])
RTOL = {"float64": 1e-9, "float32": 1e-5}
FORMS = {"un": {}, "l2n": dict(unit=True), "cl2n": dict(unit=True)}


def assert_close(found, expected, precision):
  assert found.dtype == precision
  atol = 10 * np.finfo(precision).eps * np.abs(expected).max()
  np.testing.assert_allclose(found, expected, rtol=RTOL[precision], atol=atol)


@both_precisions
@goldens.parametrize("tau_norm")
def test_tau_normalize(case, hyper, inputs, outputs, precision):
  with jax.enable_x64(precision == "float64"):
    kernel = posthoc.tau_normalize(jnp.asarray(inputs["W_DxC"], precision), tau=hyper["tau"])
    logits = jnp.matmul(jnp.asarray(inputs["feat"], precision), kernel, precision="highest")
  assert_close(kernel.T, outputs["W_norm_CxD"], precision)
  assert_close(logits, outputs["logits"], precision)


@both_precisions
@goldens.parametrize("ncm")
def test_official_nearest_class_mean(case, hyper, inputs, outputs, precision):
  form = FORMS[hyper["feat_type"]] | dict(metric={"cos": "dot", "l2": "euclidean"}[hyper["dist_type"]])
  with jax.enable_x64(precision == "float64"):
    train, test = (jnp.asarray(inputs[name], precision) for name in ("train_feat", "feat"))
    if hyper["feat_type"] == "cl2n":
      form["center"] = train.mean(axis=0)
    means = posthoc.nearest_class_mean(train, inputs["train_labels"], 10, **form)
    logits = posthoc.nearest_mean_logits(test, means, **form)
  assert_close(means, outputs["centroids"], precision)
  assert_close(logits, outputs["logits"], precision)
  np.testing.assert_array_equal(np.asarray(logits).argmax(axis=-1), outputs["pred"])


@both_precisions
@goldens.parametrize("logit_adjustment", skip={
  f"c10.loss.tau{tau}": "tests/losses/test_golden.py" for tau in ("0.5", "1.0", "1.5", "2.0")
})
def test_adjust_logits(case, hyper, inputs, outputs, precision):
  with jax.enable_x64(precision == "float64"):
    logits = posthoc.adjust_logits(jnp.asarray(inputs["logits"], precision), inputs["prior"], tau=hyper["tau"],
                                   epsilon=hyper["eps"])
  assert_close(logits, outputs["adjusted_logits"], precision)
  np.testing.assert_array_equal(np.asarray(logits).argmax(axis=-1), outputs["pred"])


def test_cosine_class_means_have_unit_length_whatever_the_length_of_the_features():
  features = np.random.RandomState(0).randn(20, 6)
  labels = np.arange(20) % 4
  means = posthoc.nearest_class_mean(features, labels, 4)
  np.testing.assert_allclose(jnp.linalg.norm(means, axis=1), 1, rtol=1e-6)
  logits = posthoc.nearest_mean_logits(features, means)
  np.testing.assert_allclose(posthoc.nearest_mean_logits(7 * features, 3 * means), logits, rtol=1e-5)
  assert np.abs(logits).max() <= 1 + 1e-6
  order = np.array([2, 0, 3, 1])
  moved = posthoc.nearest_class_mean(features, np.argsort(order)[labels], 4)
  np.testing.assert_allclose(moved, means[order], rtol=1e-5)


def test_zero_vectors_are_finite():
  zeros = jnp.zeros((4, 6), jnp.bfloat16)
  for metric in ("cosine", "euclidean", "dot"):
    means = posthoc.nearest_class_mean(zeros, np.arange(4), 4, metric=metric, unit=True)
    assert np.isfinite(posthoc.nearest_mean_logits(zeros, means, metric=metric, unit=True)).all()
  value, slope = jax.value_and_grad(lambda kernel: posthoc.tau_normalize(kernel, tau=1.5).sum())(jnp.zeros((4, 6)))
  assert np.isfinite(value)
  assert np.isfinite(slope).all()


def test_post_hoc_adjustment_undoes_the_one_in_training():
  counts, logits = np.array([3, 1000000, 1]), jnp.array([[1.0, -2.0, 3.0]])
  for tau in (0.5, 1.0, 2.0):
    taken = posthoc.adjust_logits(logits, counts, tau=tau)
    alone = posthoc.adjust_logits(0 * logits, counts, tau=tau)
    np.testing.assert_allclose(taken - logits, alone, rtol=1e-5, atol=1e-6)


def test_bad_arguments():
  features = np.ones((3, 2))
  with pytest.raises(DataError, match="class 1 has none"):
    posthoc.nearest_class_mean(features, np.array([0, 0, 2]), 3)
  with pytest.raises(DataError, match=r"\[0, 2\), got 0 to 2"):
    posthoc.nearest_class_mean(features, np.array([0, 1, 2]), 2)
  with pytest.raises(ConfigError, match="cosine, euclidean, dot"):
    posthoc.nearest_mean_logits(features, features, metric="l1")
  with pytest.raises(DataError, match="class 1 has 0"):
    posthoc.adjust_logits(features, np.array([1, 0]))


@pytest.mark.parametrize("name", posthoc.__all__)
def test_docstring(name):
  function = getattr(posthoc, name)
  assert all(part in function.__doc__ for part in ("Args:", "Returns:", "References:", ">>> "))
  (found,) = doctest.DocTestFinder(recurse=False).find(function, globs=vars(posthoc))
  assert doctest.DocTestRunner().run(found).failed == 0
