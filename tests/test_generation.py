"""Generation inside a stage: its loss, its schedule, and all that it must not change, on any number of devices."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltjax import losses, recipes
from ltjax.augment.features import Generating
from ltjax.config import parse, spec
from ltjax.errors import ConfigError
from ltjax.schedules import Clock
from tests import goldens, tiny
from tests.processes import flags
from tests.test_matrix import ADJUSTMENTS, LOSSES

pytestmark = pytest.mark.usefixtures("no_pictures")
ROOT = pathlib.Path(__file__).parents[1]
BLOCK = dict(name="generate_features", gamma=1.0, alpha=4.0, weight=dict(name="switch", at=2, before=0.0, after=2.0))
RESNET = dict(name="ResNetCIFAR", depth=8, widths=(4, 4, 8))


class Inserting(nn.Module):
  """A convolution, the module that generates, and another convolution: it compiles in a moment."""

  insert: Any = None
  families = dict(insert="ltjax.models.afa")

  @nn.compact
  def __call__(self, images, *, train):
    images, plan = (images.images, images.plan) if isinstance(images, Generating) else (images, None)
    maps = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3), strides=2)(images)))
    return nn.relu(nn.Conv(4, (1, 1))(self.insert(maps, plan)))


SMALL = dict(name="tests.test_generation:Inserting")


def config(*transforms, insert="AFA", backbone=SMALL, **overrides):
  """The cross entropy of the digits with a module and its generation, from the third epoch on."""
  insert = dict(name=insert) if isinstance(insert, str) else insert
  return tiny.config("ce_digits", epochs=4, backbone=backbone | (dict(insert=insert) if insert else {}),
                     **{"representation__transforms": transforms or (BLOCK,)} | overrides)


def objective(**blocks):
  """(objective, class weights) of a stage of cross entropy."""
  given = dict(loss=dict(name="cross_entropy")) | blocks
  return spec._objective(recipes.stage(epochs=4, batch_size=128, lr=0.1, optimizer=recipes.sgd(0.0), **given), "here")


def scalars_of(made, weights, counts) -> dict:
  clock = Clock(0, 1, 4)
  found = dict(loss=made.loss.at(clock), adjust=made.adjust.at(clock) if made.adjust else {})
  return found | (dict(class_weights=np.asarray(weights(counts))) if weights else {})


# -- the loss --------------------------------------------------------------------------------------------------------


@goldens.parametrize("paper_afa_lbls")
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_golden(case, hyper, inputs, outputs, precision):
  """The paper's L_ori, L_all and schedule, whose epochs count from 1, as the step adds them up."""
  block = dict(BLOCK, weight=dict(name="switch", at=hyper["t"] - 1, before=0.0, after=hyper["lam"]))
  made, _ = objective()
  (call,), _ = spec._transforms((block,), "here")
  weight = call.at(Clock(hyper["epoch1"] - 1, 1, 90))["weight"]
  rtol = 1e-9 if precision == "float64" else 1e-5
  with jax.enable_x64(precision == "float64"):
    logits = jnp.concatenate([jnp.asarray(inputs[f"logits_{part}"], precision) for part in ("enh", "gen")])
    labels = jnp.concatenate([inputs["labels"], inputs["labels_gen"]])
    valid = jnp.concatenate([jnp.ones(len(inputs["labels"]), bool), inputs["valid"]])
    given = dict(key=None, scalars=scalars_of(made, None, None), class_counts=None)

    def parts(logits):
      b = len(inputs["labels"])
      original = made(logits[:b], labels[:b], features=logits[:b], **given)
      everything = made(logits, labels, features=logits, valid=valid, **given)
      weighted = made(logits, labels, features=logits, valid=valid, weight=weight, **given)
      return original + weighted, original, everything

    found = parts(logits)
    np.testing.assert_allclose(found, [outputs[name] for name in ("loss", "L_ori", "L_all")], rtol=rtol)
    assert found[0].dtype == precision
    # The gradient is (softmax - onehot) times each row's weight in the loss.
    slope = jax.grad(lambda logits: parts(logits)[0])(logits)
    share = np.where(np.arange(len(valid)) < len(inputs["labels"]), 1 / len(inputs["labels"]), 0)
    share = share + weight * np.asarray(valid) / np.asarray(valid).sum()
    expected = (jax.nn.softmax(logits) - jax.nn.one_hot(labels, 10)) * share[:, None]
  np.testing.assert_allclose(slope, expected, rtol=rtol, atol=1e-15 if precision == "float64" else 1e-8)


