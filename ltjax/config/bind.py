"""Turns config blocks into calls: looks up the name and checks the arguments against the signature.

A block is a dict with a `name` and hyper-parameters. The name is a public function or class of the family's module, or
`package.module:Name` for one of your own. A misspelt name or argument fails here, before any data are read, and the
message suggests the nearest existing one.
"""

import difflib
import importlib
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from ltjax import schedules
from ltjax.errors import ConfigError, LtjaxError, nearest
from ltjax.losses.arguments import interval_of
from ltjax.schedules import Clock

ANY_NUMBER = "(-inf, inf)"


def public(module, accepts: Callable[[Callable], bool] = callable) -> dict[str, Callable]:
  """The functions and classes that `module` exports and the family `accepts`."""
  exported = {name: getattr(module, name) for name in module.__all__}
  return {name: value for name, value in exported.items() if callable(value) and accepts(value)}


class Call(NamedTuple):
  """A function or class with its hyper-parameters: constants bound, scheduled ones evaluated at every step."""

  function: Callable
  constants: dict
  schedules: dict[str, Callable[[Clock], float]]

  @property
  def name(self) -> str:
    """The function's name, for messages."""
    return self.function.__name__

  @property
  def arguments(self) -> tuple[str, ...]:
    """The names of all parameters."""
    return tuple(signature(self.function))

  def at(self, clock: Clock) -> dict[str, float]:
    """The values of the scheduled hyper-parameters at `clock`."""
    return {name: schedule(clock) for name, schedule in self.schedules.items()}

  def __call__(self, *args, **kwargs):
    """Calls the function with its constants."""
    return self.function(*args, **self.constants, **kwargs)


def plain(block):
  """`block` without ConfigDicts."""
  if isinstance(block, ConfigDict):
    return block.to_dict()
  return block


def named_block(block, where: str, choices: Sequence[str]) -> dict:
  """`block` as a plain dict; raises unless it is a dict with a `name`."""
  block = plain(block)
  if isinstance(block, Mapping) and isinstance(block.get("name"), str):
    return dict(block)
  misspelt = difflib.get_close_matches("name", map(str, block), n=1, cutoff=0.7) if isinstance(block, Mapping) else []
  if misspelt and misspelt != ["name"]:
    raise ConfigError(f"{where}.{misspelt[0]}: not a key here (did you mean 'name'?)")
  raise ConfigError(f"{where}: expected dict(name=..., hyper-parameters), got {show(block)}; "
                    f"names are {', '.join(sorted(choices))}, or 'package.module:Name' for your own")


def bind(block, choices: Mapping[str, Callable], where: str, *, given: Sequence[str] = (), may_change: bool = True,
         beside: Sequence[str] = (), check: Callable[[Callable], str | None] = lambda part: None) -> Call:
  """Looks up `block["name"]` and checks the other entries against its parameters.

  Args:
    block: {"name": ..., hyper-parameter: number, string, nested block, or a schedule block}.
    choices: the functions and classes of the family, by name.
    where: the config path of the block, for messages.
    given: parameters that the caller supplies and a config must not set.
    may_change: whether schedules are allowed as values.
    beside: further keys that the block may have, for messages only; the caller has removed them.
    check: returns a message about anything that an outside part lacks, or None.
  """
  block = named_block(block, where, choices)
  name, values = block.pop("name"), block
  part = lookup(name, choices, f"{where}.name", check)
  state = getattr(part, "state", None)  # the step supplies the state that a loss declares
  given = (*given, *((state.argument,) if state else ()))
  allowed = {key: p for key, p in hyper_parameters(part, ":" in name).items() if key not in given}
  for key in values:
    if key not in allowed:
      known = (*allowed, *beside)
      raise ConfigError(f"{where}.{key}: {name} has no such argument{nearest(str(key), known)}; "
                        f"it takes {', '.join(known) or 'none'}")
  if missing := [key for key, p in allowed.items() if p.default is p.empty and key not in values]:
    raise ConfigError(f"{where}: {name} needs {', '.join(missing)}")
  call = Call(part, {}, {})
  for key, value in values.items():
    _bind_value(call, key, value, allowed[key], f"{where}.{key}", may_change)
  return call


def _bind_value(call: Call, key: str, value, parameter: inspect.Parameter, where: str, may_change: bool) -> None:
  families = getattr(call.function, "families", {})
  if key in families and value is not None:
    inner = bind(value, public(importlib.import_module(families[key]), inspect.isclass), where, may_change=False)
    call.constants[key] = at_path(where, inner)
  elif isinstance(value, Mapping) and _kind(parameter) is not dict:
    if not may_change or _kind(parameter) is not float:
      raise ConfigError(f"{where}: {call.name} takes a fixed value here, not a schedule")
    call.schedules[key] = schedule(value, where)
  else:
    _check_type(value, parameter, where)
    call.constants[key] = tuple(value) if isinstance(value, list) else value


