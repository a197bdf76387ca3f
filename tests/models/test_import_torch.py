"""PyTorch's weights: the same features as torchvision's networks, and files that are damaged, wrong or dangerous."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltjax import bridge, models
from ltjax.errors import ConfigError, DataError
from ltjax.models import heads, import_torch
from tests import tiny
from tests.models.weights import save

SMALL = dict(depth=10, width=4)


def classifier(**kwargs):
  return models.Classifier(backbone=models.ResNet(**kwargs), head=heads.Linear(3))


@pytest.fixture(scope="module")
def variables():
  model = classifier(**SMALL)
  return jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))()


NAMES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def torch_name(place: tuple[str, ...]) -> str:
  """("stage2_block1", "norm3", "mean") as "layer2.0.bn3.running_mean"."""
  *block, layer, leaf = place
  layer = dict(stem_conv="conv1", stem_norm="bn1", shortcut_conv="downsample.0", shortcut_norm="downsample.1").get(
      layer, layer.replace("norm", "bn"))
  if block:
    stage, number = re.fullmatch(r"stage(\d+)_block(\d+)", block[0]).groups()
    layer = f"layer{stage}.{int(number) - 1}.{layer}"
  return f"{layer}.{NAMES[leaf]}"


def state_dict(variables, rng=None) -> dict[str, np.ndarray]:
  """PyTorch's state dict of the backbone; with `rng`, with other weights."""
  found = {"fc.weight": np.zeros((3, 32), np.float32), "bn1.num_batches_tracked": np.zeros((), np.int64)}
  for kind in ("params", "batch_stats"):
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables[kind]["backbone"]):
      place = tuple(key.key for key in path)
      value = np.asarray(leaf) if rng is None else rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
      found[torch_name(place)] = value.transpose(3, 2, 0, 1) if leaf.ndim == 4 else value
  return found


def test_the_backbone_is_replaced_and_the_head_is_not(variables, tmp_path):
  tensors = state_dict(variables, np.random.default_rng(0))
  found = import_torch.into(variables, save(tmp_path / "w.safetensors", tensors))
  assert jax.tree.structure(found) == jax.tree.structure(variables)
  tiny.assert_trees_equal(found["params"]["head"], variables["params"]["head"])
  again = state_dict(found)
  for name in set(tensors) - {"fc.weight", "bn1.num_batches_tracked"}:
    np.testing.assert_array_equal(again[name], tensors[name], err_msg=name)


def test_from_data_parallel_and_in_half_precision(variables, tmp_path):
  tensors = state_dict(variables, np.random.default_rng(1))
  expected = import_torch.into(variables, save(tmp_path / "w.safetensors", tensors))
  halves = {f"module.{name}": value.astype(jnp.bfloat16) if value.dtype == np.float32 else value
            for name, value in tensors.items()}
  found = import_torch.into(variables, save(tmp_path / "h.safetensors", halves))
  assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2), found, expected)


def test_misfits_are_counted_and_the_first_are_named(variables, tmp_path):
  tensors = state_dict(variables)
  del tensors["layer3.0.bn2.running_var"]
  tensors["layer9.weight"] = np.zeros(2, np.float32)
  tensors["conv1.weight"] = np.zeros((4, 3, 3, 3), np.float32)
  with pytest.raises(DataError) as caught:
    import_torch.into(variables, save(tmp_path / "w.safetensors", tensors))
  message = str(caught.value)
  for part in ("is a ResNet-10 of torchvision and does not fit", "1 missing (stage3_block1/norm2/var)",
               "1 surplus (layer9.weight)",
               "1 of another shape (conv1.weight gives (3, 3, 3, 4), expected (7, 7, 3, 4))"):
    assert part in message, part
  assert "fc.weight" not in message and "num_batches" not in message and "\n" not in message
  with pytest.raises(DataError, match=r"60 missing \((stage|stem)[^;]*; [^;]*; [^;]*; \.\.\.\)"):
    import_torch.into(variables, save(tmp_path / "w.safetensors", {}))


def test_the_summary_names_the_loaded_weights(variables, tmp_path):
  path = save(tmp_path / "w.safetensors", state_dict(variables))
  count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]["backbone"]))
  assert import_torch.summary(variables, path).startswith(
      f"backbone: {count:,} parameters from {path}, a ResNet-10 of torchvision (SHA-256 ")
  assert import_torch.preprocessing(path) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", 224)


def _cut(path):
  path.write_bytes(path.read_bytes()[:-1])


def _long_header(path):
  path.write_bytes((2**63).to_bytes(8, "little") + path.read_bytes()[8:])


@pytest.mark.parametrize("damage", [
    _cut, _long_header, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"1234567"),
    lambda path: path.write_bytes((3).to_bytes(8, "little") + b"[1]"),
    lambda path: path.write_bytes((2).to_bytes(8, "little") + b"{]")])
def test_a_damaged_file(variables, tmp_path, damage):
  path = tmp_path / "w.safetensors"
  save(path, state_dict(variables))
  damage(path)
  with pytest.raises(DataError, match="w.safetensors is not a complete .safetensors file"):
    import_torch.into(variables, str(path))


