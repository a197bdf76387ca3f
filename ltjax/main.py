"""Trains and evaluates one config.

python -m ltjax.main --config=configs/gcl_digits.py --workdir=runs/digits

Every value of the config can be set on the command line (--config.representation.epochs=10). Repeating the command
continues the run where it stopped. Exit codes: 0 finished, 1 a loss or a parameter was not finite, or the program
failed, 2 bad input, 69 another process of the run is missing, 74 a checkpoint could not be saved, 75 stopped by a
signal with everything saved.
"""
# ruff: noqa: E402

from ltjax.distributed import signals

_STOP = signals.listen() if __name__ == "__main__" else None  # listens early: the other imports take seconds

import logging
import os
import pathlib
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from ltjax import stage
from ltjax.config import load, notes, parse
from ltjax.distributed import processes
from ltjax.errors import ConfigError, LtjaxError, MissingProcess, SaveError, TrainingError
from ltjax.report import page, trackers
from ltjax.train import Interrupted, check_start, run_stage
from ltjax.workdir import folder

EXIT_CODES = {TrainingError: 1, MissingProcess: 69, SaveError: 74}  # every other error of ours is bad input
CACHE = ".ltjax_cache"  # listings, beside the work folder for all runs there, never in the images' own folder
OPTIONS = dict(
    workdir=load.Option("Folder of the run: created if it is missing, continued if it exists."),
    strict=load.Option("Stop if the newest checkpoint is damaged, instead of using the one before it.", False),
    log=load.Option("Sends numbers and figures to tensorboard, wandb or both: --log=tensorboard,wandb.", ""),
    compilation_cache=load.Option("Folder that keeps compiled programs, or none; ~/.cache/ltjax by default.", ""))


def run(config: ConfigDict | str | os.PathLike, workdir: str | os.PathLike,
        stop: Callable[[], bool] = lambda: False, command: str = "", strict: bool = False,
        changes: Sequence[tuple[str, str, str]] = (), log: str = "") -> dict:
  """Runs the unfinished stages of `config` and writes the report; returns the content of `results.json`.

  This is `ltjax.run`, which needs no command line. To call it again continues the run, and returns the results of one
  that is finished. Of several processes, only the first touches the work folder.

  Args:
    config: of `config.load.read`, or the name of its file as behind --config.
    workdir: the folder of the run.
    stop: says whether the run has been asked to stop.
    command: the command line, for the record.
    strict: refuses to continue from an older checkpoint if the newest is damaged.
    changes: (key, value, value of the config's file) of what the command line changes, for the record.
    log: names trackers, see `report.trackers`.

  Raises:
    LtjaxError: the config, the data or the work folder is unusable; raised before anything is written.
    Interrupted: `stop()` became true; everything is saved.
  """
  folder.check_local(str(workdir))
  config = load.read(os.fspath(config)) if isinstance(config, str | os.PathLike) else config
  spec, workdir, tracked = parse(config), pathlib.Path(workdir).expanduser(), trackers.check(log)
  known = folder.check_before_data(config, workdir, spec.defaults)
  dataset, bad_images = spec.read(workdir.absolute().parent / CACHE, workdir / "bad_images.jsonl")
  stages = stage.build(spec, dataset)
  if processes.is_first():
    page.announce(dataset, stages, notes(spec), starts=not known)
  if not known:
    check_start(stages, spec.reset_head)
  with folder.held(config, workdir, command, dataset, spec.defaults) as identity, trackers.opened(
      tracked if processes.is_first() else (), workdir, config, identity) as tracker:
    results, before = {}, None
    for each in stages:
      results[each.name] = run_stage(each, workdir, before=before, reset_head=spec.reset_head,
                                     stop=stop, strict=strict, run=identity, track=tracker.stage)
      bad_images.gather()
      bad_images.check()
      before = each
    found = page.of_run(spec, stages, results, workdir, command, bad_images, changes)
    tracker.finish(workdir / "report", found)
    return found


def main(arguments: list[str] | None = None, stop=_STOP) -> int:
  """The command line; returns the exit code. `stop` says whether the run has been asked to stop."""
  # Orbax logs every file that it writes, and a failed save with pages of traceback; SaveError says it in a sentence.
  logging.getLogger("absl").setLevel(logging.CRITICAL)
  arguments = sys.argv[1:] if arguments is None else arguments
  code, words, workdir = 0, "finished", None
  try:
    given = load.parse(arguments, OPTIONS, __doc__)
    processes.start()
    folder.keep_programs(given["compilation_cache"])
    if given["workdir"] is None:
      raise ConfigError("--workdir is missing; try --workdir=runs/digits")
    workdir = pathlib.Path(given["workdir"]).expanduser()
    command = shlex.join(["python", "-m", "ltjax.main", *arguments])
    results = run(given["config"], given["workdir"], stop or (lambda: False), command, given["strict"],
                  given["changes"], given["log"])
  except LtjaxError as error:
    code = next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), load.EXIT_BAD_INPUT)
    words = str(error)
    print(f"error: {error}", file=sys.stderr)
  except Interrupted:
    code, words = signals.EXIT_STOPPED, "stopped"
    print(f"stopped; everything is saved in {workdir}: run the same command to continue", file=sys.stderr)
  except Exception as error:
    code, words = 1, f"{type(error).__name__}: {error}"
    if late := processes.find_lost(error):  # does not return if a lost process is the cause
      code, words = EXIT_CODES[MissingProcess], late
      print(f"error: {late}", file=sys.stderr)
    elif "RESOURCE_EXHAUSTED" in str(error):
      print(f"error: a device is out of memory ({' '.join(str(error).split())[:200]}); give a smaller batch_size or "
            "eval_batch_size, or --config.precision=bf16; the newest checkpoint is intact", file=sys.stderr)
    else:
      traceback.print_exc()
  else:
    if processes.is_first():
      print(page.closing(results))
      print(f"written: {workdir / 'results.json'}, {workdir / 'report' / 'index.html'}")
  processes.leave(code, words)
  return code


if __name__ == "__main__":
  signals.leave(main())
