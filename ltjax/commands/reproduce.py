"""Trains what is missing of the published results, and writes the table that compares them with ours.

python -m ltjax reproduce --rows="method=ce|gcl dataset=cifar10 imbalance=100" --seeds=3 --config.dataset.dir=DIR

Run it from the root of the repository. It can be stopped at any moment and goes on with the same command; several
machines may share --folder. --scale=0.05 trains for a twentieth of the epochs, in a table of its own. --short trains
CE and GCL for twelve epochs (preset=short) and compares them with another implementation. --dry-run names the runs and
starts none.
"""

import argparse
import pathlib
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence

from ltjax.commands.running import engine, scaled, tables
from ltjax.config import load
from ltjax.distributed.signals import EXIT_STOPPED
from ltjax.errors import ConfigError, LtjaxError, nearest, writing
from ltjax.report.published import implementations, published, reproducible
from ltjax.workdir import folder as workdirs

TABLE = pathlib.Path("benchmarks") / "results" / "reproduction.md"
# What a run of the table may differ in from its config: where the data are, and what changes no number.
ALLOWED = ("dataset.dir", "dataset.root", "dataset.lists", "dataset.tfds_dir", "dataset.pipeline", "steps_per_call",
           *(key for key in workdirs.FREE if key != "posthoc"))
COLUMNS = ("paper", "method", "dataset", "imbalance", "backbone", "stage")
SHORT = "configs/{}_cifar.py:cifar10,100,preset=short"
SHORT_HEAD = """## Twelve epochs, beside another implementation

CIFAR-10-LT at imbalance 100 by `preset=short`: batch 128, no mixup, 12 epochs, for GCL with the thesis's noise and then
3 of the released code's second stage. The other implementations are the authors' formulas in PyTorch: `pytorch_short`
is benchmarks/pytorch_short.py, which trains on the same images; of `reference` only its accuracies are known. This
shows whether they train the same method, not what it reaches.
`python -m ltjax reproduce --short --seeds=2 --config.dataset.dir=DIR` makes this table.
"""


def rows(text: str) -> list[dict]:
  """The published results with a config that `text` selects, as "method=ce|gcl imbalance=100"; all where it is empty.

  Raises:
    ConfigError: a column or a value that there is not.
  """
  found = list(reproducible())
  for word in text.split():
    column, equals, values = word.partition("=")
    if column not in COLUMNS or not equals:
      raise ConfigError(f"--rows: expected {'|'.join(COLUMNS)}=VALUE|VALUE ..., got {word!r}"
                        f"{nearest(column, COLUMNS)}")
    known, wanted = {row[column] for row in found}, values.split("|")
    if strange := [value for value in wanted if value not in known]:
      raise ConfigError(f"--rows: no row with {column}={strange[0]}{nearest(strange[0], known)} is left; there are "
                        f"{', '.join(sorted(known))}")
    found = [row for row in found if row[column] in wanted]
  return found


def runs(selected: Sequence[Mapping], seeds: int, scale: float, options: Sequence[str]) -> dict[str, list[engine.Run]]:
  """{config: its runs, one a seed} of rows; rows that are evaluations of one run share it."""
  found = {}
  for row in selected:
    call = published(row)
    if call not in found:
      shorter = scaled.options(load.read(call), scale) if scale != 1 else ()
      end = f"scale={scale:g}" if scale != 1 else ""
      found[call] = [engine.Run(engine.name_of(call, end, f"seed={seed}"), call,
                                (f"--config.seed={seed}", *shorter, *options)) for seed in range(seeds)]
  return found


def measured(row: Mapping, found: Mapping) -> float | None:
  """The accuracy in a results.json that `row` is about: of a post-hoc method, of the first stage, or the final one."""
  if row["method"].endswith("_ncm") or row["method"] == "gcl_tau_norm":
    return found["posthoc"][0]["test"]["overall"]
  if row["stage"] == "1":
    return next(iter(found["stages"].values()))["test"]["overall"]
  return found["final"]["overall"]


def table(selected: Sequence[Mapping], calls: Mapping, folder: pathlib.Path) -> list[str]:
  """The lines of the table; rows without a finished run are counted below it."""
  lines, missing = [], 0
  for row in selected:
    there = [found for run in calls[published(row)] if (found := engine.results(folder, run))]
    if not there:
      missing += 1
      continue
    ours = [measured(row, found) for found in there]
    gap = 100 * sum(ours) / len(ours) - float(row["top1"])
    lines.append([row["method"], row["paper"], row["dataset"], row["imbalance"], row["backbone"], row["top1"],
                  tables.spread(ours), f"{gap:+.2f}", len(there), *tables.circumstances(there)])
  header = ("method", "paper", "data set", "imbalance", "backbone", "published, %", "ours, %", "gap", "seeds",
            *tables.CIRCUMSTANCES)
  return [*tables.markdown(header, lines), "", f"Not measured: {missing} of {len(selected)} rows."]


def short_runs(seeds: int, options: Sequence[str]) -> dict[str, list[engine.Run]]:
  """{method: its runs by preset=short, one a seed}."""
  return {method: [engine.Run(engine.name_of(SHORT.format(method), "", f"seed={seed}"), SHORT.format(method),
                              (f"--config.seed={seed}", *options)) for seed in range(seeds)]
          for method in dict.fromkeys(row["method"] for row in implementations())}


