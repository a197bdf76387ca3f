"""Any loss on any tuning: each pair traces its training step, and a few, in which everything occurs, train."""

import re

import jax
import numpy as np
import pytest

from ltjax import optim, recipes
from ltjax.config import load
from ltjax.errors import ConfigError
from tests import tiny

LOSSES = ("logit_adjustment", "cross_entropy", "resampling", "gcl", "kps", "ldam", "fbl", "norm_fc", "camc")
TUNINGS = ("adaptformer", "vpt_deep", "vpt_shallow", "lora", "ssf", "bias_only", "norm_only", "last_blocks", "full",
           "none")
SMALL = dict(ViT=dict(name="ViT", width=12, depth=1, heads=2, patch=4),
             ResNetCIFAR=dict(name="ResNetCIFAR", depth=8, widths=(4, 4, 8)))


def config(loss: str, tuning: str, network: str = "ViT"):
  """The recipe of lift_cifar on digits, with a network of a few hundred parameters, for a few steps a stage."""
  given = recipes.tuned(f"loss={loss},tuning={tuning},epochs=2,five_crops=false")
  found = recipes.fine_tuned(recipes.digits_lt(imbalance=5), **given)
  with found.unlocked():
    same = {key: found.backbone[key] for key in ("pool", "tuning") if key in found.backbone}
    found.backbone = SMALL[network] | same
    if tuning == "adaptformer":
      found.backbone.tuning = dict(name="adaptformer", width=4)  # the width for ten classes is 1, which may be dead
  found.pretrained, found.test_crops, found.augment, found.steps_per_call = "", "", (), 1
  for stage in found.stages:
    found[stage].batch_size = 340
    found[stage].head_init = None
  if loss == "camc":
    found.classifier.head.num_prototypes = 2
  return found


@pytest.fixture(scope="module")
def dataset():
  return tiny.dataset(config("cross_entropy", "none"))


@pytest.mark.parametrize("tuning", TUNINGS)
def test_each_loss_with_each_tuning(tuning, dataset):
  for loss in LOSSES:
    for stage in tiny.stages(config(loss, tuning), dataset).values():
      after, _ = jax.eval_shape(stage.train_steps[1], stage.like, stage.data, *stage.batches(0, 1))
      assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(
          lambda leaf: (leaf.shape, leaf.dtype), stage.like)


@pytest.mark.parametrize(("loss", "tuning"), [
    (LOSSES[number % len(LOSSES)], tuning) for number, tuning in enumerate(TUNINGS)])
def test_two_steps_move_what_is_trained_alone(loss, tuning, dataset):
  stages = tiny.stages(config(loss, tuning), dataset)
  for stage in stages.values():
    variables = stage.init()
    if "prototypes" in (head := variables["params"]["head"]):  # the stage before would give them
      head["prototypes"] = jax.random.normal(jax.random.key(0), head["prototypes"].shape)
    state = stage.make_state(variables)
    before = optim.flat(jax.device_get(state.params))
    before = {path: np.array(leaf) for path, leaf in before.items()}
    for step in range(2):
      state, finite = stage.train_steps[1](state, stage.data, *stage.batches(step, 1))
      assert finite
    after, factors = optim.flat(jax.device_get(state.params)), optim.flat(stage.optimizer.factors)
    for path, leaf in before.items():
      assert np.array_equal(leaf, after[path]) == (factors[path] is None), path


@pytest.mark.parametrize("tuning", ["lora", "bias_only", "norm_only", "last_blocks", "full"])
def test_tunings_of_convolutional_networks(tuning, dataset):
  (stage,) = tiny.stages(config("gcl", tuning, "ResNetCIFAR"), dataset).values()
  jax.eval_shape(stage.train_steps[1], stage.like, stage.data, *stage.batches(0, 1))


@pytest.mark.parametrize(("text", "message"), [
    ("loss=glc", "the config's argument loss: expected one of .* got 'glc' (did you mean 'gcl'?)"),
    ("tuning=vpt", "the config's argument tuning: expected one of .* got 'vpt' (did you mean 'vpt_deep'?)"),
    ("backbone=vit", "the config's argument backbone: expected one of .* got 'vit'"),
    ("start=texts", "the config's argument start: expected one of .* got 'texts' (did you mean 'text'?)")])
def test_what_is_none_is_named(text, message):
  pattern = re.escape(message).replace(re.escape(".*"), ".*")
  with pytest.raises(ConfigError, match=pattern):
    recipes.fine_tuned(recipes.digits_lt(imbalance=5), **recipes.tuned(text))


def test_recipes_differ_in_what_their_papers_do():
  lift, plus, gnm = (load.read(f"configs/lift_inat.py:{recipe}") for recipe in ("lift", "lift_plus", "gnm_pt"))
  assert [config.representation.epochs for config in (lift, plus, gnm)] == [20, 15, 70]
  assert [config.representation.lr.base for config in (lift, plus, gnm)] == [0.01, 0.02, 0.01]
  assert [config.pretrained for config in (lift, gnm)] == ["clip_b16.safetensors", "in21k_b16.safetensors"]
  assert (gnm.backbone.tuning.to_dict(), gnm.representation.adjust.name) == (
      dict(name="vpt", number=10, deep=True), "gcl")
  assert plus.augment == (dict(name="random_resized_crop", size=224, ratio=(1.0, 1.0), final_area=1.0),)
  assert lift.test_crops == "five" and load.read("configs/lift_inat.py:five_crops=false").test_crops == "center"
