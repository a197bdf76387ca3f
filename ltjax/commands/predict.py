"""Predicts the classes of images with the model of a finished run.

python -m ltjax predict --workdir=runs/mine IMAGE_OR_FOLDER ... [--top=5] [--output=predictions.csv]
python -m ltjax predict --workdir=runs/mine new/ --format=jsonl --calibrated --prior=uniform --explain=maps

writes one line for each image and each of its likeliest classes: path, rank, class, probability; as JSON lines, one
object for each image. Images are resized and cropped like the run's test images. A folder stands for all images in it
at any depth, on gs:// for those directly in it. Images that cannot be decoded are listed at the end, the others are
predicted, and the exit code is 1; --on-bad-image=error stops at the first.

--calibrated divides the logits by a temperature that is fitted once on the images that the run holds out, and stored in
its calibration.json. --prior says how frequent the classes of these images are: uniform, train, or a CSV file of lines
`class,weight`. --posthoc takes a method that `ltjax posthoc` has run. --explain writes each image with a map of what
speaks for its likeliest class.
"""

import argparse
import csv
import itertools
import json
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from ltjax import bridge
from ltjax.commands.deploy import model, readouts
from ltjax.config.load import EXIT_BAD_INPUT
from ltjax.data import decode, evaluate, listing
from ltjax.data.files import Paths
from ltjax.errors import ConfigError, DataError, LtjaxError
from ltjax.report import activation_maps
from ltjax.report.names import printable, shown

COLUMNS = ("path", "rank", "class", "probability")
_BATCHES = 16  # decoded together, with their logits in memory


class Prediction(NamedTuple):
  """A class of an image: its rank, from 1, and its probability under the model; for `explain`, its picture's path."""

  path: str
  rank: int
  class_name: str
  probability: float
  explanation: str = ""


class _Named(Paths):
  """Images with their complete paths as names."""

  def __init__(self, names: Sequence[str]):
    super().__init__("", names)

  def name(self, place: int) -> str:
    return self._paths[place]


def images(arguments: Sequence[str]) -> list[str]:
  """The images that files and folders stand for, in the order given; a folder's images are sorted.

  Raises:
    DataError: an argument does not exist, or a folder has no image.
  """
  found = []
  for argument in arguments:
    path = epath.Path(argument).expanduser()
    if path.is_dir():
      found += listing.images_below(argument).paths
    elif path.exists():
      found.append(str(path))
    else:
      raise DataError(f"{argument}: no such image or folder")
  return found


def predict(workdir: pathlib.Path, names: Sequence[str], top: int = 5, bad: dict[str, str] | None = None, *,
            explain: pathlib.Path | None = None, **asked) -> Iterator[Prediction]:
  """The `top` likeliest classes of each image, by the newest checkpoint of the run's last stage.

  softmax(s z), with the logits z; s is the scale that the stage's adjustment gives to cosines, 1 if it has none

  Args:
    workdir: the folder of a finished run on image files; nothing in it is changed but a temperature.
    names: paths of images, local or gs://.
    top: at least 1; all classes if there are fewer.
    bad: receives {image that cannot be decoded: reason}; if it is None, the first such image is an error.
    explain: an empty or new folder for pictures of what speaks for the likeliest class of each image.
    **asked: prior, calibrated and method of `readouts.make`.

  Raises:
    WorkdirError: the folder is not a run's, or the run is not finished.
    ConfigError: the run was trained on arrays or features, not on image files, or cannot give what is asked.
    DataError: an image cannot be decoded, and `bad` is None.
  """
  stage, variables = bridge.finished(workdir)
  model.check_images(stage, workdir)
  if not stage.dataset.holds_files:
    raise ConfigError(f"{workdir}: the run was trained on arrays of one size, not on image files; predictions are made "
                      "with runs whose augment begins with random_resized_crop")
  read, size = readouts.make(workdir, stage, variables, **asked), stage.settings.eval_batch_size
  draw = _painter(stage, variables, explain) if explain else None
  extract = stage.extractor(variables, min(size, len(names)))
  log = decode.BadImages("error" if bad is None else "substitute", len(names), limit=len(names))
  files = decode.Images(_Named(names), log, stage.dataset.background)
  for first in range(0, len(names), _BATCHES * size):
    indices = np.arange(first, min(first + _BATCHES * size, len(names)))
    outputs = extract(files, "features", "logits", places=indices)
    probabilities = np.asarray(read(outputs["features"], outputs["logits"]))
    good = np.array([names[index] not in log.found for index in indices])
    indices, probabilities = indices[good], probabilities[good]
    pictures = draw(files, names, indices, probabilities.argmax(axis=1)) if draw else [""] * len(indices)
    for index, row, picture in zip(indices, probabilities, pictures, strict=True):
      for rank, c in enumerate(np.argsort(-row, kind="stable")[:top], 1):
        yield Prediction(names[index], rank, stage.dataset.class_names[c], float(row[c]), picture)
  if bad is not None:
    bad.update(log.found)


