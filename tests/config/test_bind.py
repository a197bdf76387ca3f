"""A block of a config becomes a call: arguments are checked once, schedules are evaluated at every step."""

import inspect
from collections.abc import Sequence
from typing import Annotated, Literal

import pytest
from ml_collections import ConfigDict

from ltjax import augment, losses, models, optim, schedules
from ltjax.augment import batches
from ltjax.config import bind
from ltjax.data import photos, samplers, sources
from ltjax.errors import ConfigError
from ltjax.losses.objective import OFFERED
from ltjax.models import afa, heads
from ltjax.schedules import Clock

FIRST, LATER = Clock(step=0, steps_per_epoch=2, epochs=5), Clock(step=9, steps_per_epoch=2, epochs=5)
FAMILIES = (losses, samplers, schedules, sources, photos, heads, models, afa, augment, batches, optim)


def test_numbers_are_bound_and_schedules_are_evaluated():
  call = bind.bind(dict(name="focal", gamma=dict(name="linear", end=2.0), detach=True), bind.public(losses), "here")
  assert call.function is losses.focal and call.name == "focal"
  assert call.constants == dict(detach=True)
  assert (call.at(FIRST), call.at(LATER)) == (dict(gamma=0.0), dict(gamma=2.0))
  assert call.arguments == ("logits", "labels", "gamma", "detach")


@pytest.mark.parametrize("block", [0.1, 1, dict(name="constant", value=0.1), ConfigDict(dict(name="cosine", base=0.1))])
def test_a_schedule_may_be_a_number(block):
  expected = block if isinstance(block, int | float) else 0.1
  assert bind.schedule(block, "lr")(FIRST) == expected


@pytest.mark.parametrize(("limits", "inside", "outside"), [
    ("[0, 1)", [0, 0.5, 1 - 2**-53], [1, 1.0, -1e-9]), ("(0, inf)", [1e-9, 10**30], [0, -1]),
    ("[0, 1]", [0, 1], [1.001]), ("(-inf, inf)", [-1e300, 0], [])])
def test_numbers_are_checked_against_their_limits(limits, inside, outside):
  for number in inside:
    bind.check_number(number, "here", limits=limits)
  for number in (*outside, float("nan"), float("inf"), -float("inf"), "1", None, True, 1j):
    with pytest.raises(ConfigError, match="here: expected a number"):
      bind.check_number(number, "here", limits=limits)


def function(x, *, names: tuple[str, ...] = (), places: list[int] | None = None,
             share: Annotated[float, "[0, 1]"] = 0.5,
             strengths: Annotated[Sequence[float], "[0, 1]"] = (), kind: Literal["one", "two"] = "one"):
  return names, places, share, strengths, kind


@pytest.mark.parametrize("values", [
    dict(names=("a",), places=None), dict(names=["a"]), dict(places=[1, 2]), dict(strengths=[0.1, 1]),
    dict(kind="two"), dict(share=dict(name="linear"))])
def test_values_of_the_annotated_type_are_bound(values):
  call = bind.bind(dict(name="function", **values), {"function": function}, "here")
  for key, value in values.items():
    found = call.schedules if isinstance(value, dict) else call.constants
    assert key in found
    assert not isinstance(found[key], list)  # configs compare equal after a round trip through JSON


@pytest.mark.parametrize(("values", "message"), [
    (dict(names=(1,)), r"here.names\[0\]: expected str, got 1"),
    (dict(names="a"), "here.names: expected tuple, got 'a'"),
    (dict(names=("a",), places=(1.5,)), r"here.places\[0\]: expected an integer"), (dict(names=None), "here.names"),
    (dict(strengths=(0.1, 2)), r"here.strengths\[1\]: expected a number in \[0, 1\], got 2"),
    (dict(strengths=((0.1,),)), r"here.strengths\[0\]: expected a number"),
    (dict(kind="tow"), "here.kind: expected one of one, two, got 'tow' .did you mean 'two'"),
    (dict(share=dict(name="liner")), "here.share.name: there is no 'liner' .did you mean 'linear'")])
def test_values_of_another_type_are_refused_by_their_path(values, message):
  with pytest.raises(ConfigError, match=message):
    bind.bind(dict(name="function", **values), {"function": function}, "here")


def nested(*, insert=None):
  return insert


nested.families = dict(insert="ltjax.models.afa")


@pytest.mark.parametrize("insert", ["AFA", 3, True, ("AFA",), {}, dict(AFA=1)])
def test_a_nested_block_must_be_a_block(insert):
  with pytest.raises(ConfigError, match="here.insert: expected dict.name="):
    bind.bind(dict(name="nested", insert=insert), dict(nested=nested), "here")
  assert bind.bind(dict(name="nested", insert=None), dict(nested=nested), "here").constants == dict(insert=None)


@pytest.mark.parametrize("module", FAMILIES, ids=lambda module: module.__name__)
def test_every_hyper_parameter_has_a_type_that_can_be_checked(module):
  unchecked = {
      f"{name}.{key}" for name, part in bind.public(module).items() for key, parameter in bind.hyper_parameters(
          part).items() if bind._kind(parameter) is object and not getattr(part, "families", {}).get(key)
      and key not in (*OFFERED, "dtype", "cache", "mask", "state", "partners")}
  assert unchecked <= {"Classifier.backbone", "Classifier.head"}


@pytest.mark.parametrize(("part", "key", "kind"), [
    (models.ResNetCIFAR, "depth", int), (models.ResNetCIFAR, "widths", tuple), (losses.gcl, "scale", float),
    (losses.gcl, "cloud_size", str), (losses.focal, "detach", bool)])
def test_the_type_of_a_hyper_parameter_comes_from_its_annotation_or_default(part, key, kind):
  assert bind._kind(bind.hyper_parameters(part)[key]) is kind


@pytest.mark.parametrize("module", FAMILIES, ids=lambda module: module.__name__)
def test_no_function_takes_keywords_in_which_a_misspelt_one_could_hide(module):
  for part in bind.public(module).values():
    assert not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(part).parameters.values())


@pytest.mark.parametrize(("name", "message"), [
    ("tests.no_such:part", "module 'tests.no_such' of 'tests.no_such:part' cannot be imported .*ModuleNotFoundError"),
    ("tests.config.test_bind:functoin", "has no 'functoin' .did you mean 'function'"),
    ("tests.config.test_bind:FIRST", "'tests.config.test_bind:FIRST' is of type Clock, expected a function or a class"),
    ("tests.config.test_bind:nested", "here.name: 'tests.config.test_bind:nested' is not what is needed"),
    ("builtins:dict", "here.name: 'builtins:dict' has no signature to check arguments by")])
def test_outside_names_that_cannot_be_used_are_refused(name, message):
  with pytest.raises(ConfigError, match=message):
    bind.lookup(name, {}, "here.name", lambda part: "is not what is needed")


def test_outside_functions_with_keywords_are_refused():
  with pytest.raises(ConfigError, match=r"takes \*\*keywords, in which a misspelt argument would vanish"):
    bind.lookup("tests.config.test_bind:open_ended", {}, "here.name")
  assert bind.lookup("tests.config.test_bind:function", {}, "here.name") is not None


def open_ended(x, **options):
  return x, options
