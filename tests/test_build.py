"""Blocks of a config become functions whose arguments are checked once and whose schedules are evaluated every step."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ltjax import losses, recipes, schedules
from ltjax.config import bind as build
from ltjax.data import samplers
from ltjax.errors import ConfigError
from ltjax.schedules import Clock

COUNTS = np.array([100, 10, 1])
FIRST, LATER = Clock(step=0, steps_per_epoch=2, epochs=5), Clock(step=9, steps_per_epoch=2, epochs=5)


def stage(**overrides):
  return recipes.stage(**(dict(epochs=5, batch_size=4, lr=0.1, loss=dict(name="cross_entropy"), weight_decay=0.0)
                          | overrides))


def batch(seed=0):
  rng = np.random.RandomState(seed)
  return jnp.float32(rng.uniform(-1, 1, (4, 3))), jnp.int32([0, 1, 2, 0])


def value(objective, clock=FIRST, seed=0, key=0):
  logits, labels = batch(seed)
  return objective(logits, labels, features=logits, key=jax.random.key(key), scalars=objective.scalars(clock, COUNTS),
                   class_counts=jnp.float32(COUNTS), seen_counts=jnp.float32(COUNTS))


def test_a_schedule_is_kept_and_a_number_is_bound():
  call = build.bind(dict(name="focal", gamma=dict(name="linear", end=2.0), detach=True),
                    build.public(losses, ".cross_entropy"), "here")
  assert call.function is losses.focal
  assert call.constants == dict(detach=True)
  assert (call.at(FIRST), call.at(LATER)) == (dict(gamma=0.0), dict(gamma=2.0))
  assert call.arguments == ("logits", "labels", "gamma", "detach")


@pytest.mark.parametrize("block", [0.1, 1, dict(name="constant", value=0.1), ConfigDict(dict(name="cosine", base=0.1))])
def test_a_number_or_a_schedule(block):
  expected = block if isinstance(block, int | float) else 0.1
  assert build.schedule(block, "lr")(FIRST) == expected


def test_the_objective_is_the_adjustment_the_loss_and_the_mean():
  logits, labels = batch()
  objective = build.Objective(stage(adjust=dict(name="gcl", margin=0.1), loss=dict(name="focal", gamma=2.0)), "s")
  adjusted = losses.gcl(logits, labels, COUNTS, key=jax.random.key(3), margin=0.1)
  np.testing.assert_allclose(value(objective, key=3), losses.focal(adjusted, labels, gamma=2.0).mean(), rtol=1e-6)
  assert value(objective, key=3) != value(objective, key=4)


def test_class_weights_divide_by_their_sum_or_by_the_batch_size():
  logits, labels = batch()
  objective = build.Objective(stage(class_weights=dict(name="inverse_frequency")), "s")
  each, weights = losses.cross_entropy(logits, labels), losses.inverse_frequency(COUNTS)[labels]
  np.testing.assert_allclose(value(objective), (each * weights).sum() / weights.sum(), rtol=1e-6)
  over_the_batch = build.Objective(stage(class_weights=dict(name="inverse_frequency"), reduce="mean"), "s")
  np.testing.assert_allclose(value(over_the_batch), (each * weights).sum() / 4, rtol=1e-6)
  np.testing.assert_allclose(value(build.Objective(stage(reduce="mean"), "s")), each.mean(), rtol=1e-6)


def test_everything_scheduled_moves():
  objective = build.Objective(stage(
      lr=dict(name="cosine", base=1.0), adjust=dict(name="gcl", scale=dict(name="linear", start=1.0, end=9.0)),
      loss=dict(name="focal", gamma=dict(name="switch", at=2)),
      class_weights=dict(name="effective_number", beta=dict(name="switch", at=2, after=0.99))), "s")
  first, later = (objective.scalars(clock, COUNTS) for clock in (FIRST, LATER))
  assert (first["lr"], first["adjust"]["scale"], first["loss"]["gamma"]) == (1.0, 1.0, 0.0)
  assert later["lr"] < 0.1 and (later["adjust"]["scale"], later["loss"]["gamma"]) == (9.0, 1.0)
  np.testing.assert_allclose(first["class_weights"], 1.0)
  np.testing.assert_allclose(later["class_weights"], losses.effective_number(COUNTS, beta=0.99), rtol=1e-6)
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves((first, later)))
  assert value(objective, FIRST) != value(objective, LATER)


def test_instance_sampling_is_a_permutation_and_the_others_are_probabilities():
  assert build.sampler(dict(name="instance"), "here", COUNTS) is None
  for name in build.public(samplers):
    block = {p.name: 0.5 for p in inspect.signature(getattr(samplers, name)).parameters.values()
             if p.kind is p.KEYWORD_ONLY and p.default is p.empty}
    draw = build.sampler(dict(block, name=name), "here", COUNTS)
    if callable(draw):  # one class has a single image
      assert np.isfinite(draw(FIRST)).all() and draw(FIRST).sum() == pytest.approx(1)
  assert build.sampler(dict(name="class_aware"), "here", COUNTS).samples_per_class == 4
  draw = build.sampler(dict(name="progressive", progress=dict(name="linear")), "here", COUNTS)
  np.testing.assert_allclose(draw(FIRST), COUNTS / 111)
  np.testing.assert_allclose(draw(LATER), 1 / 3)


@pytest.mark.parametrize(("limits", "inside", "outside"), [
    ("[0, 1)", [0, 0.5, np.nextafter(1, 0)], [1, 1.0, -1e-9]), ("(0, inf)", [1e-9, 10**30], [0, -1]),
    ("[0, 1]", [0, 1], [1.001]), ("(-inf, inf)", [-1e300, 0], [])])
def test_numbers_in_limits(limits, inside, outside):
  for number in inside:
    build.check_number(number, "here", limits=limits)
  for number in (*outside, float("nan"), float("inf"), -float("inf"), "1", None, True, 1j):
    with pytest.raises(ConfigError, match="here: expected a number"):
      build.check_number(number, "here", limits=limits)


def test_every_hyper_parameter_has_a_type_that_can_be_checked():
  functions = {**build.public(losses), **build.public(samplers), **build.public(schedules)}
  for module in (build.sources, build.photos, build.heads, build.models, build.afa):
    functions |= build.public(module)
  del functions["Classifier"], functions["decompose"]
  unchecked = {
      f"{name}.{key}" for name, function in functions.items() for key, parameter in build._parameters(function).items()
      if build._kind(parameter) is object and key not in (*build.Objective.inputs, "dtype", "insert", "cache")}
  assert not unchecked
  kinds = {key: build._kind(parameter) for key, parameter in build._parameters(functions["ResNetCIFAR"]).items()}
  assert kinds["depth"] is int and kinds["widths"] is tuple
  assert build._kind(build._parameters(losses.gcl)["scale"]) is float
  assert build._kind(build._parameters(losses.gcl)["cloud_size"]) is str
  assert build._kind(build._parameters(losses.focal)["detach"]) is bool


def test_a_hyper_parameter_may_be_a_tuple_of_names_or_none():
  def function(x, *, names: tuple[str, ...], places: list[int] | None = None):
    return names, places

  choices = {"function": function}
  assert build.bind(dict(name="function", names=("a",), places=None), choices, "here").constants["places"] is None
  for wrong in (dict(names=(1,)), dict(names="a"), dict(names=("a",), places=(1.5,)), dict(names=None)):
    with pytest.raises(ConfigError, match="here"):
      build.bind(dict(name="function", **wrong), choices, "here")


def test_functions_take_no_argument_that_could_hide_a_misspelt_one():
  for module in (losses, samplers, schedules, build.sources, build.photos):
    for function in build.public(module).values():
      assert not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())
