"""BBN: two batches per step, drawn and augmented separately, with a weight that moves from one to the other."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltjax import losses, models, recipes
from ltjax.augment.batches import Branches
from ltjax.config import parse
from ltjax.errors import ConfigError
from tests import tiny

SHARE = dict(name="parabolic", start=1.0, end=0.0)
BRANCHES = dict(name="two_branches", sampler=dict(name="reverse"), share=SHARE)
BBN = dict(name="ResNetBBN", depth=14, widths=(2, 2, 4))


class TwoConvs(nn.Module):
  """Two branches that compile in a moment, where the network itself says nothing."""

  takes_branches = True

  @nn.compact
  def __call__(self, images, *, train):
    one, two = (nn.Sequential([nn.Conv(3, (3, 3), strides=2), nn.BatchNorm(use_running_average=not train), nn.relu])
                for _ in range(2))
    if isinstance(images, Branches):
      share = images.share
      return jnp.concatenate([share * one(images.conventional), (1 - share) * two(images.rebalancing)], axis=-1)
    return jnp.concatenate([one(images), two(images)], axis=-1) / 2


def config(*transforms, backbone=BBN, **overrides):
  """The cross entropy of the digits as BBN; the arguments replace the transform."""
  return tiny.config("ce_digits", epochs=4, backbone=backbone,
                     **{"representation__transforms": transforms or (BRANCHES,)} | overrides)


@pytest.fixture(scope="module")
def dataset():
  return tiny.dataset(config())


@pytest.fixture(scope="module")
def stage(dataset):
  """BBN without weight decay, with running counts to see the weights of the labels."""
  return tiny.stages(config(representation__adjust=dict(name="seesaw", p=0.0, q=0.0),
                            representation__optimizer=recipes.sgd(0.0)), dataset)["representation"]


def start(stage):
  return stage.make_state(stage.init())


def test_the_share_follows_its_schedule(stage):
  per_epoch = stage.order.steps_per_epoch
  shares = [stage.batches(epoch * per_epoch, 1)[1]["transforms"][0]["share"] for epoch in range(4)]
  np.testing.assert_allclose(shares, [1 - (epoch / 4) ** 2 for epoch in range(4)])
  assert shares[0].dtype == np.float32


def test_a_step_is_the_loss_of_both_labels_by_their_weights(stage):
  at = 2 * stage.order.steps_per_epoch
  state, (indices, scalars) = start(stage), stage.batches(at, 1)
  assert indices.shape == (128, 2) and float(scalars["transforms"][0]["share"]) == 0.75
  variables = jax.device_get(dict(params=state.params, batch_stats=state.batch_stats))
  batch = stage.parts.transform(stage.data, indices, jax.random.fold_in(stage.data["key"], 0), scalars)
  (labels, a, *_), (others, b, *_) = batch.terms
  assert isinstance(batch.inputs, Branches)
  np.testing.assert_array_equal(labels, stage.dataset.train[1][stage.order.batch(at)[:, 0]])
  np.testing.assert_array_equal(others, stage.dataset.train[1][stage.order.batch(at)[:, 1]])
  (logits, _), _ = jax.jit(lambda v, x: stage.model.apply(v, x, train=True, mutable=["batch_stats"]))(
      variables, batch.inputs)
  after, _ = stage.train_steps[1](state, stage.data, indices, dict(scalars, step=np.int32(0)))
  expected = a * losses.cross_entropy(logits, labels).sum() + b * losses.cross_entropy(logits, others).sum()
  np.testing.assert_allclose(after.window["loss"], expected, rtol=1e-5)
  assert float(after.window["examples"]) == 128
  seen = 0.75 * np.bincount(labels, minlength=10) + 0.25 * np.bincount(others, minlength=10)
  np.testing.assert_allclose(after.loss_state["seen_counts"], seen, rtol=1e-5)
  np.testing.assert_allclose(seen.sum(), 128, rtol=1e-6)
  for block in ("cb_block", "rb_block"):
    new, old = (tree["backbone"][block]["conv1"]["kernel"] for tree in (after.params, variables["params"]))
    assert (np.asarray(new) != old).any(), block


def test_at_a_weight_of_one_the_second_branch_learns_nothing(stage):
  state, (indices, scalars) = start(stage), stage.batches(0, 1)
  before = jax.device_get(state.params)
  after, _ = stage.train_steps[1](state, stage.data, indices, scalars)
  assert float(scalars["transforms"][0]["share"]) == 1
  tiny.assert_trees_equal(after.params["backbone"]["rb_block"], before["backbone"]["rb_block"])


def test_evaluation_is_the_plain_forward(stage, dataset):
  variables = stage.init()
  images = (jnp.asarray(dataset.test[0]) / 255 - jnp.asarray(dataset.mean)) / jnp.asarray(dataset.std)
  logits, _ = jax.jit(lambda images: stage.model.apply(variables, images, train=False))(images)
  correct = int((logits.argmax(axis=-1) == dataset.test[1]).sum())
  assert abs(int(np.trace(stage.evaluators["test"](variables))) - correct) <= 1


def test_several_steps_per_call_equal_single_steps(dataset):
  stage = tiny.stages(config(backbone=dict(name="tests.test_bbn:TwoConvs"), steps_per_call=2,
                             representation__adjust=dict(name="seesaw")), dataset)["representation"]
  one, two = (start(stage).replace(step=jnp.int32(4)) for _ in range(2))
  indices, _ = stage.batches(4, 2)
  assert indices.shape == (2, 128, 2)
  np.testing.assert_array_equal(indices[1], stage.order.batch(5))
  for step in (4, 5):
    one, _ = stage.train_steps[1](one, stage.data, *stage.batches(step, 1))
  two, _ = stage.train_steps[2](two, stage.data, *stage.batches(4, 2))
  assert int(two.step) == 6
  np.testing.assert_allclose(two.window["loss"], one.window["loss"], rtol=1e-4)
  np.testing.assert_allclose(two.loss_state["seen_counts"], one.loss_state["seen_counts"], rtol=1e-5)


def block(**changes):
  return {key: value for key, value in (BRANCHES | changes).items() if value is not None}


REFUSED = [
    ((), dict(backbone=dict(name="ResNetCIFAR", depth=8)), "representation.transforms: two_branches makes two batches, "
                                                           "but the backbone 'ResNetCIFAR' takes one"),
    ((), dict(representation__mixup=1.0), "representation.mixup: two_branches makes two batches, which mixup would"),
    ((block(share=None),), {}, r"representation.transforms\[0\]: two_branches needs share"),
    ((block(sampler=None),), {}, r"representation.transforms\[0\]: two_branches needs sampler="),
    ((block(shares=0.5),), {}, r"representation.transforms\[0\].shares: two_branches has no such argument "
                               r"\(did you mean 'share'\?\)"),
    ((block(sampler=dict(name="revers")),), {}, r"representation.transforms\[0\].sampler.name: there is no 'revers' "
                                                r"\(did you mean 'reverse'\?\)"),
    ((block(share=1.5),), {}, r"representation.transforms\[0\].share: expected a number in \[0, 1\]"),
    ((block(share=dict(name="linear", end=2.0)),), {}, r"transforms\[0\].share in epoch 2: expected"),
    ((block(share="half"),), {}, r"representation.transforms\[0\].share: expected a number"),
    (({},), {}, r"representation.transforms\[0\]: expected dict\(name="),
    ((block(), block()), {}, r"representation.transforms\[1\]: two_branches joins batches and so must be the first"),
]


@pytest.mark.parametrize(("transforms", "overrides", "message"), REFUSED)
def test_senseless_combinations_are_refused_by_name(transforms, overrides, message):
  with pytest.raises(ConfigError, match=message) as info:
    parse(config(*transforms, **overrides))
  assert "\n" not in str(info.value)


def test_the_network_of_two_branches_trains_on_one_batch_too(dataset):
  stage = tiny.stages(config(representation__transforms=(), representation__mixup=1.0), dataset)["representation"]
  indices, scalars = stage.batches(0, 1)
  assert indices.shape == (128,) and scalars["transforms"] == ()
  jax.eval_shape(stage.train_steps[1], stage.like, stage.data, indices, scalars)


@pytest.mark.parametrize("backbone", [name for name in models.__all__ if name != "Classifier"])
def test_only_a_backbone_with_the_trait_takes_branches(backbone):
  cls = getattr(models, backbone)
  fields = {field.name for field in dataclasses.fields(cls)}
  module = cls(**{key: value for key, value in dict(
      depth=10 if cls is models.ResNet else 14, width=12, widths=(4, 4, 8)).items() if key in fields})
  images = jnp.zeros((2, 32, 32, 3))
  variables = jax.eval_shape(lambda: module.init(jax.random.key(0), images, train=False))
  forward = lambda variables: module.apply(variables, Branches(images, images, 0.5), train=False)  # noqa: E731
  if getattr(module, "takes_branches", False):
    jax.eval_shape(forward, variables)
  else:
    with pytest.raises((AttributeError, TypeError, ValueError)):
      jax.eval_shape(forward, variables)
