"""ResNet and ResNeXt: sizes, PyTorch's arithmetic, the stems, a module inserted before the last stage."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltjax import models
from ltjax.augment import features
from ltjax.errors import ConfigError
from ltjax.models import afa, heads

X = dict(groups=32, group_width=4)


def _shapes(images=(2, 64, 64, 3), **kwargs):
  """Shapes and types of (variables, maps, updated statistics), without computing anything."""
  model = models.ResNet(**kwargs)

  def run():
    variables = model.init(jax.random.key(0), jnp.zeros(images), train=False)
    return variables, *model.apply(variables, jnp.zeros(images), train=True, mutable=["batch_stats"])

  return jax.eval_shape(run)


@pytest.mark.parametrize(("kwargs", "count"), [
    (dict(depth=10), 5_418_792), (dict(depth=18), 11_689_512), (dict(depth=34), 21_797_672),
    (dict(depth=50), 25_557_032), (dict(depth=101), 44_549_160),
    (dict(depth=152), 60_192_808), (dict(depth=50, **X), 25_028_904), (dict(depth=101, **X), 44_177_704),
    (dict(depth=152, **X), 59_951_400)])
def test_parameter_count(kwargs, count):
  model = models.Classifier(backbone=models.ResNet(**kwargs), head=heads.Linear(1000))
  params = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)), train=False))["params"]
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


@pytest.mark.parametrize(("images", "kwargs", "maps"), [
    ((2, 224, 224, 3), dict(depth=50), (7, 7, 2048)), ((2, 32, 32, 3), dict(depth=50, stem="cifar", **X), (4, 4, 2048)),
    ((2, 32, 32, 3), dict(depth=10, stem="cifar"), (4, 4, 512)), ((1, 65, 40, 1), dict(depth=10, width=4), (3, 2, 32)),
    ((2, 64, 64, 3), dict(depth=50, width=4, groups=2, group_width=6), (2, 2, 128))])
def test_map_shape(images, kwargs, maps):
  _, out, _ = _shapes(images, **kwargs)
  assert out.shape == (images[0], *maps)


def test_the_third_stage_of_small_images_is_8_by_8():
  variables, _, _ = _shapes((2, 32, 32, 3), depth=50, stem="cifar", insert=afa.AFA(), **X)
  assert variables["params"]["insert"]["query"].shape == (8, 8, 8, 8)
  variables, _, _ = _shapes((2, 224, 224, 3), depth=50, insert=afa.AFA(), **X)
  assert variables["params"]["insert"]["query"].shape == (14, 14, 14, 14)


def test_bfloat16_keeps_parameters_and_statistics_in_float32():
  variables, maps, updated = _shapes(depth=50, width=4, dtype=jnp.bfloat16)
  assert maps.dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves((variables, updated))} == {jnp.dtype("float32")}


# -- PyTorch's arithmetic, written out in NumPy -----------------------------------------------------------------------


def _conv(x, kernel, stride, groups=1):
  size, inside, outside = kernel.shape[0], kernel.shape[2], kernel.shape[3] // groups
  x = np.pad(x, ((0, 0), (size // 2, size // 2), (size // 2, size // 2), (0, 0)))
  h, w = ((length - size) // stride + 1 for length in x.shape[1:3])
  out = np.zeros((len(x), h, w, kernel.shape[3]))
  for i, j in np.ndindex(size, size):
    at = x[:, i:i + stride * h:stride, j:j + stride * w:stride]
    for g in range(groups):
      places = slice(g * outside, (g + 1) * outside)
      out[..., places] += at[..., g * inside:(g + 1) * inside] @ kernel[i, j][:, places]
  return out


def _norm(x, params, stats):
  return (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["scale"] + params["bias"]


def _pool(x):
  x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
  h, w = ((length - 3) // 2 + 1 for length in x.shape[1:3])
  return np.max([x[:, i:i + 2 * h:2, j:j + 2 * w:2] for i, j in np.ndindex(3, 3)], axis=0)


def _reference(variables, x, depth, stem, groups):
  params, stats = variables["params"], variables["batch_stats"]

  def layer(x, path, stride, groups=1, kind=""):
    inside = (tree[path[0]] if len(path) > 1 else tree for tree in (params, stats))
    params_, stats_ = inside
    conv, norm = (path[-1] + f"{name}{kind}" for name in ("conv", "norm"))
    return _norm(_conv(x, params_[conv]["kernel"], stride, groups), params_[norm], stats_[norm])

  x = np.maximum(layer(x, ("stem_",), 1 if stem == "cifar" else 2), 0)
  x = x if stem == "cifar" else _pool(x)
  for stage in range(1, 5):
    block = 1
    while (name := f"stage{stage}_block{block}") in params:
      stride = 2 if stage > 1 and block == 1 else 1
      strides = (stride, 1) if depth == 10 else (1, stride, 1)
      y = x
      for number, step in enumerate(strides, start=1):
        y = layer(y, (name, ""), step, groups if len(strides) == 3 and number == 2 else 1, str(number))
        y = np.maximum(y, 0) if number < len(strides) else y
      if "shortcut_conv" in params[name]:
        x = layer(x, (name, "shortcut_"), stride)
      x, block = np.maximum(x + y, 0), block + 1
  return x


@pytest.mark.parametrize(("kwargs", "size"), [
    (dict(depth=10, width=2), (33, 40)), (dict(depth=10, width=2, stem="cifar"), (12, 9)),
    (dict(depth=50, width=2, groups=2, group_width=3), (33, 40))])
def test_forward_is_the_one_of_torchvision(kwargs, size):
  """Its definition, in float64: https://github.com/pytorch/vision, models/resnet.py."""
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):
    model, images = models.ResNet(**kwargs, dtype=jnp.float64), rng.normal(size=(2, *size, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: rng.uniform(0.5, 1.5, leaf.shape) if path[-1].key in ("var", "scale")
        else rng.normal(size=leaf.shape) * (np.prod(leaf.shape[:-1]) ** -0.5 if leaf.ndim > 1 else 0.1), shapes)
    found = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
  expected = _reference(variables, images, kwargs["depth"], kwargs.get("stem"), kwargs.get("groups", 1))
  assert found.shape == expected.shape and expected.any()
  np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_initial_convolutions_are_normal_by_fan_out():
  params = jax.jit(lambda: models.ResNet(depth=10, width=16, stem="cifar").init(
      jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False))()["params"]
  kernel = params["stage4_block1"]["conv1"]["kernel"] / np.sqrt(2 / (9 * 128))
  np.testing.assert_allclose([kernel.mean(), kernel.std()], [0, 1], atol=0.02)
  assert np.abs(kernel).max() > 3.5


# -- a module before the last stage ------------------------------------------------------------------------------------


BACKBONES = {
    "ResNet": lambda insert: models.ResNet(depth=10, width=4, stem="cifar", insert=insert),
    "ResNetCIFAR": lambda insert: models.ResNetCIFAR(depth=8, widths=(4, 4, 8), insert=insert)}
every_backbone = pytest.mark.parametrize("make", BACKBONES.values(), ids=BACKBONES)
IMAGES = jax.random.normal(jax.random.key(1), (6, 16, 16, 3))
PLAN = features.plan(jnp.array([0, 1, 1, 0, 1, 1]), key=jax.random.key(2), num_classes=4)


@pytest.fixture(scope="module")
def forward():
  """(backbone, compiled training forward of images, or images and a plan) by name; compiled once."""
  made = {}

  def get(make):
    if make not in made:
      model = make(afa.AFA())
      variables = jax.jit(lambda: model.init(jax.random.key(0), IMAGES, train=False))()
      made[make] = variables, jax.jit(
          lambda variables, images: model.apply(variables, images, train=True, mutable=["batch_stats"]))
    return made[make]

  return get


@every_backbone
def test_generated_rows_follow_the_images(make, forward):
  variables, apply = forward(make)
  plain, _ = apply(variables, IMAGES)
  maps, _ = apply(variables, features.Generating(IMAGES, PLAN))
  assert maps.shape == (6 + len(PLAN.valid), *plain.shape[1:])
  assert (maps[:6] != plain).any()  # the last stage's statistics are those of all rows


@every_backbone
def test_slots_that_are_not_valid_are_outside_the_statistics(make, forward):
  """A plan cut to its valid slots gives the same statistics."""
  variables, apply = forward(make)
  total = int(PLAN.valid.sum())
  assert 0 < total < len(PLAN.valid)
  maps, updated = apply(variables, features.Generating(IMAGES, PLAN))
  short, updated_short = apply(variables, features.Generating(IMAGES, features.Plan(*(part[:total] for part in PLAN))))
  np.testing.assert_allclose(maps[:6 + total], short, rtol=1e-4, atol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), updated, updated_short)


@every_backbone
def test_evaluation_generates_nothing_and_sizes_are_checked(make, forward):
  variables, _ = forward(make)
  assert make(afa.AFA()).apply(variables, IMAGES[:2], train=False).shape[0] == 2
  with pytest.raises(ConfigError, match="AFA was built for maps of . x ., got"):
    make(afa.AFA()).apply(variables, IMAGES[:, :8], train=False)


@pytest.mark.parametrize(("kwargs", "message"), [
    (dict(depth=35), "depth must be one of 10, 18, 34, 50, 101, 152, got 35"),
    (dict(stem="cifr"), "stem must be one of imagenet, cifar, got 'cifr'"),
    (dict(width=0), r"width must be in \[1, inf\), got 0"),
    (dict(bn_groups=0), r"bn_groups must be in \[1, inf\), got 0"),
    (dict(depth=10, groups=2, group_width=4), "basic blocks of depth 10 have no groups"),
    (dict(groups=32), "groups=32 needs group_width")])
def test_wrong_options(kwargs, message):
  with pytest.raises(ConfigError, match=message):
    models.ResNet(**kwargs)
