"""Predicts the classes of images with the model of a finished run.

python -m ltjax predict --workdir=runs/mine IMAGE_OR_FOLDER ... [--top=5] [--output=predictions.csv]

writes one line for each image and each of its likeliest classes: path, rank, class, probability. Images are cut like
the run's test images; of a folder, all images at any depth are taken, on gs:// those right in it. Images that cannot be
decoded are listed at the end, the others are predicted, and the exit code is 1; --on-bad-image=error stops at the
first.
"""

import argparse
import csv
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from ltjax import bridge
from ltjax.config.load import EXIT_BAD_INPUT
from ltjax.data import decode, listing
from ltjax.data.files import Paths
from ltjax.errors import ConfigError, DataError, LtjaxError
from ltjax.report.names import shown
from ltjax.report.predictions import logit_scale

COLUMNS = ("path", "rank", "class", "probability")
_BATCHES = 16  # that are decoded, and whose logits are held, at a time


class Prediction(NamedTuple):
  """An image's class of some rank, from 1, and how probable the model takes it to be."""

  path: str
  rank: int
  class_name: str
  probability: float


class _Named(Paths):
  """Images by their whole names."""

  def __init__(self, names: Sequence[str]):
    super().__init__("", names)

  def name(self, place: int) -> str:
    return self._paths[place]


def images(arguments: Sequence[str]) -> list[str]:
  """The images that files and folders stand for, in their order and, of a folder, sorted.

  Raises:
    DataError: an argument that is not there, or a folder without an image.
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


def predict(workdir: pathlib.Path, names: Sequence[str], top: int = 5,
            bad: dict[str, str] | None = None) -> Iterator[Prediction]:
  """The `top` likeliest classes of each image, by the newest checkpoint of the run's last stage.

  softmax(s z), with the logits z; s is the scale that the stage's adjustment gives cosines, and 1 where it gives none

  Args:
    workdir: of a finished run on photographs; nothing in it is changed.
    names: paths of images, local or gs://.
    top: at least 1; all classes where there are not as many.
    bad: receives the images that cannot be decoded, each with the reason; where it is None, the first is an error.

  Raises:
    WorkdirError: it is not the folder of a run, or of one that is not finished.
    ConfigError: the run's images are not photographs.
    DataError: an image cannot be decoded, and the run's `dataset.on_bad_image` is "error"; or too many cannot.
  """
  stage, variables = bridge.finished(workdir)
  if stage.augmentation.boxes is None:
    raise ConfigError(f"{workdir}: the run was trained on arrays of one size, not on image files; predictions are made "
                      "with runs whose augment begins with random_resized_crop")
  size = stage.settings.eval_batch_size
  extract = stage.extractor(variables, min(size, len(names)))
  log = decode.BadImages("error" if bad is None else "substitute", len(names), limit=len(names))
  files, scale = decode.Images(_Named(names), log, stage.dataset.background), logit_scale(stage)
  for first in range(0, len(names), _BATCHES * size):
    places = np.arange(first, min(first + _BATCHES * size, len(names)))
    probabilities = jax.nn.softmax(scale * extract(files, "logits", places=places)["logits"], axis=-1)
    for place, row in zip(places, np.asarray(probabilities), strict=True):
      if names[place] not in log.found:
        for rank, c in enumerate(np.argsort(-row, kind="stable")[:top], 1):
          yield Prediction(names[place], rank, stage.dataset.class_names[c], float(row[c]))
  if bad is not None:
    bad.update(log.found)


def write(predictions: Iterator[Prediction], file) -> None:
  """Writes a CSV of predictions; the heading comes with the first, so that a failure leaves nothing behind."""
  writer = None
  for row in predictions:
    if writer is None:
      writer = csv.writer(file, lineterminator="\n")
      writer.writerow(COLUMNS)
    writer.writerow((shown(row.path, "csv"), row.rank, shown(row.class_name, "csv"), f"{row.probability:.6f}"))


def main(arguments: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(prog="ltjax predict", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("images", nargs="+", metavar="IMAGE_OR_FOLDER")
  parser.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of a finished run")
  parser.add_argument("--top", type=int, default=5, help="classes an image")
  parser.add_argument("--output", type=pathlib.Path, help="CSV to write; printed where not given")
  parser.add_argument("--on-bad-image", "--config.dataset.on_bad_image", choices=("skip", "substitute", "error"),
                      default="skip", help="what to do with an image that cannot be decoded")
  given = parser.parse_args(arguments)
  bad = None if given.on_bad_image == "error" else {}
  try:
    if given.top < 1:
      raise ConfigError(f"--top: expected at least 1, got {given.top}")
    predictions = predict(given.workdir.expanduser(), images(given.images), given.top, bad)
    if given.output is None:
      write(predictions, sys.stdout)
    else:
      _write_file(predictions, given.output.expanduser())
  except BrokenPipeError:
    sys.stderr.close()  # the reader has seen enough; Python would complain about it at its end
    sys.exit(0)
  except (LtjaxError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)
  if bad:
    print(f"{len(bad)} images cannot be decoded and have no prediction:", *(
        f"  {shown(name, 'terminal')}: {reason}" for name, reason in bad.items()), sep="\n", file=sys.stderr)
    sys.exit(1)


def _write_file(predictions: Iterator[Prediction], path: pathlib.Path) -> None:
  partial = path.with_name(f"{path.name}.partial")
  try:
    with open(partial, "w", newline="", encoding="utf-8") as file:
      write(predictions, file)
    partial.replace(path)
  finally:
    partial.unlink(missing_ok=True)
  print(f"written: {path}")


if __name__ == "__main__":
  main(sys.argv[1:])
