"""Lists the configs; of one, its arguments, its presets and every key that the command line can set.

python -m ltjax configs                          one line a config
python -m ltjax configs gcl_cifar                what it takes behind the colon, and its keys with values and types
python -m ltjax configs gcl_cifar:cifar100,paper --key=lr    with arguments, and only the keys that hold a text

A key is set with --config.KEY=VALUE. In brackets are keys that the config leaves at their default.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence

from ltjax import recipes
from ltjax.config import load, shipped, spec
from ltjax.config.bind import show, wanted
from ltjax.config.keys import flat
from ltjax.errors import LtjaxError
from ltjax.losses.objective import OFFERED

# Parameters of parts that are no hyper-parameters: the caller supplies them.
_SUPPLIED = {"parent", "name", "dtype", "cache", "num_classes", "mask", "center", "learning_rate", "lr", *OFFERED}


def overview() -> str:
  """A line for each config: its name, the first line of its docstring, its presets."""
  lines = []
  for name in shipped.names():
    first = shipped.description(shipped.folder() / f"{name}.py").splitlines()[0].rstrip(".")
    choices = arguments(shipped.path(name)).get("preset", ())
    lines.append(f"{name:28}{first}" + (f" [{', '.join(choices)}]" if choices else ""))
  return "\n".join((*lines, "", "in brackets: presets; `ltjax configs NAME` says more"))


def arguments(path: str) -> dict:
  """{argument: its default; a tuple of choices, the default first; a dict of defaults} of a config's file."""
  with recipes.declared() as found:
    load.read(path)
  return found


def keys(config) -> dict[str, tuple[str, str, bool]]:
  """{key: (value, what it may be, whether the config sets it)} of everything that --config.KEY can set."""
  bound = spec.parse(config)
  given, parameters, defaults = flat(config), bound.parameters, bound.defaults
  found = {key: (show(value), _type(key, value, parameters), True) for key, value in given.items()
           if not key.startswith("preset.")}  # which only records what ran
  for key, parameter in parameters.items():
    of_class = key.startswith(("backbone.", "head.")) or ".head." in key  # whose fields are hyper-parameters
    may_be_set = parameter.kind is parameter.KEYWORD_ONLY or of_class
    inside = any(known == key or known.startswith(f"{key}.") for known in found)
    if may_be_set and not inside and key in defaults and key.rpartition(".")[2] not in _SUPPLIED:
      found[key] = show(defaults[key]), _type(key, defaults[key], parameters), False
  return dict(sorted(found.items()))


def _type(key: str, value, parameters: Mapping) -> str:
  last = key.rpartition(".")[2]
  if key in spec.SETTINGS:
    kind, limits = spec.SETTINGS[key]
    return f"{kind.__name__} in {limits}"
  choices = spec.IMAGES.get(key) or (spec.READING.get(last) if key.startswith("dataset.") else None) or dict(
      precision=tuple(spec.PRECISIONS), on_nonfinite=spec.ON_NONFINITE, cache_features=spec.CACHE_FEATURES).get(key)
  if choices:
    return " | ".join(choice or "''" for choice in choices)
  if last == "name":
    return "a part's name"
  if key in parameters:
    return wanted(parameters[key])
  return "None or a block" if value is None else type(value).__name__


def page(name: str, only: str = "") -> str:
  """The docstring, the arguments and the keys of a config; `only` leaves out the keys that do not hold this text."""
  path = shipped.path(name)
  config, taken, file = load.read(path), arguments(path), load.split(path)[0]
  lines = [shipped.description(file), ""]
  if taken:
    lines.append(f"arguments, as in --config={file}:{_example(taken)}")
    lines += [f"  {key:24}{_choices(value)}" for key, value in taken.items()]
    lines.append("")
  elif own := shipped.parameter(file):
    lines += [f"argument, as in --config={file}:{own[1]}", f"  {own[0]:24}{own[1]} by default", ""]
  rows = {key: row for key, row in keys(config).items() if only in key}
  lines.append(f"keys{f' with {only!r} in them' if only else ''}, each set as in --config.seed=1")
  width = max(map(len, rows), default=0) + 4
  lines += [f"  {key if is_set else f'[{key}]':{width}}{value:32}  {kind}"
            for key, (value, kind, is_set) in rows.items()]
  return "\n".join(lines)


def _example(taken: Mapping) -> str:
  """Two arguments with values that they may have."""
  def last(value):
    return value[-1] if isinstance(value, tuple) else next(iter(value.values())) if isinstance(value, dict) else value

  return ",".join(f"{key}={str(last(value)).lower() if isinstance(value, bool) else last(value)}"
                  for key, value in list(taken.items())[:2])


def _choices(value) -> str:
  if isinstance(value, tuple):
    return " | ".join(map(str, value)) + "  (the first by default)" * (len(value) > 1)
  if isinstance(value, dict):
    return "; ".join(f"{default} with {choice}" for choice, default in value.items())
  return f"{type(value).__name__}, {value} by default"


def main(arguments: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(prog="ltjax configs", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("name", nargs="?", metavar="NAME[:ARGUMENT]", help="a config, by its name or its file")
  parser.add_argument("--key", default="", help="only the keys that hold this text")
  given = parser.parse_args(arguments)
  try:
    print(page(given.name, given.key) if given.name else overview())
  except LtjaxError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(load.EXIT_BAD_INPUT)


if __name__ == "__main__":
  main(sys.argv[1:])
