"""Computes the features of images once and writes them to a file, on which heads train in seconds.

python -m ltjax extract --config=FILE --config.pretrained=WEIGHTS --output=features.safetensors
python -m ltjax extract --workdir=RUN --output=features.safetensors

The first takes the images and the backbone of a config, with the weights of a file or of another run; the second those
of a finished run. Train on the result with --config=configs/frozen.py --config.dataset.root=features.safetensors.
Stopped with Ctrl-C, the same command goes on. Several processes, started as for training, share the work.
"""

import pathlib
import sys
from collections.abc import Sequence

from ltjax import bridge, stage
from ltjax.config import load, parse
from ltjax.data import extract, features
from ltjax.distributed import processes, signals
from ltjax.errors import ConfigError, DataError, LtjaxError, WorkdirError
from ltjax.models import weight_files
from ltjax.workdir import folder
from ltjax.workdir.checkpoint import Checkpoints

OPTIONS = dict(
    output=load.Option("The file to write, .safetensors."),
    workdir=load.Option("A finished run, whose images and backbone are taken."),
    views=load.Option("Augmented views of each training image beside the image itself.", "0"),
    float16=load.Option("Rounds the features to float16: half the size.", False),
    maps=load.Option("Writes the feature maps before pooling, for heads that take maps.", False))


def run(config, output: pathlib.Path, *, workdir: pathlib.Path | None = None, views: int = 0, float16: bool = False,
        maps: bool = False, stop=lambda: False) -> dict | None:
  """Writes the file of features of a config's images; returns its manifest, or None where `stop()` became true.

  Args:
    config: a config with `pretrained` weights, or that of the run in `workdir`.
    output: the file.
    workdir: a finished run, which gives the backbone.
    views: augmented views of each training image, by the config's augmentation.
    float16: whether the features are rounded to it.
    maps: the feature maps before pooling.
    stop: whether to stop.

  Raises:
    LtjaxError: there are no weights; the config augments nothing, or mixes images; another file is in the way.
  """
  spec = parse(config)
  if workdir is None and not spec.pretrained:
    raise ConfigError("pretrained: the backbone of this config has no trained weights; give --config.pretrained=FILE, "
                      "or a finished run with --workdir=RUN")
  dataset, bad_images = spec.read()
  stages = stage.build(spec, dataset)
  made, variables = _network(spec, stages, workdir)
  _check_views(made, views)
  whole = workdir is None and not pathlib.Path(spec.pretrained).expanduser().is_dir()
  made_by = extract.describe(
      made, variables, views=views, float16=float16, maps=maps,
      file_sha256=weight_files.sha256(weight_files.locate(spec.pretrained)) if whole else "")
  if processes.from_first(lambda: _is_there(output, made_by)):
    return made_by
  done = extract.extract(made, variables, output, made_by, processes.Agreement(stop, made.mesh))
  bad_images.gather()
  bad_images.check()
  if processes.is_first():
    for name, reason in bad_images.found.items():
      print(f"WARNING: {name}: {reason}; its features are those of a black image", file=sys.stderr)
  return made_by if done else None


def _network(spec, stages: Sequence, workdir: pathlib.Path | None) -> tuple:
  """(stage, its variables): the last one of a run, or the first one with pretrained weights."""
  if workdir is None:
    folder_given = pathlib.Path(spec.pretrained).expanduser().is_dir()
    first = stages[0]
    return first, bridge.pretrained(first.init(), spec.pretrained, first.dataset.class_names, reset_head=folder_given)
  if not (workdir / "results.json").is_file():
    raise WorkdirError(f"{workdir}: the run is not finished, as there is no results.json; give the command that "
                       "started it once more")
  last = stages[-1]
  with Checkpoints(workdir / last.name / "checkpoints", read_only=True) as checkpoints:
    return last, checkpoints.restore_model(last.on_devices(last.shapes))


def _check_views(made, views: int) -> None:
  calls = made.spec.augment
  if made.dataset.holds_features:
    raise ConfigError(f"dataset: {made.spec.backbone.name} would make features of features; give a config with images")
  if views and not any(getattr(call.function, "augments", True) for call in calls):
    raise ConfigError(f"--views={views}: the config augments nothing, so all views would be the image itself; give "
                      "--config.augment=..., or leave --views out")
  if mixing := [call.name for call in calls if views and "labels" in call.arguments]:
    raise ConfigError(f"--views={views}: {mixing[0]} mixes images of several classes, whose features belong to none; "
                      f"remove {mixing[0]}, which also works on features when a head is trained")


def _is_there(output: pathlib.Path, made_by: dict) -> bool:
  """Whether the very features are in the file already; raises where something else is."""
  if not output.exists():
    return False
  try:
    found = features.load(output)[1]
  except DataError as error:
    raise WorkdirError(f"--output: {output} exists and is not what this command would write; remove it, or give "
                       f"another name ({error})") from error
  if different := [key for key in made_by if found.get(key) != made_by[key]]:
    raise WorkdirError(f"--output: {output} exists and was made otherwise ({', '.join(different)} differ); remove it, "
                       "or give another name")
  return True


def main(arguments: Sequence[str], stop=None) -> None:
  """The command line; `stop` says whether the command has been asked to stop."""
  stop = stop or signals.listen()
  code, words = 0, "finished"
  try:
    given = load.parse(arguments, OPTIONS, __doc__, lambda options: options["workdir"] and folder.load(
        pathlib.Path(options["workdir"]).expanduser()))
    processes.start()
    if given["output"] is None:
      raise ConfigError("--output is missing; try --output=features.safetensors")
    output, workdir = (path and pathlib.Path(path).expanduser() for path in (given["output"], given["workdir"]))
    if output.suffix != ".safetensors":
      raise ConfigError(f"--output: expected a name that ends in .safetensors, got {str(output)!r}")
    if not given["views"].isdecimal():
      raise ConfigError(f"--views: expected a number of at least 0, got {given['views']!r}")
    made_by = run(given["config"], output, workdir=workdir, views=int(given["views"]), float16=given["float16"],
                  maps=given["maps"], stop=stop)
    if made_by is None:
      code, words = signals.EXIT_STOPPED, "stopped"
      print(f"stopped; run the same command to continue {output}", file=sys.stderr)
    elif processes.is_first():
      print(f"written: {output} ({output.stat().st_size / 1e6:,.1f} MB, weights {made_by['weights_sha256'][:8]})")
  except (LtjaxError, OSError) as error:
    code, words = load.EXIT_BAD_INPUT, str(error)
    print(f"error: {error}", file=sys.stderr)
  processes.leave(code, words)
  if code:
    sys.exit(code)


if __name__ == "__main__":
  main(sys.argv[1:])