def lookup(name: str, choices: Mapping[str, Callable], where: str,
           check: Callable[[Callable], str | None] = lambda part: None) -> Callable:
  """The part called `name`: one of `choices`, or `package.module:Name` from anywhere."""
  if ":" not in name:
    if name not in choices:
      raise ConfigError(f"{where}: there is no {name!r}{nearest(name, choices)}; there are "
                        f"{', '.join(sorted(choices))}, or 'package.module:Name' for your own")
    return choices[name]
  module_name, _, attribute = name.partition(":")
  try:
    module = importlib.import_module(module_name)
  except Exception as error:  # a module may raise anything while it is imported
    raise ConfigError(f"{where}: module {module_name!r} of {name!r} cannot be imported ({type(error).__name__}: "
                      f"{error}); put its folder on PYTHONPATH or install it") from error
  if not hasattr(module, attribute):
    raise ConfigError(f"{where}: module {module_name!r} has no {attribute!r}{nearest(attribute, dir(module))}")
  part = getattr(module, attribute)
  if not callable(part):
    raise ConfigError(f"{where}: {name!r} is of type {type(part).__name__}, expected a function or a class")
  try:
    parameters = signature(part)
  except ValueError as error:  # a part written in C may have none
    raise ConfigError(f"{where}: {name!r} has no signature to check arguments by; wrap it in a function") from error
  if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
    raise ConfigError(f"{where}: {name!r} takes **keywords, in which a misspelt argument would vanish; name each "
                      "argument in its signature")
  if lacks := check(part):
    raise ConfigError(f"{where}: {name!r} {lacks}")
  return part


def signature(function: Callable) -> dict[str, inspect.Parameter]:
  """The parameters of a function, or the fields of a class, with their annotations evaluated where possible."""
  try:
    return dict(inspect.signature(function, eval_str=True).parameters)
  except (NameError, AttributeError, SyntaxError, TypeError):  # an annotation that cannot be evaluated
    return dict(inspect.signature(function).parameters)


def hyper_parameters(function: Callable, outside: bool = False) -> dict[str, inspect.Parameter]:
  """The parameters that a config may set: the keyword-only ones, a class's fields, or all of an outside function."""
  parameters = signature(function).values()
  if inspect.isclass(function):
    return {p.name: p for p in parameters if p.name not in ("parent", "name")}
  if outside:
    return {p.name: p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
  return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}


# -- types and ranges, as the annotations declare them ----------------------------------------------------------------


def interval(parameter: inspect.Parameter) -> str:
  """The range that a parameter's annotation declares; any number where it declares none."""
  return interval_of(parameter.annotation) or ANY_NUMBER


def _members(annotation) -> tuple:
  """The types that a union joins, or the annotation itself, without `Annotated`."""
  if typing.get_origin(annotation) is typing.Annotated:
    return _members(typing.get_args(annotation)[0])
  if typing.get_origin(annotation) in (types.UnionType, typing.Union):
    return tuple(inner for member in typing.get_args(annotation) for inner in _members(member))
  return (annotation,)


def _kind(parameter: inspect.Parameter) -> type:
  """The type of a parameter in a config, by its annotation or else its default; `object` if neither tells."""
  members = [typing.get_origin(member) or member for member in _members(parameter.annotation)]
  members.append(type(parameter.default))
  known = {bool: bool, str: str, typing.Literal: str, tuple: tuple, list: tuple, Sequence: tuple, dict: dict,
           Mapping: dict, float: float, int: int}
  return next((kind for annotated, kind in known.items() if annotated in members), object)


def wanted(parameter: inspect.Parameter) -> str:
  """What a config may set a parameter to, in words: "float in (0, inf)", "log | cosine"."""
  if literals := [member for member in _members(parameter.annotation) if typing.get_origin(member) is typing.Literal]:
    return " | ".join(map(str, typing.get_args(literals[0])))
  kind, limits = _kind(parameter), interval(parameter)
  return (kind.__name__ if kind is not object else "any value") + (f" in {limits}" if limits != ANY_NUMBER else "")


def _check_type(value, parameter: inspect.Parameter, where: str) -> None:
  kind, limits = _kind(parameter), interval(parameter)
  if value is None and (parameter.default is None or type(None) in _members(parameter.annotation)):
    return
  if literals := [member for member in _members(parameter.annotation) if typing.get_origin(member) is typing.Literal]:
    check_choice(value, typing.get_args(literals[0]), where)
    return
  if str in _members(parameter.annotation) and isinstance(value, str):
    return
  if kind in (int, float):
    check_number(value, where, kind, limits)
  elif kind is tuple and isinstance(value, tuple | list):
    entries = {inner for member in _members(parameter.annotation) for inner in typing.get_args(member)}
    for index, entry in enumerate(value):
      if str in entries:
        check_kind(entry, str, f"{where}[{index}]")
      elif {int, float} & entries or limits != ANY_NUMBER or not isinstance(entry, tuple | list):
        check_number(entry, f"{where}[{index}]", int if int in entries else float, limits)
  elif kind is not object:
    check_kind(value, kind, where)


