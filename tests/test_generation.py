"""Generation inside a stage: its loss, when it happens, what it leaves alone, on any number of devices."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ltjax import losses, train
from ltjax.augment import features
from ltjax.config import bind as build
from ltjax.config import load as configs
from ltjax.data import resident
from ltjax.errors import ConfigError
from tests import goldens, tiny
from tests.test_matrix import ADJUSTMENTS, LOSSES

ROOT = pathlib.Path(__file__).parents[1]
BLOCK = dict(gamma=1.0, alpha=4.0, weight=dict(name="switch", at=2, before=0.0, after=2.0))


def config(generation=BLOCK, insert="AFA", **overrides):
  """The cross-entropy of the digits with a module and its generation, from the third epoch on."""
  found = tiny.config("ce_digits", epochs=4, **overrides)
  with found.unlocked():
    found.backbone.insert = insert if insert is None else ConfigDict(
        dict(name=insert) if isinstance(insert, str) else insert)
    found.representation.generation = generation if not isinstance(generation, dict) else ConfigDict(generation)
  return found


def objective(**overrides):
  return build.Objective(config(**overrides).representation, "representation")


# -- the loss --------------------------------------------------------------------------------------------------------


@goldens.parametrize("paper_afa_lbls")
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_golden(case, hyper, inputs, outputs, precision):
  """The paper's L_ori, L_all and schedule, whose epochs count from 1, as the step adds them up."""
  block = dict(BLOCK, weight=dict(name="switch", at=hyper["t"] - 1, before=0.0, after=hyper["lam"]))
  made = objective(generation=block)
  rtol = 1e-9 if precision == "float64" else 1e-5
  with jax.enable_x64(precision == "float64"):
    logits = jnp.concatenate([jnp.asarray(inputs[f"logits_{part}"], precision) for part in ("enh", "gen")])
    labels = jnp.concatenate([inputs["labels"], inputs["labels_gen"]])
    valid = jnp.concatenate([jnp.ones(len(inputs["labels"]), bool), inputs["valid"]])
    scalars = made.scalars(build.Clock(hyper["epoch1"] - 1, 1, 90), np.ones(10))

    def parts(logits):
      b = len(inputs["labels"])
      given = dict(key=None, scalars=scalars, class_counts=None, seen_counts=None)
      original = made(logits[:b], labels[:b], features=logits[:b], **given)
      everything = made(logits, labels, features=logits, valid=valid, **given)
      return original + scalars.get("generation", 0.0) * everything, original, everything

    found = parts(logits)
    np.testing.assert_allclose(found, [outputs[name] for name in ("loss", "L_ori", "L_all")], rtol=rtol)
    assert found[0].dtype == precision
    # The gradient is (softmax - onehot) times each row's share of the loss.
    slope = jax.grad(lambda logits: parts(logits)[0])(logits)
    share = np.where(np.arange(len(valid)) < len(inputs["labels"]), 1 / len(inputs["labels"]), 0)
    share = share + scalars.get("generation", 0.0) * np.asarray(valid) / np.asarray(valid).sum()
    expected = (jax.nn.softmax(logits) - jax.nn.one_hot(labels, 10)) * share[:, None]
  np.testing.assert_allclose(slope, expected, rtol=rtol, atol=1e-15 if precision == "float64" else 1e-8)


@pytest.mark.parametrize("overrides", [
    {}, dict(representation__class_weights=dict(name="inverse_frequency")),
    dict(representation__adjust=dict(name="fbl", alpha=60.0)),
    dict(representation__adjust=dict(name="logit_adjustment"), representation__loss=dict(name="focal"))])
def test_rows_that_are_not_valid_change_nothing(overrides):
  """They are poisoned: NaN logits and features reach neither the value nor a gradient."""
  made, rng = objective(**overrides), np.random.default_rng(0)
  logits, rows = (jnp.asarray(rng.normal(size=(9, 10)), jnp.float32) for _ in range(2))
  labels, counts = jnp.array([0, 0, 1, 2, 3, 9, 9, 1, 1]), np.float32(np.geomspace(500, 5, 10))
  valid = jnp.arange(9) < 6
  scalars = made.scalars(build.Clock(0, 1, 4), counts)

  def loss(logits, rows, labels, valid=None):
    return made(logits, labels, features=rows, key=jax.random.key(0), scalars=scalars, class_counts=counts,
                seen_counts=counts, valid=valid)

  value, slopes = jax.value_and_grad(loss, argnums=(0, 1))(logits[:6], rows[:6], labels[:6])
  poison = [jnp.where(valid[:, None], x, jnp.nan) for x in (logits, rows)]
  poisoned, poisoned_slopes = jax.value_and_grad(loss, argnums=(0, 1))(*poison, labels, valid)
  np.testing.assert_allclose(poisoned, value, rtol=1e-6)
  for one, other in zip(poisoned_slopes, slopes, strict=True):
    np.testing.assert_allclose(one[:6], other, rtol=1e-5, atol=1e-8)
    assert not one[6:].any()


