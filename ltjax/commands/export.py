"""Exports the model of a finished run to a file that needs no ltjax: pixels in, probabilities out.

python -m ltjax export runs/mine --to=stablehlo     for JAX, on a CPU, a GPU or a TPU
python -m ltjax export runs/mine --to=savedmodel    for TensorFlow and TF Serving
python -m ltjax export runs/mine --to=tflite        for phones and small boards
python -m ltjax export runs/mine --to=onnx          for ONNX Runtime
python -m ltjax export runs/mine --to=onnx --prior=uniform --out=model    elsewhere, for balanced classes

The model takes uint8 images [batch, height, width, channels] with values from 0 to 255, any number at a time, and gives
float32 probabilities [batch, classes]; the normalisation and the correction for --prior are inside. An image file must
come as the square that the run's test sees of it: docs/export.md has ten lines that do so, for each format.

Beside the model are classes.json, the class names in order, and model.json: the shape of the input, the size of the
file, and its latency on this machine. The exported model is run on two random images, and is removed where its
probabilities are not those of the run.
"""

import argparse
import json
import pathlib
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from ltjax import bridge
from ltjax.commands.deploy import model as models
from ltjax.commands.deploy import readouts, targets
from ltjax.config.load import EXIT_BAD_INPUT
from ltjax.errors import ConfigError, LtjaxError, WorkdirError, nearest
from ltjax.report import page
from ltjax.report.names import printable

BATCHES = (1, 32)  # whose latency is measured
_DIFFERENCE = 1e-3  # of probabilities, from rounding alone on any device; more is a fault of a converter
_SECONDS, _CALLS = 1.0, 20  # of a measurement, at most


def export(workdir: pathlib.Path, target: str, out: pathlib.Path, **asked) -> dict:
  """Writes the model of a finished run to the folder `out`; returns the content of its model.json.

  Args:
    workdir: of the run; nothing in it is changed but `out`, if that is inside.
    target: one of `targets.TARGETS`.
    out: a folder that does not exist.
    **asked: prior, calibrated and method of `readouts.make`.

  Raises:
    WorkdirError: the folder is not a finished run's, or `out` exists.
    ConfigError: an unknown target, a missing package, a run on features, or a model that the target cannot express.
  """
  if target not in targets.TARGETS:
    raise ConfigError(f"--to: there is no format {target!r}{nearest(target, targets.TARGETS)}; there are "
                      f"{', '.join(targets.TARGETS)}")
  stage, variables = bridge.finished(workdir)
  models.check_images(stage, workdir)
  if out.exists():
    raise WorkdirError(f"--out: {out} exists; remove it, or give another folder")
  model = models.of_stage(stage, variables, readouts.make(workdir, stage, variables, **asked))
  partial = out.with_name(f"{out.name}.partial")
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  try:
    targets.write(target, model, partial)
    found = _describe(stage, workdir, target, model, partial) | dict(
        prior=asked.get("prior") or "of the model", posthoc=asked.get("method") or None, calibrated=asked.get(
            "calibrated", False))
    (partial / "model.json").write_text(json.dumps(found, indent=1) + "\n")
    partial.rename(out)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  return found


def _describe(stage, workdir: pathlib.Path, target: str, model: models.Model, folder: pathlib.Path) -> dict:
  """The content of model.json, measured on the files in `folder`."""
  path, call = folder / targets.TARGETS[target].file, targets.load(target, folder)
  images = np.random.default_rng(0).integers(0, 256, (2, *model.shape), np.uint8)
  difference = float(np.abs(call(images) - model(images)).max())
  if not difference <= _DIFFERENCE:
    raise ConfigError(f"--to={target}: the converted model's probabilities differ from the run's by {difference:.2g}, "
                      "so it is not kept; --to=stablehlo and --to=savedmodel take every model")
  files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
  return dict(
      target=target, file=targets.TARGETS[target].file, classes=len(model.class_names),
      input=dict(name=targets.INPUT, dtype="uint8", shape=["batch", *model.shape], values="0 to 255", **_crop(stage)),
      output=dict(name=targets.OUTPUT, dtype="float32", shape=["batch", len(model.class_names)]),
      bytes=sum(each.stat().st_size for each in files),
      latency_ms={str(size): latency(call, model.shape, size) for size in BATCHES}, largest_difference=difference,
      run=str(workdir.resolve()), stage=stage.name, hardware=page.hardware(), versions=page.versions())


def _crop(stage) -> dict:
  """How an image file becomes the square that the model takes; nothing for arrays."""
  if not stage.dataset.holds_files:
    return {}
  size = stage.augmentation.size
  return dict(channels="red, green, blue", background=stage.dataset.background, resize_shorter_side=size * 8 // 7,
              interpolation=stage.augmentation.interpolation, crop=f"the {size} x {size} square in the middle")


def latency(call: Callable, shape: tuple[int, ...], batch: int) -> float:
  """The median milliseconds of a call with `batch` images, after one that compiles."""
  images = np.random.default_rng(batch).integers(0, 256, (batch, *shape), np.uint8)
  call(images)
  times, began = [], time.perf_counter()
  while len(times) < _CALLS and (not times or time.perf_counter() - began < _SECONDS):
    start = time.perf_counter()
    call(images)
    times.append(1000 * (time.perf_counter() - start))
  return round(statistics.median(times), 3)


def table(found: dict, out: pathlib.Path) -> str:
  """Size and latency, and where the model is."""
  h, w, c = found["input"]["shape"][1:]
  rows = [("format", found["target"]), ("input", f"uint8 [batch, {h}, {w}, {c}]"),
          ("output", f"probabilities of {found['classes']:,} classes, prior {found['prior']}"),
          ("size", f"{found['bytes'] / 1e6:,.2f} MB"),
          *((f"{size} image{'s' * (size != '1')}", f"{value:,.2f} ms") for size, value in found["latency_ms"].items()),
          ("difference", f"{found['largest_difference']:.1e} at most, on random images")]
  return "\n".join((*(f"{name:12}{value}" for name, value in rows), "", f"written: {out / found['file']}, "
                    f"{targets.CLASSES}, model.json"))


def main(arguments: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(prog="ltjax export", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("run", type=pathlib.Path, metavar="RUN", help="folder of a finished run")
  parser.add_argument("--to", required=True, metavar="|".join(targets.TARGETS), help="the format")
  parser.add_argument("--out", type=pathlib.Path, help="folder to write; RUN/export/FORMAT by default")
  parser.add_argument("--prior", default="", metavar="uniform|train|FILE", help="of the classes of the images to come; "
                      "by default the one that the model was trained for")
  parser.add_argument("--calibrated", action="store_true", help="with a temperature from the run's held-out images")
  parser.add_argument("--posthoc", default="", metavar="METHOD", help="a method that `ltjax posthoc` has run")
  given = parser.parse_args(arguments)
  run = given.run.expanduser()
  out = given.out.expanduser() if given.out else run / "export" / given.to
  try:
    found = export(run, given.to, out, prior=given.prior, calibrated=given.calibrated, method=given.posthoc)
  except (LtjaxError, OSError) as error:
    print(printable(f"error: {error}", sys.stderr), file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)
  print(printable(table(found, out), sys.stdout))


if __name__ == "__main__":
  main(sys.argv[1:])
