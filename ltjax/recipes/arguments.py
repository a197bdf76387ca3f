"""The arguments of a config: the text behind the colon of --config."""

import contextlib
import contextvars
import re
from collections.abc import Iterator, Mapping

from ltjax.errors import ConfigError, nearest

WHAT = ("dataset", "imbalance", "preset")  # the arguments that choose what runs, rather than change how


_declared = contextvars.ContextVar("declared", default=None)


@contextlib.contextmanager
def declared() -> Iterator[dict]:
  """Collects the arguments that the configs built inside the block declare, with their defaults and choices."""
  token = _declared.set(found := {})
  try:
    yield found
  finally:
    _declared.reset(token)


def arguments(text: str, **defaults) -> dict:
  """The arguments of a config from the text after the colon of --config.

  Commas separate the entries: name=value, or a bare value. A bare value sets the first argument that has it as a
  choice, else the first number. Each value takes the type of its default. A default that is a tuple lists the choices,
  with the default first; a dict gives a default for each choice of another argument.

  Args:
    text: "cifar100,50", "50,cloud_size=cosine" or "cloud_size=cosine".
    **defaults: the config's arguments with their defaults.

  Returns:
    `defaults` with the values that `text` gives. An argument `preset` becomes dict(name=..., changed=...), the preset
    and what `text` changes in it: meant for `config.preset`, from where it goes to results.json.

  Raises:
    ConfigError: the config has no argument of this name, a name comes twice, or a value has another type.

  >>> arguments("50,cosine", imbalance=100.0, cloud_size=("log", "cosine"), retrain=True)
  {'imbalance': 50.0, 'cloud_size': 'cosine', 'retrain': True}
  """
  if (found := _declared.get()) is not None:
    found.update(defaults)
  given, where = {}, f"the config's argument {text!r}"
  for entry in filter(None, str(text).split(",")):
    key, equals, value = map(str.strip, entry.partition("="))
    if not equals:
      key, value = _bare(key, defaults, where), key
    if key == "preset" and key not in defaults:
      raise ConfigError(f"{where}: this config has one recipe, and no presets; leave {entry.strip()!r} out")
    if key not in defaults:
      raise ConfigError(f"{where}: there is no {key!r}{nearest(key, defaults)}; there are {', '.join(defaults)}")
    if key in given:
      raise ConfigError(f"{where}: {key} comes twice")
    default = next(iter(defaults[key].values())) if isinstance(defaults[key], dict) else defaults[key]
    given[key] = _value(value, default, f"the config's argument {key}")
  chosen = [given.get(key, value[0]) for key, value in defaults.items() if isinstance(value, tuple)]
  resolved = {
      key: value[0] if isinstance(value, tuple) else value[next(choice for choice in chosen if choice in value)]
      if isinstance(value, dict) else value for key, value in defaults.items()}
  if "preset" in defaults:
    changed = tuple(f"{key}={value}" for key, value in given.items() if key not in WHAT and value != resolved[key])
    given["preset"] = dict(name=given.get("preset", resolved["preset"]), changed=changed)
  return resolved | given


def _bare(value: str, defaults: Mapping, where: str) -> str:
  """The argument that a bare value sets."""
  choices = {}
  for key, default in defaults.items():
    for choice in default if isinstance(default, tuple) else ():
      choices.setdefault(choice, key)
  if value in choices:
    return choices[value]
  numbers = [key for key, default in defaults.items() if type(default) in (int, float)]
  if numbers and not isinstance(next(iter(defaults.values())), tuple) or re.match(r"[\d.+-]", value):
    return (numbers or list(defaults))[0]
  if not choices:
    return next(iter(defaults))
  raise ConfigError(f"{where}: {value!r} is not a choice{nearest(value, choices)}; there are {', '.join(choices)}; "
                    f"names are {', '.join(defaults)}")


def _value(text: str, default, where: str):
  """`text` as the type of `default`; as one of its entries if it is a tuple."""
  if isinstance(default, tuple):
    if text not in default:
      raise ConfigError(f"{where}: expected one of {', '.join(default)}, got {text!r}{nearest(text, default)}")
    return text
  if isinstance(default, bool):
    if text.lower() not in ("true", "false"):
      raise ConfigError(f"{where}: expected true or false, got {text!r}")
    return text.lower() == "true"
  try:
    return type(default)(text)
  except ValueError as error:
    wanted = "an integer" if isinstance(default, int) else "a number"
    raise ConfigError(f"{where}: expected {wanted}, got {text!r}") from error


def one_of(key: str, name: str, choices: Mapping):
  """`choices[name]`, for an argument `key` of a config; raises a `ConfigError` if there is none."""
  if name not in choices:
    raise ConfigError(f"the config's argument {key}: expected one of {', '.join(choices)}, got {name!r}"
                      f"{nearest(name, choices)}")
  return choices[name]
