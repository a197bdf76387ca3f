"""Runs a config with several seeds and values, and writes one table of them.

python -m ltjax sweep configs/gcl_digits.py --seeds=5 --set representation.epochs=20,40 --folder=runs/sweep
python -m ltjax sweep configs/gcl_cifar.py:cifar100 --arg cloud_size=log,cosine

--set changes a key of the config, --arg an argument behind its colon. Both may come several times; every combination is
run. It can be stopped at any moment and goes on with the same
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


def values(text: str, option: str = "--set") -> tuple[str, tuple[str, ...]]:
  """(key, values) of `key=v1,v2`, which was given as `option`; commas inside brackets and quotes separate nothing.

  >>> values("representation.lr=0.1,dict(name='cosine',base=0.1)")
  ('representation.lr', ('0.1', "dict(name='cosine',base=0.1)"))
  """
  key, equals, rest = text.partition("=")
  if not key or not equals or not rest:
    raise ConfigError(f"{option}: expected KEY=VALUE,VALUE ..., got {text!r}")
  try:
    parsed = ast.parse(f"({rest},)", mode="eval").body.elts
  except SyntaxError:
    return key, tuple(rest.split(","))
  source = f"({rest},)"
  return key, tuple(ast.get_source_segment(source, entry) for entry in parsed)


def with_arguments(config: str, texts: Sequence[str]) -> str:
  """A value of --config with further arguments behind its colon.

  >>> with_arguments("configs/gcl_cifar.py:cifar100", ["cloud_size=log"])
  'configs/gcl_cifar.py:cifar100,cloud_size=log'
  """
  path, _, own = config.partition(":")
  entries = ",".join(filter(None, (own, *texts)))
  return f"{path}:{entries}" if entries else path


def parse(arguments=None) -> tuple[argparse.Namespace, list[str]]:
  """(what the command line gives, --config.KEY=VALUE for every run)."""
  parser = argparse.ArgumentParser(prog="ltjax sweep", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter,
                                   epilog="--config.KEY=VALUE is given to every run.")
  parser.add_argument("config", help="FILE or FILE:ARGUMENT")
  parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE,VALUE")
  parser.add_argument("--arg", action="append", default=[], metavar="KEY=VALUE,VALUE")
  parser.add_argument("--seeds", type=int, default=1, help="runs of each combination, from seed 0 on")
  parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/sweep"))
  return parser.parse_known_args(arguments)


def main(arguments=None) -> None:
  """The command line."""
  sys.exit(run(*parse(arguments)))


def combinations(given: argparse.Namespace, options: Sequence[str]) -> tuple[tuple[str, ...], dict]:
  """(what varies, {its values: the runs, one a seed}); raises a `ConfigError` where one of them could not start."""
  reproduce.check_options(options)
  if given.seeds < 1:
    raise ConfigError(f"--seeds: expected at least 1, got {given.seeds}")
  varied = [values(text, "--arg") for text in given.arg] + [values(text) for text in given.set]
  keys, choices = zip(*varied, strict=True) if varied else ((), ())
  runs = {}
  for chosen in itertools.product(*choices):
    texts = [f"{key}={value}" for key, value in zip(keys, chosen, strict=True)]
    config, changed = with_arguments(given.config, texts[:len(given.arg)]), texts[len(given.arg):]
    stem = engine.name_of(config, *changed)
    runs[chosen] = [engine.Run(f"{stem}_seed_{seed}", config, (
        *(f"--config.{text}" for text in changed), f"--config.seed={seed}", *options)) for seed in range(given.seeds)]
  engine.check([each for found in runs.values() for each in found])
  return keys, runs


def run(given: argparse.Namespace, options: Sequence[str]) -> int:
  """Does what the command line asks for; returns the exit code."""
  try:
    keys, runs = combinations(given, options)
    every = [each for found in runs.values() for each in found]
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
