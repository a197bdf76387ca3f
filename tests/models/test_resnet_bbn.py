import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltjax import losses, models
from ltjax.data import samplers
from ltjax.errors import ConfigError
from ltjax.models import heads, resnet_cifar
from tests import goldens

WIDTHS = (4, 4, 8)
BRANCHES = {"cb_block", "rb_block"}
_golden_mixes = goldens.parametrize("bbn_mix", skip={"c10.reverse_sampler": "a sampler: the test below"})


def _model():
  return models.Classifier(backbone=models.ResNetBBN(depth=14, widths=WIDTHS), head=heads.Linear(10))


@jax.jit
def _forward(variables, images):
  return _model().apply(variables, images, train=False)


@jax.jit
def _train(variables, images):
  return _model().apply(variables, images, train=True, mutable=["batch_stats"])


@pytest.fixture(scope="module")
def images():
  return jax.random.normal(jax.random.key(1), (2, 6, 8, 8, 1))


@pytest.fixture(scope="module")
def variables(images):
  """With statistics that do something."""
  found = _model().init(jax.random.key(0), images[0], train=False)
  for batch in (images[0], images[1]):
    found = {**found, **_train(found, batch)[1]}
  return found


@pytest.mark.parametrize("precision", ["float64", "float32"])
@_golden_mixes
def test_golden(case, hyper, inputs, outputs, precision):
  """The classifier's mean, head and loss on maps of one pixel; the weights enter as mixup's do."""
  rtol = 1e-9 if precision == "float64" else 1e-5
  share = hyper["alpha"]
  assert share == 1 - ((hyper["epoch1"] - 1) / hyper["max_epoch"]) ** 2

  with jax.enable_x64(precision == "float64"):
    params = {"params": {"kernel": jnp.asarray(inputs["W"], precision), "bias": jnp.asarray(inputs["b"], precision)}}

    @jax.jit
    def loss(conventional, rebalancing):
      logits = heads.Linear(10).apply(params, resnet_cifar.mix(conventional, rebalancing, share))
      parts = [losses.mean(losses.cross_entropy(logits, inputs[name])) for name in ("labels_c", "labels_r")]
      return share * parts[0] + (1 - share) * parts[1], logits

    features = (jnp.asarray(inputs[name], precision) for name in ("feat_c", "feat_r"))
    (value, logits), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(*features)

  def close(ours, key):
    assert ours.dtype == precision
    atol = 10 * np.finfo(precision).eps * np.abs(outputs[key]).max()
    np.testing.assert_allclose(ours, outputs[key], rtol=rtol, atol=atol)

  close(value, "loss")
  close(logits, "logits")
  close(gradients[0], "grad_feat_c")
  close(gradients[1], "grad_feat_r")


def test_golden_sampler():
  (inputs, outputs), = [(i, o) for case, _, i, o in goldens.cases("bbn_mix") if case == "c10.reverse_sampler"]
  np.testing.assert_allclose(samplers.reverse(inputs["counts"]), outputs["class_prob"], rtol=1e-9)


def test_halves_are_resnet_cifar_with_one_or_the_other_last_block(images, variables):
  plain = jax.jit(lambda v, x: models.ResNetCIFAR(depth=14, widths=WIDTHS).apply(v, x, train=False))
  both = jax.jit(lambda v, x: models.ResNetBBN(depth=14, widths=WIDTHS).apply(v, x, train=False))
  backbone = {key: value["backbone"] for key, value in variables.items() if "backbone" in value}
  maps = both(backbone, images[0])
  assert maps.shape == (6, 2, 2, 16)
  for block, half in (("cb_block", maps[..., :8]), ("rb_block", maps[..., 8:])):
    one = {key: {name: layer for name, layer in value.items() if name not in BRANCHES} | {"stage3_block2": value[block]}
           for key, value in backbone.items()}
    np.testing.assert_allclose(plain(one, images[0]), half, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_two_batches_give_the_mixed_features(images, variables, share):
  (_, conventional), (_, rebalancing) = _forward(variables, images[0]), _forward(variables, images[1])
  logits, features = _forward(variables, resnet_cifar.Branches(images[0], images[1], share))
  expected = 2 * np.concatenate([share * conventional[:, :8], (1 - share) * rebalancing[:, 8:]], axis=-1)
  np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)
  head = {"params": variables["params"]["head"]}
  np.testing.assert_allclose(logits, heads.Linear(10).apply(head, expected), rtol=1e-4, atol=1e-5)


def test_one_batch_is_the_even_mixture_with_itself(images, variables):
  even = resnet_cifar.Branches(images[0], images[0], 0.5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
               _forward(variables, images[0]), _forward(variables, even))


def test_running_statistics_see_both_batches_in_turn_and_each_branch_its_own(images, variables):
  def part(stats, branch):
    return {name: value for name, value in stats["batch_stats"]["backbone"].items() if (name in BRANCHES) == branch}

  def close(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, theirs)

  x, others = images[0], 2 * images[1] + 1
  _, mixed = _train(variables, resnet_cifar.Branches(x, others, 0.3))
  (_, after_x), (_, after_others) = _train(variables, x), _train(variables, others)
  _, after_both = _train({**variables, **after_x}, others)
  close(part(mixed, False), part(after_both, False))
  close(part(mixed, True)["cb_block"], part(after_x, True)["cb_block"])
  close(part(mixed, True)["rb_block"], part(after_others, True)["rb_block"])


def test_gradient_reaches_every_parameter_and_jit_compiles_once(images, variables):
  traces = []

  @jax.jit
  def gradients(params, share):
    traces.append(1)

    def loss(params):
      batches = resnet_cifar.Branches(images[0], images[1], share)
      (logits, _), _ = _model().apply({**variables, "params": params}, batches, train=True, mutable=["batch_stats"])
      return jnp.sum(jnp.sin(logits))

    return jax.grad(loss)(params)

  found = gradients(variables["params"], jnp.float32(0.3))
  assert all(np.isfinite(leaf).all() and np.any(leaf) for leaf in jax.tree.leaves(found))
  alone = gradients(variables["params"], jnp.float32(1.0))["backbone"]
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(alone["rb_block"])) and np.any(alone["stem_conv"]["kernel"])
  assert len(traces) == 1


def test_parameter_count_of_bbn_resnet32():
  model = models.Classifier(backbone=models.ResNetBBN(), head=heads.Linear(10))
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
  one_more_block, wider_head = 2 * 9 * 64 * 64 + 4 * 64, 64 * 10
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 464_154 + one_more_block + wider_head
  assert set(shapes["params"]["backbone"]) == {"stem_conv", "stem_norm", *BRANCHES} | {
      f"stage{stage}_block{block}" for stage in (1, 2, 3) for block in range(1, 6) if (stage, block) != (3, 5)}


def test_bfloat16_maps_are_mixed_in_float32(images):
  model = models.ResNetBBN(depth=14, widths=WIDTHS, dtype=jnp.bfloat16)

  def run(images):
    return model.init_with_output(jax.random.key(0), images, train=False)[0].dtype

  batches = resnet_cifar.Branches(images[0], images[1], 0.3)
  assert jax.eval_shape(lambda: jnp.zeros((), run(images[0]))).dtype == jnp.bfloat16
  assert jax.eval_shape(lambda: jnp.zeros((), run(batches))).dtype == jnp.float32


@pytest.mark.parametrize("depth", [2, 8, 18, 33])
def test_wrong_depth_names_the_valid_ones(depth):
  with pytest.raises(ConfigError, match=rf"ResNetBBN.*6n\+2 \(14, 20, 26, 32.*got {depth}"):
    models.ResNetBBN(depth=depth)
