"""Class activation maps of every head with class vectors, on images of any size, and their picture."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ltjax import models
from ltjax.models import heads
from ltjax.report import activation_maps as cams
from ltjax.report.figures import features, style
from tests import tiny

COUNTS = (500, 7, 300, 90, 30)


def model(name="Linear", **options):
  return models.Classifier(backbone=tiny.OneConv(), head=getattr(heads, name)(num_classes=5, **options))


def look(found, shape=(3, 10, 14, 3), seed=0):
  rng = np.random.default_rng(seed)
  images, labels = rng.integers(0, 256, shape, dtype=np.uint8), np.array([1, 0, 4])
  shapes = jax.eval_shape(lambda: found.init(jax.random.key(0), jnp.zeros(shape), train=False))
  variables = jax.tree.map(lambda leaf: np.float32(rng.standard_normal(leaf.shape)) ** 2, dict(shapes))
  seen = cams.activations(found, variables, images, labels, mean=(0.5,) * 3, std=(0.2,) * 3)
  return images, labels, variables, seen


def camc(**options):
  return dict(scale=16.0, threshold=100, num_prototypes=2, class_counts=COUNTS) | options


@pytest.mark.parametrize(("name", "options"), [
  ("Linear", {}), ("Cosine", {}), ("NormalizedLinear", dict(scale=0.5)), ("LearnableScale", {}), ("TDE", {}),
  ("CAMC", camc())])
def test_the_mean_of_a_map_is_the_product_of_class_vector_and_feature(name, options):
  found = model(name, **options)
  images, labels, variables, seen = look(found)
  pixels = (images / np.float32(255) - np.float32(0.5)) / np.float32(0.2)
  logits, features = found.apply(variables, pixels, train=False)
  np.testing.assert_array_equal(seen.predictions, logits.argmax(-1))
  plain = seen.maps["class activation map"]
  assert plain.shape == (3, 5, 7) and seen.images is images and seen.labels is labels
  products = (features @ variables["params"]["head"]["kernel"])[np.arange(3), labels]
  np.testing.assert_allclose(plain.mean((1, 2)), products, rtol=1e-4)
  assert list(seen.maps) == ["class activation map", *(["calibrated"] if name == "CAMC" else [])]


@pytest.mark.parametrize("crops", [None, 2])
def test_only_the_tail_is_calibrated(crops):
  found = model("CAMC", **camc(crops=crops))
  images, labels, variables, seen = look(found)
  plain, calibrated = seen.maps.values()
  assert plain.shape == ((3, 5, 7) if crops is None else (3, 2, 2))
  np.testing.assert_array_equal(calibrated[1], plain[1])  # class 0 has 500 images
  pixels = (images / np.float32(255) - np.float32(0.5)) / np.float32(0.2)
  maps = found.apply(variables, pixels, method="maps")
  weights = found.head.reinforcement(variables["params"]["head"], maps)
  rows = [found.head.tail.tolist().index(label) for label in (1, 4)]
  for image, row in zip((0, 2), rows, strict=True):
    np.testing.assert_allclose(calibrated[image], plain[image] * weights[image, :, :, row], rtol=1e-4)
    assert (calibrated[image] >= plain[image]).all() and (calibrated[image] <= 2.001 * plain[image]).all()


class Squares(nn.Module):
  """A head with class vectors that are not in the features' space."""

  num_classes: int

  @nn.compact
  def __call__(self, features, *, train=False):
    return features**2 @ self.param("kernel", nn.initializers.ones, (features.shape[-1] + 1, 5))[1:]


def test_a_head_without_class_vectors_has_no_maps():
  assert look(models.Classifier(backbone=tiny.OneConv(), head=Squares(5)))[-1] is None


def test_a_stage_shows_a_test_image_of_each_of_the_smallest_classes():
  config = tiny.config("ce_digits", backbone=tiny.ONE_CONV)
  dataset = tiny.dataset(config)
  dataset = dataset._replace(test=tuple(part[dataset.test[1] != 9] for part in dataset.test))
  (stage,) = tiny.stages(config, dataset).values()
  seen = cams.of_stage(stage, stage.init(), number=3)
  assert seen.labels.tolist() == [8, 7, 6]  # the smallest class has no test image
  for image, label in zip(seen.images, seen.labels, strict=True):
    np.testing.assert_array_equal(image, dataset.test[0][dataset.test[1] == label][0])


@pytest.mark.parametrize("shape", [(3, 8, 8, 1), (3, 60, 40, 3)])
def test_the_picture_has_a_column_per_image_and_a_row_per_map(shape, tmp_path):
  rng = np.random.default_rng(0)
  maps = {name: np.float32(rng.standard_normal((3, 2, 2))) for name in cams.NAMES}
  images, sizes = rng.integers(0, 256, shape, dtype=np.uint8), []
  for kinds in (maps, dict(list(maps.items())[:1])):
    style.save(features.activation_maps(cams.Activations(images, np.array([0, 1, 2]), np.array([0, 2, 2]), kinds),
                                        ("cat", "dog", "cow")), tmp_path / "maps.png")
    with Image.open(tmp_path / "maps.png") as picture:
      assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 100
      sizes.append(picture.size)
  (width, tall), (same, short) = sizes
  assert width == same and short < tall
