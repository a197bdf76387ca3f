"""The decomposition and the modules around it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltjax.augment import features
from ltjax.errors import ConfigError
from ltjax.models import afa
from tests import goldens

INSERTS = [afa.AFA, afa.CBAM, afa.GlobalContext]
every_insert = pytest.mark.parametrize("insert", INSERTS, ids=lambda insert: insert.__name__)


def _nhwc(x):
  return np.asarray(x).transpose(0, 2, 3, 1)


@goldens.parametrize("paper_afa_decomposition")
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_golden(case, hyper, inputs, outputs, precision):
  rtol = 1e-9 if precision == "float64" else 1e-5
  with jax.enable_x64(precision == "float64"):
    given = {name: jnp.asarray(value, precision) for name, value in inputs.items()}

    def scalar(x, w_query, w_key, w_value, w1):
      se = (w1, given["se_b1"], given["se_w2"], given["se_b2"])
      parts = afa.decompose(x, w_query, w_key, w_value, se, mask_axis=hyper["mask_axis"])
      return jnp.sum(jnp.asarray(_nhwc(inputs["cotangent"]), precision) * (x + parts[0])), parts

    args = (jnp.asarray(_nhwc(inputs["X"]), precision), *(given[name] for name in ("wq", "wk", "wv", "se_w1")))
    (value, parts), slopes = jax.value_and_grad(scalar, argnums=range(5), has_aux=True)(*args)
    assert value.dtype == parts[0].dtype == precision

  def close(ours, name, transposed=False):
    expected = _nhwc(outputs[name]) if transposed else outputs[name]
    np.testing.assert_allclose(ours, expected, rtol=rtol, atol=(1e-12 if precision == "float64" else 1e-6))

  close(parts[0], "x_class", transposed=True)
  close(parts[1], "x_var", transposed=True)
  close(value, "scalar")
  close(slopes[0], "grad_X", transposed=True)
  for slope, name in zip(slopes[1:], ("wq", "wk", "wv", "se_w1"), strict=True):
    close(slope, f"grad_{name}")


def _given(b=3, h=2, w=3, d=5, seed=0):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
  return draw(b, h, w, d), *(draw(h * w, h * w) for _ in range(3)), (draw(d, 4), draw(4), draw(4, d), draw(d))


@pytest.mark.parametrize("mask_axis", afa.MASK_AXES)
def test_the_mask_splits_the_values(mask_axis):
  maps, *matrices, se = _given()
  class_related, variation_related = afa.decompose(maps, *matrices, se, mask_axis=mask_axis)
  value = jnp.einsum("bpd,pq->bqd", maps.reshape(3, 6, 5), matrices[2]).reshape(maps.shape)
  np.testing.assert_allclose(class_related + variation_related, value, rtol=1e-4, atol=1e-6)
  mask = class_related / value
  assert (mask > 0).all()
  np.testing.assert_allclose(mask.sum(axis=-1 if mask_axis == "channel" else (1, 2)), 1, rtol=1e-3)


def test_a_permutation_of_the_channels_permutes_the_parts():
  maps, *matrices, (w1, b1, w2, b2) = _given()
  order = np.array([3, 0, 4, 1, 2])
  found = afa.decompose(maps, *matrices, (w1, b1, w2, b2))
  permuted = afa.decompose(maps[..., order], *matrices, (w1[order], b1, w2[:, order], b2[order]))
  for one, two in zip(found, permuted, strict=True):
    np.testing.assert_allclose(two, one[..., order], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("change", "message"), [
    (dict(mask_axis="spacial"), "mask_axis must be one of channel, spatial, got 'spacial'"),
    (dict(w=4), r"maps of 2 x 4 need matrices of \(8, 8\), got \(6, 6\)"),
])
def test_decompose_refuses(change, message):
  maps, *rest = _given()
  if "w" in change:
    maps = _given(w=change["w"])[0]
  with pytest.raises(ConfigError, match=message):
    afa.decompose(maps, *rest, mask_axis=change.get("mask_axis", "channel"))


# -- the modules -----------------------------------------------------------------------------------------------------


MAPS = jax.random.normal(jax.random.key(1), (6, 4, 2, 8))
PLAN = features.plan(jnp.array([0, 1, 1, 0, 1, 1]), key=jax.random.key(2), num_classes=3)


def _moved(variables):
  """`variables` with random numbers instead of zeros, so that no initial zero hides a mistake."""
  return jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(3), leaf.shape), variables)


@every_insert
def test_rows_are_the_enhanced_and_then_the_generated(insert):
  variables = _moved(insert().init(jax.random.key(0), MAPS))
  class_related, variation_related = insert().apply(variables, MAPS, method=insert.split)
  enhanced, both = insert().apply(variables, MAPS), jax.jit(insert().apply)(variables, MAPS, PLAN)
  assert both.shape == (6 + len(PLAN.valid), *MAPS.shape[1:])
  np.testing.assert_allclose(enhanced, MAPS + class_related, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(both[:6], enhanced, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(
      both[6:], features.combine(class_related, variation_related, PLAN), rtol=1e-4, atol=1e-6)
  plain = insert(addition=False).apply(variables, MAPS)
  np.testing.assert_array_equal(plain, MAPS)


@every_insert
def test_gradients_and_the_option_to_stop_them(insert):
  variables = _moved(insert().init(jax.random.key(0), MAPS))

  def generated(variables, **options):
    return jnp.sum(jnp.sin(insert(**options).apply(variables, MAPS, PLAN)[6:]))

  flows, stops = (jax.grad(generated)(variables, stop_gradient=stop) for stop in (False, True))
  # A constant before a softmax over positions changes nothing.
  parts = {"/".join(key.key for key in path[1:]): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(flows)}
  assert all(np.isfinite(leaf).all() and (np.abs(leaf).max() > 1e-7 or path == "where/bias")
             for path, leaf in parts.items())
  assert not any(leaf.any() for leaf in jax.tree.leaves(stops))


@every_insert
def test_bfloat16_maps_stay_bfloat16_and_parameters_float32(insert):
  variables = jax.eval_shape(lambda: insert().init(jax.random.key(0), MAPS.astype(jnp.bfloat16)))
  out = jax.eval_shape(lambda v: insert().apply(v, MAPS.astype(jnp.bfloat16), PLAN), variables)
  assert out.dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_matrices_start_with_variance_one_over_their_size():
  params = afa.AFA().init(jax.random.key(0), jnp.zeros((1, 6, 6, 8)))["params"]
  for name in ("query", "key", "value"):
    assert params[name].shape == (6, 6, 6, 6)
    np.testing.assert_allclose(params[name].std() * 6, 1, atol=0.08)
  assert params["se_kernel1"].shape == (8, 4)
  shapes = jax.eval_shape(lambda: afa.AFA().init(jax.random.key(0), jnp.zeros((1, 2, 2, 1024))))["params"]
  assert shapes["se_kernel2"].shape == (64, 1024)


def test_another_size_is_refused_with_the_one_it_was_built_for():
  variables = afa.AFA().init(jax.random.key(0), MAPS)
  for shape in ((1, 2, 4, 8), (1, 7, 7, 8)):
    with pytest.raises(ConfigError, match=rf"AFA was built for maps of 4 x 2, got {shape[1]} x {shape[2]}") as info:
      afa.AFA().apply(variables, jnp.zeros(shape))
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: afa.AFA(mask_axis="both"), "mask_axis must be one of channel, spatial"),
    (lambda: afa.AFA(reduction=0), "AFA: reduction must be in \\[1, inf\\)"),
    (lambda: afa.CBAM(reduction=-1), "CBAM: reduction must be in \\[1, inf\\)"),
])
def test_wrong_options(make, message):
  with pytest.raises(ConfigError, match=message):
    make()