@pytest.mark.parametrize("entry", [
    dict(data_offsets=[-4, 12]), dict(data_offsets=[8, 4]), dict(data_offsets=[0, 10**12]), dict(shape=[10**12]),
    dict(shape=["4"]), dict(shape=None), dict(dtype="F33"), dict(data_offsets=None)])
def test_an_inconsistent_header(variables, tmp_path, entry):
  def change(header):
    header["bn1.weight"] |= entry

  path = save(tmp_path / "w.safetensors", state_dict(variables), change)
  with pytest.raises(DataError, match="is not a complete .safetensors file"):
    import_torch.into(variables, path)


def test_many_names_of_the_same_bytes_take_no_memory(variables, tmp_path):
  def change(header):
    header |= {f"copy {k}": dict(header["bn1.weight"]) for k in range(3)}

  path = save(tmp_path / "w.safetensors", state_dict(variables), change)
  with pytest.raises(DataError, match="is not a complete .safetensors file .*after one that ends at"):
    import_torch.into(variables, path)


def test_no_such_file_or_kind_of_file(variables, tmp_path):
  with pytest.raises(DataError, match="no file '/nowhere/w.pth'"):
    import_torch.into(variables, "/nowhere/w.pth")
  (tmp_path / "w.onnx").write_bytes(b"x")
  with pytest.raises(DataError, match=r"none of a \.safetensors, a \.pth and an \.npz"):
    import_torch.into(variables, str(tmp_path / "w.onnx"))


@pytest.mark.usefixtures("no_pictures")
def test_a_run_starts_from_the_file_and_is_refused_before_anything_is_written(tmp_path):
  config = tiny.config("ce_digits", epochs=1)
  config.pretrained = "w.safetensors"
  with pytest.raises(ConfigError, match="pretrained: no file of weights fits backbone=dict"):
    tiny.run(config, tmp_path / "run")
  config.backbone = dict(name="ResNet", depth=10, width=4, stem="cifar")
  config.representation.train, config.representation.batch_norm = ("head/.*",), "eval"
  config.pretrained = str(tmp_path / "w.safetensors")
  with pytest.raises(DataError, match="pretrained: no file"):
    tiny.run(config, tmp_path / "run")
  shapes = jax.eval_shape(lambda: classifier(depth=10, width=4, stem="cifar").init(
      jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False))
  tensors = state_dict(shapes, np.random.default_rng(0))
  save(tmp_path / "w.safetensors", tensors | {"layer5.weight": np.zeros(1, np.float32)})
  with pytest.raises(DataError, match="1 surplus \\(layer5.weight\\)"):
    tiny.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()
  save(tmp_path / "w.safetensors", tensors)
  tiny.run(config, tmp_path / "run")
  _, variables = bridge.finished(tmp_path / "run")
  found = state_dict(variables)
  for name in set(tensors) - {"fc.weight", "bn1.num_batches_tracked"}:
    np.testing.assert_array_equal(found[name], tensors[name], err_msg=name)
  (tmp_path / "w.safetensors").unlink()
  with pytest.raises(DataError, match="pretrained: no file"):
    tiny.run(config, tmp_path / "run")


@pytest.mark.usefixtures("no_pictures")
def test_a_frozen_backbone_that_nothing_has_trained_is_reported(tmp_path, capsys):
  config = tiny.config("ce_digits", epochs=1, backbone=tiny.ONE_CONV)
  tiny.run(config, tmp_path / "trained")
  assert "random start" not in capsys.readouterr().err
  config.representation.train, config.representation.batch_norm = ("head/.*",), "eval"
  tiny.run(config, tmp_path / "frozen")
  assert "representation: frozen layers of the backbone stay at their random start" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "kwargs"), [
    ("resnet18", dict(depth=18)), ("resnet34", dict(depth=34)), ("resnet50", dict(depth=50)),
    ("resnext50_32x4d", dict(depth=50, groups=32, group_width=4))])
@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_features_are_those_of_torchvision(name, kwargs, kind, tmp_path):
  torch, torchvision = pytest.importorskip("torch"), pytest.importorskip("torchvision")
  torch.manual_seed(0)
  network, path = getattr(torchvision.models, name)().eval(), tmp_path / f"w.{kind}"
  for module in network.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
      module.running_mean.normal_(0, 0.1)
      module.running_var.uniform_(0.5, 1.5)
  weights = network.state_dict()
  if kind == "pth":
    torch.save(dict(state_dict=weights), path)
  else:
    save(path, {key: value.numpy() for key, value in weights.items()})
  images, network.fc = torch.randn(2, 3, 64, 64), torch.nn.Identity()
  with torch.no_grad():
    expected = network(images).numpy()
  model, inputs = classifier(**kwargs), jnp.asarray(images.numpy().transpose(0, 2, 3, 1))
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), inputs, train=False))
  loaded = import_torch.into(shapes, str(path))
  variables = {kind: loaded[kind]["backbone"] for kind in loaded}
  maps = jax.jit(lambda v, x: model.backbone.clone(parent=None).apply(v, x, train=False))(variables, inputs)
  np.testing.assert_allclose(maps.mean(axis=(1, 2)), expected, rtol=1e-4, atol=1e-4)
