import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltjax import models
from ltjax.errors import ConfigError
from ltjax.models import heads
from tests import goldens

_TORCH_LAYERS = {"conv": "conv", "bn": "norm"}


def _flax_path(name):
  """Maps a PyTorch name of the reference, as layer2.0.bn1.weight, to (collection, path of keys)."""
  *modules, leaf = name.split(".")
  if modules == ["linear"]:
    return "params", ("head", "kernel" if leaf == "weight" else "bias")
  kind, number = modules[-1][:-1], modules[-1][-1]
  layer = _TORCH_LAYERS[kind]
  if len(modules) == 1:
    path = ("backbone", f"stem_{layer}")
  else:
    path = ("backbone", f"stage{modules[0][-1]}_block{int(modules[1]) + 1}", f"{layer}{number}")
  if leaf.startswith("running"):
    return "batch_stats", (*path, leaf.removeprefix("running_"))
  return "params", (*path, {"conv": "kernel", "bn": "scale"}[kind] if leaf == "weight" else "bias")


def _draw(rs, name, shape):
  if name.endswith("running_mean"):
    return 0.1 * rs.standard_normal(shape)
  if name.endswith("running_var") or ("bn" in name and name.endswith("weight")):
    return rs.uniform(0.5, 1.5, shape)
  if name.endswith("bias"):
    return 0.1 * rs.standard_normal(shape)
  return rs.standard_normal(shape) * np.sqrt(2.0 / np.prod(shape[1:]))


def _golden_variables(hyper, inputs):
  """Regenerates the reference's weights as flax variables; returns them and the sum of |parameters|."""
  rs = np.random.RandomState(hyper["seed"])
  flat, checksum = {"params": {}, "batch_stats": {}}, 0.0
  shapes = {str(name): tuple(map(int, str(shape).split("x")))
            for name, shape in zip(inputs["param_names"], inputs["param_shapes"], strict=True)}
  for name in map(str, inputs["buffer_names"]):
    shapes[name] = shapes[name.rpartition(".")[0] + ".weight"]
  for name, shape in shapes.items():
    value = _draw(rs, name, shape)
    collection, path = _flax_path(name)
    checksum += np.abs(value).sum() if collection == "params" else 0.0
    flat[collection][path] = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
  return {key: flax.traverse_util.unflatten_dict(value) for key, value in flat.items()}, checksum


def _is_golden_output(module, _):
  return module.name == "stem_norm" or (module.name or "").startswith("stage")


@pytest.fixture(scope="module")
def golden():
  (_, hyper, inputs, outputs), = goldens.cases("resnet32_cifar")
  variables, checksum = _golden_variables(hyper, inputs)
  return variables, checksum, inputs["x"].transpose(0, 2, 3, 1), outputs


def _classifier(num_classes=10, head=heads.Linear, **kwargs):
  return models.Classifier(backbone=models.ResNetCIFAR(**kwargs), head=head(num_classes))


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_golden_float64(golden, train):
  variables, checksum, images, outputs = golden
  with jax.enable_x64(True):
    model = _classifier(dtype=jnp.float64)

    @jax.jit
    def forward(variables, images):
      return model.apply(
          variables, images, train=train, mutable=["batch_stats", "intermediates"],
          capture_intermediates=_is_golden_output)

    expected = jax.tree.map(jnp.shape, jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False)))
    assert jax.tree.map(np.shape, variables) == expected
    (logits, features), updated = jax.device_get(forward(variables, images))
  seen = {name: value["__call__"][0] for name, value in updated["intermediates"]["backbone"].items()}
  assert features.dtype == logits.dtype == np.float64
  np.testing.assert_allclose(checksum, outputs["checksum_abs_params"], rtol=1e-9)

  def close(ours, name):
    np.testing.assert_allclose(ours, outputs[f"{'train' if train else 'eval'}_{name}"], rtol=1e-9, atol=1e-12)

  close(np.abs(np.maximum(seen["stem_norm"], 0)).mean(), "stem_mean_abs")
  for stage in (1, 2, 3):
    close(seen[f"stage{stage}_block5"][:1].transpose(0, 3, 1, 2), f"layer{stage}")
  close(features, "feat")
  close(logits, "logits")

  before = variables["batch_stats"]["backbone"]["stem_norm"]
  after = updated["batch_stats"]["backbone"]["stem_norm"]
  if train:
    close(after["mean"], "bn1_running_mean_after")
    m = images.size / images.shape[-1]  # PyTorch keeps the unbiased variance of the batch, flax the biased one.
    close(0.9 * before["var"] + (after["var"] - 0.9 * before["var"]) * m / (m - 1), "bn1_running_var_after")
  else:
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_golden_float32(golden):
  variables, _, images, outputs = golden
  variables, images = jax.tree.map(np.float32, (variables, images))
  logits, _ = jax.jit(lambda v, x: _classifier().apply(v, x, train=False))(variables, images)
  np.testing.assert_allclose(logits, outputs["eval_logits"], rtol=1e-5, atol=1e-5 * np.abs(logits).max())