def show(value) -> str:
  """A config value for a message, cut after 120 characters."""
  text = repr(plain(value))
  return text if len(text) <= 120 else f"{text[:120]} ..."


def check_kind(value, kind: type, where: str) -> None:
  """Raises unless `value` is of type `kind`."""
  if not isinstance(value, kind):
    raise ConfigError(f"{where}: expected {kind.__name__}, got {show(value)} ({type(value).__name__})")


def check_number(value, where: str, kind: type = float, limits: str = ANY_NUMBER) -> None:
  """Raises unless `value` is a number (an integer where `kind` is int) inside `limits`, such as "[0, 1)"."""
  low, high = map(float, limits[1:-1].split(","))
  is_number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
  inside = is_number and not math.isnan(value) and (
      low < value < high or (value == low and limits[0] == "[") or (value == high and limits[-1] == "]"))
  if not inside:
    wanted = "an integer" if kind is int else "a number"
    extent = f" in {limits}" if math.isfinite(high) else (
        f" of at least {low:g}" if limits[0] == "[" else f" above {low:g}" if math.isfinite(low) else "")
    raise ConfigError(f"{where}: expected {wanted}{extent}, got {show(value)}")


def check_choice(value, choices: Sequence[str], where: str) -> None:
  """Raises unless `value` is one of `choices`."""
  if value not in choices:
    raise ConfigError(f"{where}: expected one of {', '.join(choices)}, got {show(value)}"
                      f"{nearest(str(value), choices)}")



def at_path(where: str, function: Callable, *args, **kwargs):
  """function(*args, **kwargs); puts the config path `where` in front of ltjax's errors."""
  try:
    return function(*args, **kwargs)
  except LtjaxError as error:
    raise ConfigError(f"{where}: {error}") from error


# -- schedules --------------------------------------------------------------------------------------------------------


class Schedule(NamedTuple):
  """A schedule with its numbers bound: clock -> number."""

  call: Call

  def __call__(self, clock: Clock) -> float:
    """The value at `clock`."""
    return self.call(clock)

  def beyond(self, epochs: int) -> list[str]:
    """A message for each part of the schedule that takes no full effect in a stage of `epochs`."""
    at = self.call.constants.get("at", ())
    late = [f"{epoch:g}" for epoch in (at if isinstance(at, tuple) else (at,)) if epoch >= epochs]
    messages = [f".at: {', '.join(late)} of {epochs} epochs never come (epochs count from 0)"] if late else []
    if (warmup := self.call.constants.get("warmup", 0)) > epochs:
      messages.append(f".warmup: {warmup:g} epochs of warm-up do not end within the {epochs} of the stage")
    return messages


def _schedule_lacks(part: Callable) -> str | None:
  return None if "clock" in signature(part) else "takes no 'clock', which a schedule reads"


def schedule(block, where: str, limits: str = ANY_NUMBER) -> Callable[[Clock], float]:
  """A schedule block, or a plain number, as a function of the clock."""
  choices = public(schedules)
  if isinstance(block, int | float):
    check_number(block, where, float, limits)
    return lambda clock: block
  if not isinstance(block, Mapping | ConfigDict):
    raise ConfigError(f"{where}: expected a number or a schedule, dict(name=...), got {show(block)}; "
                      f"schedules are {', '.join(sorted(choices))}")
  call = bind(block, choices, where, given=("clock",), may_change=False, check=_schedule_lacks)
  lists = {key: value for key, value in call.constants.items() if isinstance(value, tuple | list)}
  if len({len(value) for value in lists.values()}) > 1:
    raise ConfigError(f"{where}: {' and '.join(lists)} belong together, entry by entry, but have "
                      f"{' and '.join(str(len(value)) for value in lists.values())} entries")
  if any(later <= earlier for earlier, later in zip(lists.get("at", ()), lists.get("at", ())[1:], strict=False)):
    raise ConfigError(f"{where}.at: expected increasing epochs, got {lists['at']!r}")
  return Schedule(call)


def rates(block, where: str) -> dict[float, Callable[[Clock], float]]:
  """{base: schedule} of a learning rate; several if its number, or its `base`, is a tuple of candidates."""
  if isinstance(block, tuple | list):
    bases, blocks = block, block
  elif isinstance(block, Mapping | ConfigDict) and isinstance(block.get("base"), tuple | list):
    bases, where = block["base"], f"{where}.base"
    blocks = [dict(plain(block), base=base) for base in bases]
  else:
    return {0.0: schedule(block, where, "[0, inf)")}
  for base in bases:
    check_number(base, where, float, "[0, inf)")
  if len(set(bases)) < 2:
    raise ConfigError(f"{where}: expected a number, or a tuple of several candidates, got {show(bases)}")
  return {float(base): schedule(block, where, "[0, inf)") for base, block in zip(bases, blocks, strict=True)}