WHOLE_BATCH = {"lade", "prior_lade"}


@pytest.mark.parametrize("adjust", ADJUSTMENTS)
def test_poison_stays_in_its_rows_whatever_the_adjustment(adjust):
  _check_poison(build.Objective(config(
      representation__adjust=ADJUSTMENTS[adjust] and ConfigDict(ADJUSTMENTS[adjust])).representation, "here"))


@pytest.mark.parametrize("loss", sorted(set(LOSSES) - WHOLE_BATCH))
def test_poison_stays_in_its_rows_whatever_the_loss(loss):
  _check_poison(build.Objective(config(representation__loss=ConfigDict(LOSSES[loss])).representation, "here"))


def _check_poison(made: build.Objective) -> None:
  rng, counts = np.random.default_rng(0), np.float32(np.geomspace(500, 5, 10))
  given = dict(key=jax.random.key(0), scalars=made.scalars(build.Clock(0, 1, 4), counts), class_counts=counts,
               seen_counts=counts, valid=jnp.arange(9) < 6)
  rows = [jnp.asarray(rng.uniform(-1, 1, (9, 10)), jnp.float32) for _ in range(2)]
  poison = [jnp.where(given["valid"][:, None], x, jnp.nan) for x in rows]
  labels = jnp.array([0, 0, 1, 2, 3, 9, 9, 1, 1])

  @jax.jit
  def loss(logits, features):
    return made(logits, labels, features=features, **given)

  (value, slopes), (clean, clean_slopes) = (jax.value_and_grad(loss, argnums=(0, 1))(*x) for x in (poison, rows))
  assert np.isfinite(value) and slopes[0].any()
  jax.tree.map(np.testing.assert_array_equal, (value, slopes), (clean, clean_slopes))


# -- the step --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset():
  return build.dataset(config())()


@pytest.fixture(scope="module")
def stage(dataset):
  return train.prepare(config(steps_per_call=3), "representation", dataset)


def test_scalars_say_when_features_are_generated(stage):
  per_epoch = stage.order.steps_per_epoch
  found = [stage.batches(epoch * per_epoch, 1)[1].get("generation") for epoch in range(4)]
  assert found == [None, None, 2.0, 2.0]
  assert "generation" not in objective(generation=None).scalars(build.Clock(3, 1, 4), np.ones(10))


def test_a_call_of_several_steps_stops_where_generation_begins(stage):
  switch = 2 * stage.order.steps_per_epoch
  assert stage.count(switch - 3, switch + 9) == stage.count(switch, switch + 3) == 3
  assert stage.count(switch - 2, switch + 9) == stage.count(switch - 1, switch + 9) == 1
  assert stage.count(switch, switch + 2) == 1


def test_a_step_is_the_loss_of_the_images_and_of_all_rows(stage, dataset):
  model, at = build.model(config(), (1,) * 10, "representation"), 2 * stage.order.steps_per_epoch
  state, (indices, scalars) = stage.make_state(stage.init()), stage.batches(at, 1)
  variables = dict(params=state.params, batch_stats=state.batch_stats)
  key_load, _, key_plan = jax.random.split(jax.random.fold_in(stage.data["key"], 0), 3)
  load = resident.make_load(**config().augment, mixup=0.0)
  images, ((labels, _),) = load(stage.data, indices, key_load, scalars)
  plan = features.plan(labels, key=key_plan, num_classes=10)
  (logits, _), updated = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))(
      variables, features.Generating(images, plan))
  assert logits.shape == (128 + 137, 10)
  each = np.asarray(losses.cross_entropy(logits, jnp.concatenate([labels, plan.labels])))
  rows = np.concatenate([np.ones(128, bool), plan.valid])
  after, _ = jax.device_get(stage.train_steps[1](state, stage.data, indices, dict(scalars, step=0)))
  np.testing.assert_allclose(after.window["loss"] / 128, each[:128].mean() + 2 * each[rows].mean(), rtol=1e-5)
  assert after.window["correct"] == (np.argmax(logits[:128], axis=-1) == labels).sum()
  assert after.window["examples"] == after.seen_counts.sum() == 128
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), after.batch_stats,
               updated["batch_stats"])


def test_before_it_begins_the_step_is_the_one_without(stage, dataset):
  plain = train.prepare(config(generation=None), "representation", dataset)
  one, other = (jax.device_get(made.train_steps[1](made.make_state(made.init()), made.data, *made.batches(0, 1))[0])
                for made in (stage, plain))
  tiny.assert_trees_equal(one, other)

  def text(made, at):
    return made.train_steps[1].lower(made.like, made.data, *made.batches(at, 1)).as_text()

  later = 2 * stage.order.steps_per_epoch
  assert text(stage, 0) == text(plain, 0) != text(stage, later)


