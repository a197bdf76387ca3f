"""The range that an annotation declares is the range that the function or module accepts."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltjax import losses, models, posthoc
from ltjax.augment import features
from ltjax.data import samplers
from ltjax.errors import ConfigError
from ltjax.losses.arguments import in_range, intervals, ranged
from ltjax.models import afa, heads

FUNCTIONS = [getattr(module, name) for module in (losses, samplers, posthoc, features) for name in module.__all__
             if inspect.isfunction(getattr(module, name))]
MODULES = [value for module in (heads, afa, models) for name in module.__all__
           if inspect.isclass(value := getattr(module, name)) and intervals(value)]
RANGED = [*FUNCTIONS, *dict.fromkeys(MODULES)]
REQUIRED = {"num_classes": 7, "scale": 1.0, "threshold": 1.0}


def outside(interval):
  """Numbers just outside an interval such as "[0, 1)", and NaN."""
  low, high = map(float, interval[1:-1].split(","))
  found = [low - 0.1 if interval[0] == "[" else low, np.nan]
  return [*found, high + 0.1 if interval[-1] == "]" else high] if interval[-4:] != "inf]" else found


@pytest.mark.parametrize(("function", "name"), [(part, name) for part in RANGED for name in intervals(part)],
                         ids=lambda value: getattr(value, "__name__", value))
def test_a_number_outside_its_range_is_named_with_its_range(function, name):
  interval = intervals(function)[name]
  fields = inspect.signature(function).parameters
  others = {key: value for key, value in REQUIRED.items() if key in fields and inspect.isclass(function)}
  for bad in outside(interval):
    with pytest.raises(ConfigError) as info:
      function(**others | {name: bad})
    assert str(info.value) == f"{function.__name__}: {name} must be in {interval}, got {bad}."


def test_every_schedulable_number_has_a_range():
  for function in FUNCTIONS:
    parameters = inspect.signature(function).parameters.values()
    assert {p.name for p in parameters if p.kind is p.KEYWORD_ONLY and type(p.default) is float} <= set(
        intervals(function))


@pytest.mark.parametrize(("interval", "inside", "beyond"), [
  ("[0, 1]", (0, 0.5, 1), (-1e-9, 1.1, np.nan)),
  ("(0, 1)", (0.5,), (0, 1)),
  ("[0, inf)", (0, 1e30), (np.inf, -1)),
  ("(0, inf]", (1e-30, np.inf), (0, np.nan)),
  ("(-inf, inf)", (-1e30, 0), (np.inf, -np.inf, np.nan)),
  ("[0, inf)", ((0, 1), np.arange(3.0)), ((0, -1), np.array([np.nan]))),
])
def test_intervals(interval, inside, beyond):
  for number in inside:
    in_range("f: x", number, interval)
    in_range("f: x", jnp.asarray(number), interval)
  for number in beyond:
    with pytest.raises(ConfigError, match="f: x must be in"):
      in_range("f: x", number, interval)


def test_traced_numbers_pass_and_the_signature_stays():
  assert losses.focal.__name__ == "focal" and list(inspect.signature(losses.focal).parameters) == [
      "logits", "labels", "gamma", "detach"]
  traced = jax.jit(lambda gamma: losses.focal(jnp.zeros((1, 2)), jnp.array([0]), gamma=gamma))
  assert traced(-1.0).shape == (1,)
  plain = ranged(lambda x, *, y=0.0: x + y)
  assert plain(1, y=-2.0) == -1 and intervals(plain) == {}
