"""Tunings: exact when fresh, as many parameters as published, and the right ones trained."""

import re

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltjax import models, optim
from ltjax.config import bind
from ltjax.errors import ConfigError
from ltjax.models import heads, tuning

BACKBONES = dict(
    ViT=lambda **kwargs: models.ViT(width=48, depth=2, heads=3, patch=14, style="dinov2", **kwargs),
    ResNet=lambda **kwargs: models.ResNet(depth=10, width=4, **kwargs),
    ResNeXt=lambda **kwargs: models.ResNet(depth=50, width=4, groups=2, group_width=2, **kwargs),
    ResNetCIFAR=lambda **kwargs: models.ResNetCIFAR(depth=8, widths=(4, 4, 8), **kwargs),
    EfficientNet=lambda **kwargs: models.EfficientNet(**kwargs))
ADDING = dict(adaptformer=tuning.AdaptFormer(4), lora=tuning.LoRA(2), ssf=tuning.SSF())
NOT_ADDING = dict(bias_only=tuning.BiasOnly(), norm_only=tuning.NormOnly(), last_blocks=tuning.LastBlocks(1),
                  full=tuning.Full(0.5))
FITTING = [(name, tuned) for name in BACKBONES for tuned in (
    {**ADDING, **NOT_ADDING, "vpt": tuning.VPT(3)} if name == "ViT" else {"lora": 0, **NOT_ADDING})]
IMAGES = jax.random.normal(jax.random.key(1), (2, 56, 56, 3))
ALL = {**ADDING, **NOT_ADDING, "vpt": tuning.VPT(3)}


def shapes_of(backbone, side=56):
  return jax.eval_shape(lambda: backbone.init(jax.random.key(0), jnp.zeros((1, side, side, 3)), train=False))


def paths(backbone, side=56) -> dict[str, int]:
  return {f"backbone/{path}": leaf.size
          for path, leaf in flax.traverse_util.flatten_dict(shapes_of(backbone, side)["params"], sep="/").items()}


@pytest.mark.parametrize(("name", "tuned"), [
    *(("ViT", tuned) for tuned in ADDING), *((name, "lora") for name in ("ResNet", "ResNetCIFAR"))])
def test_a_fresh_tuning_is_exactly_the_identity(name, tuned):
  plain, changed = BACKBONES[name](), BACKBONES[name](tuning=ALL[tuned])
  variables = jax.jit(lambda: changed.init(jax.random.key(0), IMAGES, train=False))()
  own = shapes_of(plain)
  flat = flax.traverse_util.flatten_dict(variables)
  stripped = flax.traverse_util.unflatten_dict({key: flat[key] for key in flax.traverse_util.flatten_dict(own)})
  drawn = jax.jit(lambda: plain.init(jax.random.key(0), IMAGES, train=False))()
  jax.tree.map(np.testing.assert_array_equal, stripped, drawn)  # the trunk is drawn as without it
  expected = jax.jit(lambda v: plain.apply(v, IMAGES, train=False))(stripped)
  found = jax.jit(lambda v: changed.apply(v, IMAGES, train=False))(variables)
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("name", "tuned"), FITTING)
def test_each_tuning_trains_its_parameters(name, tuned):
  """Every pattern matches, and a tuning that adds parameters trains exactly those."""
  backbone, plain = BACKBONES[name](tuning=ALL[tuned]), paths(BACKBONES[name]())
  train, lr_factors = tuning.trainable(backbone)
  params = dict(backbone=shapes_of(backbone)["params"], head=dict(kernel=jnp.zeros(1)))
  factors = optim.learning_rate_factors(params, train, lr_factors)
  flat = flax.traverse_util.flatten_dict(factors, sep="/")
  trained = {path for path, factor in flat.items() if factor is not None} - {"head/kernel"}
  assert trained and flat["head/kernel"] == 1
  if tuned in NOT_ADDING:
    assert paths(backbone) == plain and (trained < plain.keys() or tuned == "full")
  else:
    assert trained == paths(backbone).keys() - plain.keys()
  if tuned == "bias_only":
    assert all(path.endswith("bias") for path in trained)


@pytest.mark.parametrize("name", BACKBONES)
def test_groups_cover_each_parameter_once(name):
  backbone = BACKBONES[name]()
  for path in paths(backbone):
    assert sum(bool(re.fullmatch(group, path)) for group in backbone.layers()) == 1, path


def test_layer_wise_decay():
  backbone = BACKBONES["ViT"](tuning=tuning.Full(0.5))
  _, factors = tuning.trainable(backbone)
  found = {path: next(factor for group, factor in factors if re.fullmatch(group, path)) for path in (
      "backbone/patch/kernel", "backbone/block1/fc1/bias", "backbone/block2/fc1/bias", "backbone/norm/scale")}
  assert list(found.values()) == [0.125, 0.25, 0.5, 1.0]
  assert tuning.trainable(BACKBONES["ViT"](tuning=tuning.Full(1.0))) == (("head/.*", "backbone/.*"), ())


def test_last_blocks():
  train, _ = tuning.trainable(BACKBONES["ViT"](tuning=tuning.LastBlocks(1)))
  assert train == ("head/.*", "backbone/block2/.*", "backbone/norm/.*")
  with pytest.raises(ConfigError, match="last_blocks: ViT has 2 blocks, got blocks=3"):
    tuning.trainable(BACKBONES["ViT"](tuning=tuning.LastBlocks(3)))