def short_table(folder: pathlib.Path) -> list[str]:
  """The lines of the table of the runs by preset=short in a folder; none where there are no such runs."""
  lines, runs, rows = [], _there(map(SHORT.format, short_runs(1, ())), folder, ""), implementations()
  for method, stage, other in dict.fromkeys((row["method"], row["stage"], row["by"]) for row in rows):
    if there := [found for run in runs[SHORT.format(method)] if (found := engine.results(folder, run))]:
      theirs = [float(row["top1"]) / 100 for row in rows
                if (row["method"], row["stage"], row["by"]) == (method, stage, other)]
      ours = [measured(dict(method=method, stage=stage), found) for found in there]
      gap = 100 * (statistics.mean(ours) - statistics.mean(theirs))
      lines.append([method, stage, other, tables.spread(theirs), tables.spread(ours), f"{gap:+.2f}", len(there),
                    *tables.circumstances(there)])
  header = ("method", "stage", "other", "its, %", "ours, %", "gap", "our seeds", *tables.CIRCUMSTANCES)
  return ["", SHORT_HEAD, *tables.markdown(header, lines)] if lines else []


def page(folder: pathlib.Path) -> str:
  """The complete page of a folder: every published row, then the shorter runs, a table for each scale."""
  selected = rows("")
  calls = dict.fromkeys(map(published, selected))
  text = ["# Published results and ours", "",
          "Accuracy on the balanced test set after the last epoch, mean ± standard deviation over the seeds;",
          "`python -m ltjax reproduce` writes this page from the runs' results.json.", ""]
  text += table(selected, _there(calls, folder, ""), folder)
  text += short_table(folder)
  ends = {path.name.partition("_scale_")[2].partition("_seed_")[0] for path in folder.glob("*_scale_*_seed_*")}
  for scale in sorted(ends):
    text += ["", f"## {scale} of the epochs", "", "These say that a method trains, not what it reaches.", "",
             *table(selected, _there(calls, folder, f"scale={scale}"), folder)]
  return "\n".join([*text, ""])


def _there(calls: Iterable[str], folder: pathlib.Path, end: str) -> dict[str, list[engine.Run]]:
  """{config: its runs in the folder}, whatever their seeds."""
  found = {}
  for call in calls:
    stem = engine.name_of(call, end, "seed=")
    found[call] = [engine.Run(path.name, call) for path in sorted(folder.glob(f"{stem}_*"))
                   if path.name.removeprefix(f"{stem}_").isdecimal()]
  return found


def main(arguments=None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(prog="ltjax reproduce", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter,
                                   epilog="--config.KEY=VALUE is given to every run.")
  parser.add_argument("--rows", default="", help="which rows: COLUMN=VALUE|VALUE ..., all by default")
  parser.add_argument("--seeds", type=int, default=1, help="runs of each config, from seed 0 on")
  parser.add_argument("--scale", type=float, default=1.0, help="factor on the epochs")
  parser.add_argument("--short", action="store_true", help="CE and GCL by preset=short, in the place of the rows")
  parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/reproduction"))
  parser.add_argument("--output", type=pathlib.Path, default=TABLE, help="the page")
  parser.add_argument("--dry-run", action="store_true", help="print the runs, start none")
  given, options = parser.parse_known_args(arguments)
  sys.exit(run(given, options))


def run(given: argparse.Namespace, options: Sequence[str]) -> int:
  """Does what the command line asks for; returns the exit code."""
  try:
    check_options(options)
    for option in options:
      if (key := option.removeprefix("--config.").partition("=")[0]) not in ALLOWED:
        raise ConfigError(f"--config.{key}: the table is about the configs as they are{nearest(key, ALLOWED)}; only "
                          f"{', '.join(ALLOWED)} may differ; ltjax sweep changes anything")
    if given.seeds < 1 or not 0 < given.scale <= 1:
      raise ConfigError("--seeds and --scale: expected at least 1 seed and a scale above 0 and up to 1, got "
                        f"{given.seeds} and {given.scale:g}")
    if given.short and (given.rows or given.scale != 1):
      raise ConfigError("--short: it has its own rows and epochs; leave out --rows and --scale")
    calls = short_runs(given.seeds, options) if given.short else runs(
        rows(given.rows), given.seeds, given.scale, options)
    every = [run for found in calls.values() for run in found]
    engine.check(every)
    if given.dry_run:
      print("\n".join(f"{run.name}: {run.config} {' '.join(run.options)}" for run in every))
      return 0
    outcome = engine.complete(every, given.folder, lambda text: print(text, file=sys.stderr, flush=True))
    with writing(given.output):
      given.output.parent.mkdir(parents=True, exist_ok=True)
      given.output.write_text(page(given.folder))
  except LtjaxError as error:
    print(f"error: {error}", file=sys.stderr)
    return load.EXIT_BAD_INPUT
  print(f"{len(outcome.done)} of {len(every)} runs are finished, {len(outcome.failed)} failed, "
        f"{len(outcome.elsewhere)} are under way elsewhere; written: {given.output}")
  return EXIT_STOPPED if outcome.stopped else int(bool(outcome.failed))


def check_options(options: Sequence[str]) -> None:
  """Raises unless all are of the form --config.KEY=VALUE."""
  for option in options:
    if not option.startswith("--config.") or "=" not in option:
      raise ConfigError(f"unexpected argument {option!r}; options for the runs are written --config.KEY=VALUE")


if __name__ == "__main__":
  main(sys.argv[1:])
