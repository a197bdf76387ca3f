import math

import pytest

from ltjax import losses, recipes, schedules
from ltjax.config import bind, outside, spec
from ltjax.errors import ConfigError


def clock(epoch, epochs=200):
  return schedules.Clock(step=7 * epoch + 3, steps_per_epoch=7, epochs=epochs)


@pytest.mark.parametrize(("name", "arguments", "expected"), [
    ("linear", dict(start=1.0, end=0.0, shorten=0), lambda p: 1 - p),
    ("linear", dict(shorten=0), lambda p: p),
    ("sine", {}, lambda p: math.sin(p * math.pi / 2)),
    ("rising_cosine", {}, lambda p: 1 - math.cos(p * math.pi / 2)),
    ("parabolic", {}, lambda p: p**2),
])
def test_the_five_curricula_of_fbl(name, arguments, expected):
  for epoch in (0, 1, 57, 199):
    assert getattr(schedules, name)(clock(epoch), **arguments) == pytest.approx(expected(epoch / 200), abs=1e-15)


def test_a_short_run_has_a_curriculum_too():
  for name in ("linear", "sine", "rising_cosine", "parabolic"):
    assert getattr(schedules, name)(clock(0, epochs=5), shorten=10) == 0
    assert math.isfinite(getattr(schedules, name)(clock(4, epochs=5), shorten=10))


def test_every_exported_loss_belongs_under_one_key_of_a_config():
  families = [bind.public(losses, outside.returns(axes)) for axes in ("b c", "b", "c", "")]
  names = [name for family in families for name in family]
  assert sorted(names) == sorted(losses.__all__)
  assert sorted(families[3]) == ["mean", "weighted_mean"]
  assert all("class_counts" in bind.Call(function, {}, {}).arguments[0] for function in families[2].values())


def parsed(**parts):
  config = recipes.digits_lt(imbalance=5)
  config.stages = ("one",)
  config.one = recipes.stage(**dict(
      epochs=2, batch_size=8, lr=0.1, optimizer=recipes.sgd(0.0), loss=dict(name="cross_entropy")) | parts)
  return spec.parse(config).stages[0]


def test_names_of_all_families_are_found():
  parsed(adjust=dict(name="fbl", alpha=dict(name="parabolic", end=60.0, shorten=10)))
  parsed(loss=dict(name="label_aware_smoothing", head=0.3, tail=0.0))
  assert list(parsed(adjust=dict(name="seesaw")).objective.states) == ["seen_counts"]
  with pytest.raises(ConfigError, match="needs head, tail"):
    parsed(loss=dict(name="label_aware_smoothing"))
  with pytest.raises(ConfigError, match="there is no 'kps'"):
    parsed(loss=dict(name="kps"))