@pytest.mark.parametrize("blocks", [
    {}, dict(class_weights=dict(name="inverse_frequency")), dict(adjust=dict(name="fbl", alpha=60.0)),
    dict(adjust=dict(name="logit_adjustment"), loss=dict(name="focal"))])
def test_rows_that_are_not_valid_change_nothing(blocks):
  """They are poisoned: NaN logits and features reach neither the value nor a gradient."""
  (made, weights), rng = objective(**blocks), np.random.default_rng(0)
  logits, rows = (jnp.asarray(rng.normal(size=(9, 10)), jnp.float32) for _ in range(2))
  labels, counts = jnp.array([0, 0, 1, 2, 3, 9, 9, 1, 1]), np.float32(np.geomspace(500, 5, 10))
  valid, scalars = jnp.arange(9) < 6, scalars_of(made, weights, counts)

  def loss(logits, rows, labels, valid=None):
    return made(logits, labels, features=rows, key=jax.random.key(0), scalars=scalars, class_counts=counts, valid=valid)

  value, slopes = jax.value_and_grad(loss, argnums=(0, 1))(logits[:6], rows[:6], labels[:6])
  poison = [jnp.where(valid[:, None], x, jnp.nan) for x in (logits, rows)]
  poisoned, poisoned_slopes = jax.value_and_grad(loss, argnums=(0, 1))(*poison, labels, valid)
  np.testing.assert_allclose(poisoned, value, rtol=1e-6)
  for one, other in zip(poisoned_slopes, slopes, strict=True):
    np.testing.assert_allclose(one[:6], other, rtol=1e-5, atol=1e-8)
    assert not one[6:].any()


WHOLE_BATCH = {"lade", "prior_lade"}


@pytest.mark.parametrize("blocks", [
    *(dict(adjust=ADJUSTMENTS[name]) for name in ADJUSTMENTS),
    *(dict(loss=LOSSES[name]) for name in sorted(set(LOSSES) - WHOLE_BATCH))])
def test_poison_stays_in_its_rows_whatever_the_adjustment_and_the_loss(blocks):
  (made, weights), rng, counts = objective(**blocks), np.random.default_rng(0), np.float32(np.geomspace(500, 5, 10))
  given = dict(key=jax.random.key(0), scalars=scalars_of(made, weights, counts), class_counts=counts,
               valid=jnp.arange(9) < 6, state=dict.fromkeys(made.states, counts))
  rows = [jnp.asarray(rng.uniform(-1, 1, (9, 10)), jnp.float32) for _ in range(2)]
  poison = [jnp.where(given["valid"][:, None], x, jnp.nan) for x in rows]
  labels = jnp.array([0, 0, 1, 2, 3, 9, 9, 1, 1])

  @jax.jit
  def slopes_of(logits, features):
    return jax.value_and_grad(lambda *x: made(x[0], labels, features=x[1], **given), argnums=(0, 1))(logits, features)

  (value, slopes), clean = slopes_of(*poison), slopes_of(*rows)
  assert np.isfinite(value) and slopes[0].any()
  jax.tree.map(np.testing.assert_array_equal, (value, slopes), clean)


# -- the step --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset():
  return tiny.dataset(config())


@pytest.fixture(scope="module")
def stage(dataset):
  return tiny.stages(config(steps_per_call=2), dataset)["representation"]


def start(stage):
  return stage.make_state(stage.init())


def test_the_scalars_tell_when_features_are_generated(stage):
  per_epoch = stage.order.steps_per_epoch
  found = [stage.batches(epoch * per_epoch, 1)[1]["transforms"][0] for epoch in range(4)]
  assert found == [None, None, dict(weight=2.0), dict(weight=2.0)]


def test_a_call_of_several_steps_stops_where_generation_begins(stage):
  switch = 2 * stage.order.steps_per_epoch
  assert stage.count(switch - 2, switch + 9) == stage.count(switch, switch + 2) == 2
  assert stage.count(switch - 1, switch + 9) == 1
  assert stage.count(switch, switch + 1) == 1


