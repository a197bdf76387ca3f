"""Trains and evaluates one config.

python -m ltjax.main --config=configs/gcl_digits.py --workdir=runs/digits

Every value of the config can be set on the command line (--config.representation.epochs=10). Rerunning the same
command continues the run where it stopped. Exit codes: 0 finished, 1 the numbers went wrong, 2 bad input, 69 another
process of the run is missing, 74 a checkpoint could not be saved, 75 stopped by a signal with everything saved.
"""
# ruff: noqa: E402

from ltjax.distributed import signals

_STOP = signals.StopRequest() if __name__ == "__main__" else None  # listens while the rest is imported, for seconds

import contextlib
import pathlib
import shlex
import sys
import traceback

from absl import app, flags, logging
from ml_collections import config_flags

from ltjax import selection
from ltjax.config import bind as build
from ltjax.config import load as configs
from ltjax.data import decode, feed
from ltjax.distributed import processes, sharding
from ltjax.errors import ConfigError, LtjaxError, MissingProcess, SaveError, TrainingError, writing
from ltjax.report import activation_maps as cams
from ltjax.report import page as report
from ltjax.train import Interrupted, check_start, run_stage
from ltjax.workdir.lock import WorkdirLock

EXIT_CODES = {TrainingError: 1, MissingProcess: 69, SaveError: 74}  # every other error of ours is bad input
CACHE = ".ltjax_cache"  # beside the work folder, for all runs there: listings of images, never the images' own folder

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file; its argument may follow a colon, as in configs/gcl_cifar10.py:50.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run: made where it is missing, continued where it is not.")
_STRICT = flags.DEFINE_bool(
    "strict", False, "Stop where the newest checkpoint is damaged, instead of going on from the one before it.")


def run(config, workdir: pathlib.Path, stop=lambda: False, command: str = "", strict: bool = False) -> dict:
  """Runs all stages of `config`, or what is left of them, and writes the report; returns what `results.json` holds.

  `stop` says whether the run has been asked to stop; `command` is the command line, for the record; `strict` refuses
  to go on from an older checkpoint where the newest is damaged. Of several processes, the first alone touches the work
  folder.

  Raises:
    LtjaxError: anything wrong with the config, the data or the work folder, before anything is written.
    Interrupted: `stop()` became true; everything is saved.
  """
  dataset = _checked_dataset(config, workdir)
  with contextlib.ExitStack() as held:

    def open_workdir():
      held.enter_context(WorkdirLock(workdir, command))
      configs.open_workdir(config, workdir)

    processes.from_first(open_workdir)
    dataset, bad_images = decode.opened(dataset, config.dataset.get("on_bad_image", "error"),
                                        workdir / "bad_images.jsonl")
    kept = {block.stage: None for block in selection.blocks(config)}
    confusions, before, parameters, dropped = {}, None, 0, 0
    for name in config.stages:
      result = run_stage(config, name, dataset, workdir, before=before, stop=stop, strict=strict)
      confusions[name], parameters, before = result.confusion, result.parameters, name
      dropped += result.dropped
      bad_images.gather()
      bad_images.check()
      last = dict(params=result.state.params, batch_stats=result.state.batch_stats)
      if name in kept:
        kept[name] = last
    posthoc = selection.run(config, dataset, kept)
    activations = cams.of_run(config, dataset, before, last)
    counted = dict(retried_reads=bad_images.retried, dropped_examples=dropped)

    def write_report():
      with writing(workdir):
        return report.write(config, dataset, workdir, confusions, parameters, command, posthoc, activations,
                            bad_images.found, counted)

    return processes.from_first(write_report)


def _checked_dataset(config, workdir: pathlib.Path):
  """The data of a run, after everything that can be known to be wrong with it has been looked at."""
  configs.check(config)
  # Before the data, which may be a long download.
  known = processes.from_first(lambda: configs.check_workdir(config, workdir))
  dataset = build.dataset(config)(workdir.absolute().parent / CACHE)
  for name in config.stages:
    build.model(config, dataset.class_counts, name)
    sharding.check_batch(name, config[name].batch_size, sharding.data_mesh().devices.size, len(dataset.train[1]))
  feed.check(config, dataset)
  selection.check_held_out(config, dataset)
  if not known:
    check_start(config, dataset)
  return dataset


def _main(argv) -> None:
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)  # Orbax tells of every file it writes
  code, words = 0, "finished"
  try:
    processes.start()
    if len(argv) > 1:
      raise ConfigError(f"unexpected argument {argv[1]!r}; options are written --config=FILE --workdir=DIR")
    for flag in (_CONFIG, _WORKDIR):
      if flag.value is None:
        raise ConfigError(f"--{flag.name} is missing; try --config=configs/gcl_digits.py --workdir=runs/digits")
    workdir = pathlib.Path(_WORKDIR.value)
    command = shlex.join(["python", "-m", "ltjax.main", *sys.argv[1:]])
    results = run(_CONFIG.value, workdir, _STOP, command, _STRICT.value)
  except LtjaxError as error:
    code = next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), configs.EXIT_BAD_INPUT)
    words = str(error)
    print(f"error: {error}", file=sys.stderr)
  except Interrupted:
    code, words = signals.EXIT_STOPPED, "stopped"
    print(f"stopped; everything is saved in {workdir}: run the same command to continue", file=sys.stderr)
  except Exception as error:
    processes.find_lost()  # whose end may be the cause
    code, words = 1, f"{type(error).__name__}: {error}"
    if "RESOURCE_EXHAUSTED" in str(error):
      print(f"error: a device is out of memory ({' '.join(str(error).split())[:200]}); give a smaller batch_size or "
            "eval_batch_size, or --config.precision=bf16; the newest checkpoint is intact", file=sys.stderr)
    else:
      traceback.print_exc()
  else:
    if processes.is_first():
      print("\n".join(("", report.table(results), *report.counts(results), *report.bad_images(results), "")))
      print(f"written: {workdir / 'results.json'}, {workdir / 'report' / 'README.md'}")
  processes.leave(code, words)
  sys.exit(code)


if __name__ == "__main__":
  app.run(_main, flags_parser=configs.parse_or_exit)
