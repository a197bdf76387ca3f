"""Runs a config with several seeds and values, and writes one table of them.

python -m ltjax sweep configs/gcl_digits.py --seeds=5 --set representation.epochs=20,40 --folder=runs/sweep

--set may come several times; every combination is run. It can be stopped at any moment and goes on with the same
command; several machines may share --folder. The table is FOLDER/sweep.md.
"""

import argparse
import ast
import itertools
import pathlib
import sys
from collections.abc import Sequence

from ltjax.commands import reproduce
from ltjax.commands.running import engine, tables
from ltjax.config import load
from ltjax.distributed.signals import EXIT_STOPPED
from ltjax.errors import ConfigError, LtjaxError, writing


def values(text: str) -> tuple[str, tuple[str, ...]]:
  """(key, values) of `key=v1,v2`; commas inside brackets and quotes separate nothing.

  >>> values("representation.lr=0.1,dict(name='cosine',base=0.1)")
  ('representation.lr', ('0.1', "dict(name='cosine',base=0.1)"))
  """
  key, equals, rest = text.partition("=")
  if not key or not equals or not rest:
    raise ConfigError(f"--set: expected KEY=VALUE,VALUE ..., got {text!r}")
  try:
    parsed = ast.parse(f"({rest},)", mode="eval").body.elts
  except SyntaxError:
    return key, tuple(rest.split(","))
  source = f"({rest},)"
  return key, tuple(ast.get_source_segment(source, entry) for entry in parsed)


def main(arguments=None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(prog="ltjax sweep", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter,
                                   epilog="--config.KEY=VALUE is given to every run.")
  parser.add_argument("config", help="FILE or FILE:ARGUMENT")
  parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE,VALUE")
  parser.add_argument("--seeds", type=int, default=1, help="runs of each combination, from seed 0 on")
  parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/sweep"))
  given, options = parser.parse_known_args(arguments)
  sys.exit(run(given, options))


def run(given: argparse.Namespace, options: Sequence[str]) -> int:
  """Does what the command line asks for; returns the exit code."""
  try:
    reproduce.check_options(options)
    if given.seeds < 1:
      raise ConfigError(f"--seeds: expected at least 1, got {given.seeds}")
    keys, choices = zip(*map(values, given.set), strict=True) if given.set else ((), ())
    runs = {}
    for chosen in itertools.product(*choices):
      own = tuple(f"--config.{key}={value}" for key, value in zip(keys, chosen, strict=True))
      stem = engine.name_of(given.config, *(text.removeprefix("--config.") for text in own))
      runs[chosen] = [engine.Run(f"{stem}_seed_{seed}", given.config, (*own, f"--config.seed={seed}", *options))
                      for seed in range(given.seeds)]
    every = [each for found in runs.values() for each in found]
    engine.check(every)
    outcome = engine.complete(every, given.folder, lambda text: print(text, file=sys.stderr, flush=True))
    path = given.folder / "sweep.md"
    with writing(path):
      path.write_text("\n".join([f"# {given.config}", "", *table(keys, runs, given.folder), ""]))
  except LtjaxError as error:
    print(f"error: {error}", file=sys.stderr)
    return load.EXIT_BAD_INPUT
  print(path.read_text())
  print(f"{len(outcome.done)} of {len(every)} runs are finished, {len(outcome.failed)} failed, "
        f"{len(outcome.elsewhere)} are under way elsewhere; written: {path}")
  return EXIT_STOPPED if outcome.stopped else int(bool(outcome.failed))


def table(keys: Sequence[str], runs: dict, folder: pathlib.Path) -> list[str]:
  """The lines of the table, one a combination."""
  lines = []
  for chosen, found in runs.items():
    there = [result for each in found if (result := engine.results(folder, each))]
    if there:
      lines.append([*chosen, *(tables.spread([each["final"][group] for each in there]) for group in tables.GROUPS),
                    len(there), *tables.circumstances(there)])
  return tables.markdown((*keys, *(f"{group}, %" for group in tables.GROUPS), "seeds", *tables.CIRCUMSTANCES), lines)


if __name__ == "__main__":
  main(sys.argv[1:])