def test_a_step_is_the_loss_of_the_images_and_of_all_rows(dataset):
  stage = tiny.stages(config(backbone=RESNET, representation__adjust=dict(name="seesaw", p=0.0, q=0.0)),
                      dataset)["representation"]
  at = 2 * stage.order.steps_per_epoch
  state, (indices, scalars) = start(stage), stage.batches(at, 1)
  variables = jax.device_get(dict(params=state.params, batch_stats=state.batch_stats))
  batch = stage.parts.transform(stage.data, indices, jax.random.fold_in(stage.data["key"], 0), scalars)
  (own, everything), labels = batch.terms, batch.terms[0].labels
  (logits, _), updated = jax.jit(lambda v, x: stage.model.apply(v, x, train=True, mutable=["batch_stats"]))(
      variables, batch.inputs)
  assert logits.shape == (128 + 137, 10) and own.valid is None and not everything.observed
  np.testing.assert_array_equal(everything.labels[:128], labels)
  assert everything.valid[:128].all() and not everything.valid[128:].all()
  each, rows = np.asarray(losses.cross_entropy(logits, everything.labels)), np.asarray(everything.valid)
  after, _ = jax.device_get(stage.train_steps[1](state, stage.data, indices, dict(scalars, step=np.int32(0))))
  np.testing.assert_allclose(after.window["loss"] / 128, each[:128].mean() + 2 * each[rows].mean(), rtol=1e-5)
  assert after.window["correct"] == (np.argmax(logits[:128], axis=-1) == labels).sum()
  np.testing.assert_array_equal(after.loss_state["seen_counts"], np.bincount(labels, minlength=10))
  assert after.window["examples"] == after.loss_state["seen_counts"].sum() == 128
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), after.batch_stats,
               updated["batch_stats"])


def test_before_it_begins_the_step_is_the_one_without(stage, dataset):
  plain = tiny.stages(config(representation__transforms=()), dataset)["representation"]
  one, other = (jax.device_get(made.train_steps[1](start(made), made.data, *made.batches(0, 1))[0])
                for made in (stage, plain))
  tiny.assert_trees_equal(one, other)

  def text(made, at):
    return made.train_steps[1].lower(made.like, made.data, *made.batches(at, 1)).as_text().replace(
        '["transforms"][0]', "").replace("jit", "")

  later = 2 * stage.order.steps_per_epoch
  assert text(stage, 0) == text(plain, 0) != text(stage, later)


def test_several_steps_per_call_change_nothing(stage):
  at = 2 * stage.order.steps_per_epoch
  one, two = (start(stage).replace(step=jnp.int32(at)) for _ in range(2))
  for step in range(at, at + 2):
    one, _ = stage.train_steps[1](one, stage.data, *stage.batches(step, 1))
  two, _ = stage.train_steps[2](two, stage.data, *stage.batches(at, 2))
  np.testing.assert_allclose(two.window["loss"], one.window["loss"], rtol=1e-3)


def test_a_run_switches_in_the_middle_and_stays_finite(tmp_path):
  result = tiny.run(config(steps_per_call=2), tmp_path / "run")
  lines = [line for line in tiny.log(tmp_path / "run", "representation") if "loss" in line]
  assert result["stages"]["representation"]["steps"] == lines[-1]["step"]
  assert np.isfinite([line["loss"] for line in lines]).all()
  before, after = ([line["loss"] for line in lines if (line["epoch"] <= 2) == first] for first in (True, False))
  assert min(after) > 1.5 * np.mean(before)  # three losses instead of one


# -- senseless combinations --------------------------------------------------------------------------------------------


def block(**changes):
  return {key: value for key, value in (BLOCK | changes).items() if value is not None}