def _painter(stage, variables: dict, folder: pathlib.Path):
  """draw(files, names, indices, labels) -> the paths of pictures that it writes to `folder`."""
  kernel = variables["params"].get("head", {}).get("kernel")
  if not activation_maps.has_maps(stage, variables) or getattr(kernel, "ndim", 0) != 2:
    raise ConfigError("--explain: this network's maps have fewer than 3 places a side, or its head has no class "
                      "vectors, so they would show nothing; leave out --explain")
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise ConfigError(f"--explain: {folder} is not empty; give a new folder")
  folder.mkdir(parents=True, exist_ok=True)
  batch, variables = min(stage.settings.eval_batch_size, 16), jax.device_get(variables)
  look = activation_maps.looker(stage.model, stage.augmentation.one_view.evaluate, mean=stage.dataset.mean,
                                std=stage.dataset.std)

  def draw(files, names: Sequence[str], indices: np.ndarray, labels: np.ndarray) -> list[str]:
    paths = []
    for first in range(0, len(indices), batch):
      own = indices[first:first + batch]
      pixels = evaluate.pixels(files, own, stage.augmentation)
      padding = batch - len(own)  # so that one program is enough
      _, maps = jax.device_get(look(variables, np.pad(pixels, ((0, padding), (0, 0), (0, 0), (0, 0))), np.pad(
          labels[first:first + batch], (0, padding))))
      for index, image, heat in zip(own, pixels, maps[-1], strict=False):
        stem = re.sub(r"[^A-Za-z0-9._-]+", "_", pathlib.PurePath(names[index]).stem)[:80]
        paths.append(str(folder / f"{index + 1:05d}_{stem}.png"))
        activation_maps.overlay(image, heat).save(paths[-1])
    return paths

  return draw


# -- output -----------------------------------------------------------------------------------------------------------


def write(predictions: Iterator[Prediction], file, format: str = "csv") -> None:
  """Writes predictions as CSV or JSON lines; the header comes with the first: an early failure writes nothing."""
  first = next(predictions, None)
  rows = itertools.chain([first] if first else [], predictions)
  if format == "jsonl":
    file.writelines(f"{line}\n" for line in json_lines(rows))
    return
  explained = bool(first and first.explanation)
  writer = csv.writer(file, lineterminator="\n")
  writer.writerow((*COLUMNS, "explanation") if explained else COLUMNS)
  for row in rows:
    more = (shown(row.explanation, "csv"),) if explained else ()
    writer.writerow((shown(row.path, "csv"), row.rank, shown(row.class_name, "csv"), f"{row.probability:.6f}", *more))


def json_lines(rows: Iterable[Prediction]) -> Iterator[str]:
  """An object for each image: its path, its likeliest classes in order, and its explanation if there is one."""
  image = []
  for row in itertools.chain(rows, (None,)):
    if image and (row is None or row.rank == 1):
      first, classes = image[0], [
          {"class": shown(each.class_name, "json"), "probability": round(each.probability, 6)} for each in image]
      yield json.dumps(dict(path=shown(first.path, "json"), classes=classes) | (
          dict(explanation=shown(first.explanation, "json")) if first.explanation else {}))
      image = []
    image.append(row)


def main(arguments: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(prog="ltjax predict", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("images", nargs="+", metavar="IMAGE_OR_FOLDER")
  parser.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of a finished run")
  parser.add_argument("--top", type=int, default=5, help="classes per image")
  parser.add_argument("--output", type=pathlib.Path, help="file to write; printed if not given")
  parser.add_argument("--format", choices=("csv", "jsonl"), default="csv", help="a table, or an object for each image")
  parser.add_argument("--calibrated", action="store_true", help="with a temperature from the run's held-out images")
  parser.add_argument("--prior", default="", metavar="uniform|train|FILE", help="of the classes of these images")
  parser.add_argument("--posthoc", default="", metavar="METHOD", help="a method that `ltjax posthoc` has run")
  parser.add_argument("--explain", type=pathlib.Path, metavar="FOLDER", help="writes activation maps over the images")
  parser.add_argument("--on-bad-image", "--config.dataset.on_bad_image", choices=("skip", "substitute", "error"),
                      default="skip", help="what to do with an image that cannot be decoded")
  given = parser.parse_args(arguments)
  bad = None if given.on_bad_image == "error" else {}
  try:
    if given.top < 1:
      raise ConfigError(f"--top: expected at least 1, got {given.top}")
    if given.output is not None and not given.output.expanduser().parent.is_dir():
      raise ConfigError(f"--output: no folder {str(given.output.expanduser().parent)!r}; make it, or give another")
    predictions = predict(
        given.workdir.expanduser(), images(given.images), given.top, bad, prior=given.prior, method=given.posthoc,
        calibrated=given.calibrated, explain=given.explain and given.explain.expanduser())
    if given.output is None:
      write(predictions, sys.stdout, given.format)
    else:
      _write_file(predictions, given.output.expanduser(), given.format)
  except BrokenPipeError:
    sys.stderr.close()  # the reader has closed the pipe; Python would complain when it flushes at exit
    sys.exit(0)
  except (LtjaxError, OSError) as error:
    print(printable(f"error: {error}", sys.stderr), file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)
  if bad:
    count = "1 image cannot be decoded and has" if len(bad) == 1 else f"{len(bad)} images cannot be decoded and have"
    print(f"{count} no prediction:", *(
        f"  {shown(name, 'terminal')}: {reason}" for name, reason in bad.items()), sep="\n", file=sys.stderr)
    sys.exit(1)


def _write_file(predictions: Iterator[Prediction], path: pathlib.Path, format: str) -> None:
  # A device or a pipe is written to; to replace it by a file would take it away from everybody else.
  special = path.exists() and not path.is_file()
  partial = path if special else path.with_name(f"{path.name}.partial")
  try:
    with open(partial, "w", newline="", encoding="utf-8") as file:
      write(predictions, file, format)
    if not special:
      partial.replace(path)
  finally:
    if not special:
      partial.unlink(missing_ok=True)
  print(f"written: {path}")


if __name__ == "__main__":
  main(sys.argv[1:])