def test_several_steps_a_call_change_nothing(stage):
  at = 2 * stage.order.steps_per_epoch
  one, three = (stage.make_state(stage.init()).replace(step=jnp.int32(at)) for _ in range(2))
  for step in range(at, at + 3):
    one, _ = stage.train_steps[1](one, stage.data, *stage.batches(step, 1))
  three, _ = stage.train_steps[3](three, stage.data, *stage.batches(at, 3))
  np.testing.assert_allclose(three.window["loss"], one.window["loss"], rtol=1e-3)


def test_a_run_switches_in_the_middle_and_stays_finite(tmp_path):
  found = config(steps_per_call=2, representation__epochs=4)
  result = tiny.run(found, tmp_path / "run")
  lines = [line for line in tiny.log(tmp_path / "run", "representation") if "loss" in line]
  assert result["stages"]["representation"]["steps"] == lines[-1]["step"]
  assert np.isfinite([line["loss"] for line in lines]).all()
  before, after = ([line["loss"] for line in lines if (line["epoch"] <= 2) == first] for first in (True, False))
  assert min(after) > 1.5 * np.mean(before)  # three losses in the place of one


# -- what makes no sense ---------------------------------------------------------------------------------------------


REFUSED = [
    (dict(insert=None), "representation.generation: nothing in the backbone makes features; write"),
    (dict(representation__mixup=1.0), "representation.mixup: a mixed image has no class to generate for"),
    (dict(head__name="TDE"), "representation.generation: the head 'TDE' would take"),
    (dict(representation__loss=dict(name="lade")), "representation.loss: lade is of a whole batch"),
    (dict(representation__loss=dict(name="prior_lade")), "representation.loss: prior_lade is of a whole batch"),
    (dict(generation=dict(BLOCK, gama=1.0)), "representation.generation.gama: not a key here .did you mean 'gamma'"),
    (dict(generation=dict(gamma=1.0, alpha=4.0)), "representation.generation.weight: missing"),
    (dict(generation=dict(BLOCK, gamma=0.0)), "representation.generation.gamma: expected a number above 0, got 0.0"),
    (dict(generation=dict(BLOCK, alpha=-1.0)), "representation.generation.alpha: expected a number of at least 0"),
    (dict(generation=dict(BLOCK, weight=-1.0)), "representation.generation.weight: expected a number of at least 0"),
    (dict(generation=dict(BLOCK, weight=dict(name="linear", start=1.0, end=-5.0))), "generation.weight in epoch 1"),
    (dict(generation=2.0), r"representation.generation: expected dict\(gamma=..., alpha=..., weight=...\), got 2.0"),
    (dict(insert="AFAA"), "backbone.insert.name: there is no 'AFAA' .did you mean 'AFA'..; there are AFA, CBAM, Glob"),
    (dict(insert=dict(name="AFA", axis="spatial")), "backbone.insert.axis: AFA has no such argument"),
    (dict(insert=dict(name="AFA", mask_axis="space")), "backbone.insert: AFA: mask_axis must be one of channel, spat"),
    (dict(insert=dict(name="AFA", reduction=0)), "backbone.insert: AFA: reduction must be at least 1"),
    (dict(insert=dict(name="CBAM", addition="yes")), "backbone.insert.addition: expected bool"),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSED)
def test_what_makes_no_sense_is_refused_by_name(overrides, message):
  with pytest.raises(ConfigError, match=message) as info:
    configs.check(config(**overrides))
  assert "\n" not in str(info.value)


def test_two_batches_and_generation_are_refused():
  found = config()
  found.backbone = ConfigDict(dict(name="ResNetBBN", depth=14, insert=dict(name="AFA")))
  with pytest.raises(ConfigError, match=r"backbone.insert: ResNetBBN has no place .* ResNet and ResNetCIFAR have"):
    configs.check(found)
  found = config(insert=None)
  found.backbone = ConfigDict(dict(name="ResNetBBN", depth=14))
  with found.unlocked():
    found.representation.branches = ConfigDict(dict(sampler=dict(name="reverse"), share=0.5))
  with pytest.raises(ConfigError, match="representation.generation: nothing in the backbone makes features"):
    configs.check(found)


@pytest.mark.parametrize("insert", ["AFA", "CBAM", "GlobalContext"])
def test_every_module_trains_with_generation_and_without(insert):
  configs.check(config(insert=insert))
  configs.check(config(insert=insert, generation=None))
  assert objective(insert=insert).generation is not None


# -- several devices -------------------------------------------------------------------------------------------------


def small_run() -> dict:
  """Two steps with generation on whatever devices there are, at a rate that lets no difference grow."""
  found = config(dict(BLOCK, weight=2.0), representation__lr=dict(name="constant", value=1e-4))
  stage = train.prepare(found, "representation", build.dataset(found)())
  state = stage.make_state(stage.init())
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
          JAX_PLATFORMS="cpu", XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}")) for devices in (1, 4)]
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