AT = r"representation.transforms\[0\]"
REFUSED = [
    (None, dict(insert=None), "representation.transforms: nothing in the backbone makes the features that"),
    (None, dict(representation__mixup=1.0), "representation.mixup: an image of mixup has no class to generate"),
    (None, dict(head__name="TDE"), "representation.transforms: the head 'TDE' would take"),
    (None, dict(representation__loss=dict(name="lade")), "representation.loss: lade is the loss of a complete batch"),
    (None, dict(representation__loss=dict(name="prior_lade")), "representation.loss: prior_lade is the loss of a comp"),
    (None, dict(representation__optimizer__accumulate=2), "representation.optimizer.accumulate: the loss of this"),
    (block(gama=1.0), {}, AT + r".gama: generate_features has no such argument \(did you mean 'gamma'\?\)"),
    (block(weight=None), {}, AT + ": generate_features needs weight"),
    (block(gamma=0.0), {}, AT + ".gamma: expected a number above 0, got 0.0"),
    (block(alpha=-1.0), {}, AT + ".alpha: expected a number of at least 0, got -1.0"),
    (block(weight=-1.0), {}, AT + ".weight: expected a number of at least 0, got -1.0"),
    (block(weight=dict(name="linear", start=1.0, end=-5.0)), {}, AT + ".weight in epoch 1: expected"),
    (2.0, {}, AT + r": expected dict\(name=..., hyper-parameters\), got 2.0"),
    (None, dict(insert="AFAA", backbone=RESNET), r"backbone.insert.name: there is no 'AFAA' \(did you mean 'AFA'\?\)"),
    (None, dict(insert=dict(name="AFA", axis="spatial"), backbone=RESNET), "backbone.insert.axis: AFA has no such arg"),
    (None, dict(insert=dict(name="AFA", mask_axis="space"), backbone=RESNET), "backbone.insert: AFA: mask_axis must"),
    (None, dict(insert=dict(name="AFA", reduction=0), backbone=RESNET), "backbone.insert.*reduction"),
    (None, dict(insert=dict(name="CBAM", addition="yes"), backbone=RESNET), "backbone.insert.addition: expected bool"),
    (None, dict(insert="AFA", backbone=dict(name="ResNetBBN", depth=14)), "backbone.insert: ResNetBBN"),
    (None, dict(insert=None, backbone=dict(name="ResNetBBN", depth=14), representation__transforms=(
        dict(name="two_branches", sampler=dict(name="reverse"), share=0.5), BLOCK)),
     "representation.transforms: generate_features needs an insert between the layers of a backbone"),
]


@pytest.mark.parametrize(("transform", "overrides", "message"), REFUSED)
def test_senseless_combinations_are_refused_by_name(transform, overrides, message):
  found = {"backbone": RESNET} | overrides
  with pytest.raises(ConfigError, match=message) as info:
    parse(config(*(() if transform is None else (transform,)), **found))
  assert "\n" not in str(info.value)


@pytest.mark.parametrize("insert", ["AFA", "CBAM", "GlobalContext"])
def test_every_module_trains_with_generation_and_without(insert):
  for transforms in ((BLOCK,), ()):
    assert len(parse(config(insert=insert, backbone=RESNET, representation__transforms=transforms)).stages[
        0].transforms) == len(transforms)


# -- several devices -------------------------------------------------------------------------------------------------


def small_run() -> dict:
  """Two steps with generation on whatever devices there are, at a rate that lets no difference grow."""
  stage = tiny.stages(config(dict(BLOCK, weight=2.0), backbone=RESNET,
                             representation__lr=dict(name="constant", value=1e-4)))["representation"]
  state = start(stage)
  for step in range(2):
    state, _ = stage.train_steps[1](state, stage.data, *stage.batches(step, 1))
  state = jax.device_get(state)
  return dict(devices=jax.device_count(), loss=float(state.window["loss"]),
              kernel=state.params["head"]["kernel"].tolist(),
              query=state.params["backbone"]["insert"]["query"].tolist(),
              mean=state.batch_stats["backbone"]["stage3_block1"]["norm1"]["mean"].tolist())


def test_the_batch_is_the_global_one_on_any_number_of_devices(tmp_path):
  started = [subprocess.Popen(
      [sys.executable, "-m", "tests.test_generation", tmp_path / str(devices)], cwd=ROOT, text=True,
      stderr=subprocess.PIPE, env=os.environ | dict(
          JAX_PLATFORMS="cpu", XLA_FLAGS=flags(devices))) for devices in (1, 4)]
  try:
    for process in started:
      _, err = process.communicate(timeout=300)
      assert process.returncode == 0, err[-3000:]
  finally:
    for process in started:
      process.kill()
  one, four = (json.loads((tmp_path / str(devices)).read_text()) for devices in (1, 4))
  assert (one.pop("devices"), four.pop("devices")) == (1, 4)
  for name, value in one.items():
    np.testing.assert_allclose(four[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


if __name__ == "__main__":
  pathlib.Path(sys.argv[1]).write_text(json.dumps(small_run()))