@pytest.mark.parametrize("head, num_classes, count", [
    (heads.Linear, 10, 464_154), (heads.Linear, 100, 470_004), (heads.Cosine, 100, 469_904)])
def test_parameter_count(head, num_classes, count):
  model = _classifier(num_classes, head)
  params = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))["params"]
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def _shapes(images, **kwargs):
  """Shapes and types of (variables, maps, updated statistics), without computing anything."""
  model = models.ResNetCIFAR(**kwargs)

  def run():
    variables = model.init(jax.random.key(0), jnp.zeros(images), train=False)
    return variables, *model.apply(variables, jnp.zeros(images), train=True, mutable=["batch_stats"])
  return jax.eval_shape(run)


@pytest.mark.parametrize("widths", [(16, 32, 64), (8, 8, 14), (4, 10, 30)])
@pytest.mark.parametrize("images, maps", [((2, 32, 32, 3), (8, 8)), ((2, 8, 8, 1), (2, 2)), ((3, 9, 5, 2), (3, 2))])
def test_map_shape(images, maps, widths):
  _, out, _ = _shapes(images, depth=8, widths=widths)
  assert out.shape == (images[0], *maps, widths[-1])


def test_bfloat16_keeps_parameters_and_statistics_in_float32():
  variables, maps, updated = _shapes((2, 8, 8, 3), depth=8, dtype=jnp.bfloat16)
  assert maps.dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves((variables, updated))} == {jnp.dtype("float32")}


def test_initial_convolutions_are_untruncated_kaiming_normal():
  params = jax.jit(lambda: models.ResNetCIFAR(depth=8).init(
      jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False))()["params"]
  kernel = params["stage3_block1"]["conv2"]["kernel"] / np.sqrt(2 / (9 * 64))
  np.testing.assert_allclose([kernel.mean(), kernel.std()], [0, 1], atol=0.02)
  assert np.abs(kernel).max() > 3.5
  assert (params["stage3_block1"]["norm2"]["scale"] == 1).all()


@pytest.mark.parametrize("width", [6, 8])
def test_shortcut_pads_zero_channels_on_both_sides(width):
  """With zero convolution kernels, a block is the ReLU of its shortcut."""
  model = models.ResNetCIFAR(depth=8, widths=(4, width, width))
  images = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))

  @jax.jit
  def run():
    flat = flax.traverse_util.flatten_dict(model.init(jax.random.key(0), images, train=False))
    zeroed = {path: jnp.zeros_like(value) if path[-2] in ("conv1", "conv2") else value for path, value in flat.items()}
    return model.apply(
        flax.traverse_util.unflatten_dict(zeroed), images, train=False, capture_intermediates=_is_golden_output,
        mutable=["intermediates"])

  maps, state = run()
  stem = nn.relu(state["intermediates"]["stem_norm"]["__call__"][0])
  side = (width - 4) // 2
  np.testing.assert_array_equal(maps[..., side:width - side], stem[:, ::4, ::4])
  assert not maps[..., :side].any() and not maps[..., width - side:].any()


@pytest.mark.parametrize("depth", [2, 7, 18, 33, -4])
def test_wrong_depth_names_the_valid_ones(depth):
  with pytest.raises(ConfigError, match=rf"6n\+2 \(8, 14, 20, 26, 32.*got {depth}"):
    models.ResNetCIFAR(depth=depth)


@pytest.mark.parametrize("widths", [(16, 33, 64), (16, 8, 64), (16, 32), (16, 32, 64, 128), (0, 2, 4)])
def test_wrong_widths(widths):
  with pytest.raises(ConfigError, match="widths"):
    models.ResNetCIFAR(widths=widths)
