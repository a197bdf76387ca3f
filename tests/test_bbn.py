"""BBN: two batches a step, each drawn and augmented by itself, and a share that moves from the first to the second."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ltjax import losses, models, train
from ltjax import step as steps
from ltjax.config import bind as build
from ltjax.config import load as configs
from ltjax.data import resident
from ltjax.errors import ConfigError
from ltjax.models.resnet_cifar import Branches
from tests import tiny

SHARE = dict(name="parabolic", start=1.0, end=0.0)
BRANCHES = dict(sampler=dict(name="reverse"), share=SHARE)


def config(branches=BRANCHES, *, backbone="ResNetBBN", **overrides):
  """The cross-entropy of the digits as BBN."""
  found = tiny.config("ce_digits", **overrides)
  found.backbone = ConfigDict(dict(name=backbone, depth=14, widths=(4, 4, 8)))
  with found.unlocked():
    found.representation.branches = branches if branches is None else ConfigDict(branches)
  return found


@pytest.fixture(scope="module")
def dataset():
  return build.dataset(config())()


@pytest.fixture(scope="module")
def stage(dataset):
  return train.prepare(config(epochs=4), "representation", dataset)


def train_step_of(found, dataset):
  name, block = "representation", found.representation
  _, _, tx, factors = train.state_makers(found, name, (1,) * 10, dataset.train[0][:1].shape)
  load = resident.make_load(**found.augment, mixup=0.0, branches=True)
  model = build.model(found, (1,) * 10, name)
  return model, load, steps.make_train_step(model, tx, factors, build.Objective(block, name), load,
                                            batch_norm=block.batch_norm, on_nonfinite="stop")


def test_a_config_of_two_branches_passes_and_its_share_follows_the_schedule(stage):
  configs.check(config())
  per_epoch = stage.order.steps_per_epoch
  shares = [float(stage.batches(epoch * per_epoch, 1)[1]["share"]) for epoch in range(4)]
  np.testing.assert_allclose(shares, [1 - (epoch / 4) ** 2 for epoch in range(4)])
  assert stage.batches(0, 1)[1]["share"].dtype == np.float32


def test_a_step_is_the_loss_of_both_targets_by_their_shares(stage, dataset):
  found = config(epochs=4)
  model, load, train_step = train_step_of(found, dataset)
  at = 2 * stage.order.steps_per_epoch
  state, (indices, scalars) = stage.make_state(stage.init()), stage.batches(at, 1)
  assert indices.shape == (128, 2) and float(scalars["share"]) == 0.75
  variables = dict(params=state.params, batch_stats=state.batch_stats)
  key_load, _ = jax.random.split(jax.random.fold_in(stage.data["key"], 0))
  images, ((labels, a), (others, b)) = load(stage.data, indices, key_load, scalars)
  assert isinstance(images, Branches)
  (logits, _), _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
  after, _ = jax.jit(train_step)(state, stage.data, indices, dict(scalars, step=0))
  expected = a * losses.cross_entropy(logits, labels).sum() + b * losses.cross_entropy(logits, others).sum()
  np.testing.assert_allclose(after.window["loss"], expected, rtol=1e-5)
  assert float(after.window["examples"]) == 128
  np.testing.assert_allclose(float(after.seen_counts.sum()), 128, rtol=1e-6)
  seen = 0.75 * np.bincount(labels, minlength=10) + 0.25 * np.bincount(others, minlength=10)
  np.testing.assert_allclose(after.seen_counts, seen, rtol=1e-5)
  for block in ("cb_block", "rb_block"):
    kernels = (tree["backbone"][block]["conv1"]["kernel"] for tree in (after.params, state.params))
    assert (next(kernels) != next(kernels)).any(), block


def test_with_the_whole_share_the_second_branch_learns_nothing(stage, dataset):
  _, _, train_step = train_step_of(config(epochs=4, representation__weight_decay=0.0), dataset)
  state, (indices, scalars) = stage.make_state(stage.init()), stage.batches(0, 1)
  after, _ = jax.jit(train_step)(state, stage.data, indices, scalars)
  assert float(scalars["share"]) == 1
  tiny.assert_trees_equal(after.params["backbone"]["rb_block"], state.params["backbone"]["rb_block"])


def test_evaluation_is_the_plain_forward(stage, dataset):
  state = stage.make_state(stage.init())
  model = build.model(config(), (1,) * 10, "representation")
  images = (jnp.asarray(dataset.test[0]) / 255 - jnp.asarray(dataset.mean)) / jnp.asarray(dataset.std)
  logits, _ = model.apply(dict(params=state.params, batch_stats=state.batch_stats), images, train=False)
  right = int((logits.argmax(axis=-1) == dataset.test[1]).sum())
  assert abs(int(np.trace(stage.evaluator(state))) - right) <= 1


def test_several_steps_a_call_are_the_steps_one_by_one(dataset):
  stage = train.prepare(config(epochs=4, steps_per_call=2), "representation", dataset)
  one, two = (stage.make_state(stage.init()).replace(step=jnp.int32(4)) for _ in range(2))
  indices, _ = stage.batches(4, 2)
  assert indices.shape == (2, 128, 2)
  np.testing.assert_array_equal(indices[1], stage.order.batch(5))
  for step in (4, 5):
    one, _ = stage.train_steps[1](one, stage.data, *stage.batches(step, 1))
  two, _ = stage.train_steps[2](two, stage.data, *stage.batches(4, 2))
  assert int(two.step) == 6
  np.testing.assert_allclose(two.window["loss"], one.window["loss"], rtol=1e-4)
  np.testing.assert_allclose(two.seen_counts, one.seen_counts, rtol=1e-5)


REFUSED = [
    (dict(backbone="ResNetCIFAR"), "representation.branches: the backbone 'ResNetCIFAR' takes one batch"),
    (dict(representation__mixup=1.0), "representation.mixup: branches are two batches already"),
    (dict(branches=dict(sampler=dict(name="reverse"))), "representation.branches.share: missing"),
    (dict(branches=dict(share=0.5)), "representation.branches.sampler: missing"),
    (dict(branches=dict(BRANCHES, shares=0.5)), "representation.branches.shares: not a key here"),
    (dict(branches=dict(BRANCHES, sampler=dict(name="revers"))), "representation.branches.sampler.name: there is no"),
    (dict(branches=dict(BRANCHES, share=1.5)), r"representation.branches.share: expected a number in \[0, 1\]"),
    (dict(branches=dict(BRANCHES, share=dict(name="linear", end=2.0))), "branches.share in epoch 1: expected"),
    (dict(branches=dict(BRANCHES, share="half")), "representation.branches.share: expected a number or a schedule"),
    (dict(branches={}), "representation.branches: expected dict"),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSED)
def test_what_makes_no_sense_is_refused_by_name(overrides, message):
  with pytest.raises(ConfigError, match=message) as info:
    configs.check(config(**overrides))
  assert "\n" not in str(info.value)


def test_the_network_of_two_branches_trains_on_one_batch_too(dataset):
  found = config(None, representation__mixup=1.0)
  configs.check(found)
  stage = train.prepare(found, "representation", dataset)
  indices, scalars = stage.batches(0, 1)
  assert indices.shape == (128,) and "share" not in scalars
  jax.eval_shape(stage.train_steps[1], stage.like, stage.data, indices, scalars)


@pytest.mark.parametrize("backbone", [name for name in models.__all__ if name != "Classifier"])
def test_a_backbone_takes_branches_where_the_build_says_so(backbone):
  cls = getattr(models, backbone)
  fields = {field.name for field in dataclasses.fields(cls)}
  module = cls(**{key: value for key, value in dict(
      depth=10 if cls is models.ResNet else 14, width=4, widths=(4, 4, 8)).items() if key in fields})
  images = jnp.zeros((2, 8, 8, 3))
  variables = jax.eval_shape(lambda: module.init(jax.random.key(0), images, train=False))
  forward = lambda variables: module.apply(variables, Branches(images, images, 0.5), train=False)  # noqa: E731
  if cls in build.BRANCHED:
    jax.eval_shape(forward, variables)
  else:
    with pytest.raises((AttributeError, TypeError, ValueError)):
      jax.eval_shape(forward, variables)