@pytest.mark.parametrize(("tuned", "count"), [
    (tuning.AdaptFormer(32), 617_868), (tuning.LoRA(4), 147_456), (tuning.VPT(10), 92_160),
    (tuning.VPT(10, deep=False), 7_680), (tuning.SSF(), 205_824)])
def test_parameters_added_to_vit_b(tuned, count):
  """AdaptFormer: 12 (2 768 + 768 32 + 32 + 32 768 + 768 + 1); LoRA: 12 (4 768 4); VPT: 12 10 768; SSF: 2 (768 + 12 (2
  768 + 3 768 + 768 + 4 768 + 768) + 768)."""
  added = paths(models.ViT(tuning=tuned), 32).items() - paths(models.ViT(), 32).items()
  assert sum(size for _, size in added) == count


@pytest.mark.parametrize(("classes", "width"), [(2, 1), (100, 4), (365, 8), (1000, 32), (8142, 256)])
def test_width_of_adapters(classes, width):
  assert tuning.AdaptFormer().for_classes(classes).width == width
  assert tuning.AdaptFormer(7).for_classes(classes).width == 7
  assert tuning.LoRA().for_classes(classes) == tuning.LoRA()


def test_prompts_are_within_their_limit_and_change_the_features():
  for deep, names in ((True, ["prompts_block1", "prompts_block2"]), (False, ["prompts"])):
    backbone = BACKBONES["ViT"](tuning=tuning.VPT(5, deep=deep))
    variables = jax.jit(lambda backbone=backbone: backbone.init(jax.random.key(0), IMAGES, train=False))()
    found = [name for name in variables["params"] if name.startswith("prompts")]
    assert sorted(found) == names
    prompts, limit = variables["params"][names[0]], np.sqrt(6 / (3 * 14**2 + 48))
    assert prompts.shape == (5, 48) and 0.9 * limit < np.abs(prompts).max() <= limit
    moved = jax.tree.map(lambda leaf: leaf, variables)
    moved["params"][names[-1]] = -moved["params"][names[-1]]
    apply = jax.jit(lambda v, backbone=backbone: backbone.apply(v, IMAGES, train=False))
    assert (apply(variables) != apply(moved)).any()


def test_gradients_reach_parameters_that_start_at_zero():
  for name, tuned in (("ViT", ADDING["adaptformer"]), ("ViT", ADDING["lora"]), ("ResNetCIFAR", ADDING["lora"])):
    backbone = BACKBONES[name](tuning=tuned)
    variables = jax.jit(lambda backbone=backbone: backbone.init(jax.random.key(0), IMAGES, train=False))()
    rest = {kind: tree for kind, tree in variables.items() if kind != "params"}
    grads = jax.jit(jax.grad(lambda params, backbone=backbone, rest=rest: jnp.sum(jnp.square(
        backbone.apply(dict(params=params, **rest), IMAGES, train=False)))))(variables["params"])
    ups = {path: leaf for path, leaf in flax.traverse_util.flatten_dict(grads, sep="/").items()
           if re.search(r"up/kernel|_up/kernel", path)}
    assert ups and all(np.abs(leaf).max() > 0 for leaf in ups.values())


def test_a_config_names_it():
  call = bind.bind(dict(name="ViT", width=48, depth=2, heads=3, patch=14, tuning=dict(name="adaptformer", width=4)),
                   bind.public(models), "backbone")
  assert call().tuning == tuning.AdaptFormer(4)
  with pytest.raises(ConfigError, match=r"backbone.tuning.name: there is no 'adapter'"):
    bind.bind(dict(name="ViT", tuning=dict(name="adapter")), bind.public(models), "backbone")
  with pytest.raises(ConfigError, match=r"backbone.tuning.width: expected an integer of at least 1, got 0"):
    bind.bind(dict(name="ViT", tuning=dict(name="adaptformer", width=0)), bind.public(models), "backbone")


def test_a_tuning_that_does_not_fit_is_refused():
  for name in ("ResNet", "EfficientNet", "ResNetCIFAR"):
    for tuned in ("adaptformer", "vpt", "ssf"):
      with pytest.raises(ConfigError, match=rf"{name}: \w+ is for ViT; for {name} take one of bias_only, full, last"):
        BACKBONES[name](tuning=ALL[tuned])
  with pytest.raises(ConfigError, match="train='tuning' needs a backbone with one"):
    tuning.trainable(models.ViT())
  with pytest.raises(ConfigError, match=r"rank must be in \[1, inf\), got 0"):
    tuning.LoRA(0)
  with pytest.raises(ConfigError, match="without a width it needs the number of classes"):
    shapes_of(BACKBONES["ViT"](tuning=tuning.AdaptFormer()))


def test_a_tuned_classifier_has_its_parameters_under_the_backbone():
  model = models.Classifier(backbone=BACKBONES["ViT"](tuning=tuning.AdaptFormer(4)), head=heads.Cosine(3))
  params = jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGES, train=False))["params"]
  assert params["backbone"]["block1"]["adapter"]["down"]["kernel"].shape == (48, 4)
