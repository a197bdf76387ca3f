import math

import pytest

from ltjax import losses, recipes, schedules
from ltjax.config import bind as build
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


def test_every_exported_loss_has_one_place_in_a_config():
  families = [build.public(losses, family) for family in (build.ADJUSTMENTS, build.LOSSES, build.WEIGHTS)]
  names = [name for family in families for name in family]
  assert sorted(names) == sorted(set(losses.__all__) - {"mean", "weighted_mean"})
  assert all("class_counts" in build.Call(function, {}, {}).arguments[0] for function in families[2].values())


def stage(**parts):
  given = dict(epochs=2, batch_size=8, lr=0.1, weight_decay=0.0, loss=dict(name="cross_entropy"))
  return recipes.stage(**given | parts)


def test_names_of_the_new_families_are_found():
  build.Objective(stage(adjust=dict(name="fbl", alpha=dict(name="parabolic", end=60.0, shorten=10))), "one")
  build.Objective(stage(loss=dict(name="label_aware_smoothing", head=0.3, tail=0.0)), "one")
  with pytest.raises(ConfigError, match="needs head, tail"):
    build.Objective(stage(loss=dict(name="label_aware_smoothing")), "one")
  with pytest.raises(ConfigError, match="there is no 'kps'"):
    build.Objective(stage(loss=dict(name="kps")), "one")
  build.Objective(stage(adjust=dict(name="seesaw")), "one")
