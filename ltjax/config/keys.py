"""Checks the keys of a config, and that JSON can hold their values."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from ltjax import recipes
from ltjax.config.bind import show
from ltjax.errors import ConfigError, nearest

OPTIONAL = ("preset",)  # a config without presets has none


def flat(config: Mapping, prefix: str = "") -> dict[str, object]:
  """{"a.b": value} of every leaf of nested mappings."""
  leaves = {}
  for key, value in config.items():
    if isinstance(value, Mapping | ConfigDict) and len(value):
      leaves |= flat(value, f"{prefix}{key}.")
    else:
      leaves[prefix + key] = value
  return leaves


def check_literals(config: ConfigDict) -> None:
  """Raises for a value that config.json could not hold."""

  def check(value, where: str) -> None:
    if isinstance(value, Mapping | ConfigDict):
      for key, entry in value.items():
        check(entry, f"{where}.{key}" if where else key)
    elif isinstance(value, tuple | list):
      for index, entry in enumerate(value):
        check(entry, f"{where}[{index}]")
    elif value is not None and not isinstance(value, bool | int | float | str):
      raise ConfigError(f"{where}: expected a number, string, bool, tuple, dict or None, got {show(value)}; "
                        "config.json could not hold it")

  check(config, "")


def stage_names(config: ConfigDict) -> tuple[str, ...]:
  """The names of the stages; raises unless the config has exactly their blocks and the keys of every config."""
  if "stages" not in config:  # perhaps a typo; without the names no block can be told from a wrong key
    near = next((key for key in config if nearest(key, ["stages"]) and key not in recipes.RUN_KEYS), None)
    raise ConfigError(f"{near}: not a key of a config (did you mean 'stages'?)" if near else
                      "stages: missing from the config")
  names = config.stages
  if not isinstance(names, tuple | list) or not names or not all(isinstance(name, str) for name in names):
    raise ConfigError(f"stages: expected a tuple of stage names, got {show(names)}")
  for name in names:
    if not name.isidentifier() or name in (*recipes.RUN_KEYS, *OPTIONAL, "report"):
      raise ConfigError(f"stages: a stage names its block and its folder and so cannot be called {name!r}; "
                        "try 'representation' or 'classifier'")
  if len(set(names)) < len(names):
    raise ConfigError(f"stages: every stage needs its own name, got {show(names)}")
  known = (*recipes.RUN_KEYS, *OPTIONAL, *names)
  for key, value in config.items():
    if key not in known:
      if isinstance(value, ConfigDict) and not nearest(key, [name for name in known if name not in config]):
        raise ConfigError(f"{key}: a block that stages={tuple(names)!r} does not name{nearest(key, known)}; "
                          "name it there or remove it")
      raise ConfigError(f"{key}: not a key of a config{nearest(key, known)}; there are {', '.join(known)}")
  for key in known:
    if key not in config and key not in OPTIONAL:
      raise ConfigError(f"{key}: missing from the config{' (stages names it)' if key in names else ''}")
  return tuple(names)
