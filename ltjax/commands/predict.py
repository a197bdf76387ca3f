"""Predicts the classes of images with the model of a finished run.

python -m ltjax predict --workdir=runs/mine IMAGE_OR_FOLDER ... [--top=5] [--output=predictions.csv]

writes one line for each image and each of its likeliest classes: path, rank, class, probability. Images are resized and
cropped like the run's test images. A folder stands for all images in it at any depth, on gs:// for those directly in
it. Images that cannot be decoded are listed at the end, the others are predicted, and the exit code is 1;
--on-bad-image=error stops at the first.
"""

import argparse
import csv
import itertools
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
_BATCHES = 16  # decoded together, with their logits in memory


class Prediction(NamedTuple):
  """A class of an image: its rank, from 1, and its probability under the model."""

  path: str
  rank: int
  class_name: str
  probability: float


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


def predict(workdir: pathlib.Path, names: Sequence[str], top: int = 5,
            bad: dict[str, str] | None = None) -> Iterator[Prediction]:
  """The `top` likeliest classes of each image, by the newest checkpoint of the run's last stage.

  softmax(s z), with the logits z; s is the scale that the stage's adjustment gives to cosines, 1 if it has none

  Args:
    workdir: the folder of a finished run on image files; nothing in it is changed.
    names: paths of images, local or gs://.
    top: at least 1; all classes if there are fewer.
    bad: receives {image that cannot be decoded: reason}; if it is None, the first such image is an error.

  Raises:
    WorkdirError: the folder is not a run's, or the run is not finished.
    ConfigError: the run was trained on arrays, not on image files.
    DataError: an image cannot be decoded, and `bad` is None.
  """
  stage, variables = bridge.finished(workdir)
  if not stage.dataset.holds_files:
    raise ConfigError(f"{workdir}: the run was trained on arrays of one size, not on image files; predictions are made "
                      "with runs whose augment begins with random_resized_crop")
  size = stage.settings.eval_batch_size
  extract = stage.extractor(variables, min(size, len(names)))
  log = decode.BadImages("error" if bad is None else "substitute", len(names), limit=len(names))
  files, scale = decode.Images(_Named(names), log, stage.dataset.background), logit_scale(stage)
  for first in range(0, len(names), _BATCHES * size):
    indices = np.arange(first, min(first + _BATCHES * size, len(names)))
    probabilities = jax.nn.softmax(scale * extract(files, "logits", places=indices)["logits"], axis=-1)
    for index, row in zip(indices, np.asarray(probabilities), strict=True):
      if names[index] not in log.found:
        for rank, c in enumerate(np.argsort(-row, kind="stable")[:top], 1):
          yield Prediction(names[index], rank, stage.dataset.class_names[c], float(row[c]))
  if bad is not None:
    bad.update(log.found)


def write(predictions: Iterator[Prediction], file) -> None:
  """Writes a CSV of predictions; the header comes with the first, so that an early failure writes nothing."""
  writer = csv.writer(file, lineterminator="\n")
  first = next(predictions, None)
  writer.writerow(COLUMNS)
  for row in itertools.chain([first] if first else [], predictions):
    writer.writerow((shown(row.path, "csv"), row.rank, shown(row.class_name, "csv"), f"{row.probability:.6f}"))


def main(arguments: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(prog="ltjax predict", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("images", nargs="+", metavar="IMAGE_OR_FOLDER")
  parser.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of a finished run")
  parser.add_argument("--top", type=int, default=5, help="classes per image")
  parser.add_argument("--output", type=pathlib.Path, help="CSV file to write; printed if not given")
  parser.add_argument("--on-bad-image", "--config.dataset.on_bad_image", choices=("skip", "substitute", "error"),
                      default="skip", help="what to do with an image that cannot be decoded")
  given = parser.parse_args(arguments)
  bad = None if given.on_bad_image == "error" else {}
  try:
    if given.top < 1:
      raise ConfigError(f"--top: expected at least 1, got {given.top}")
    if given.output is not None and not given.output.expanduser().parent.is_dir():
      raise ConfigError(f"--output: no folder {str(given.output.expanduser().parent)!r}; make it, or give another")
    predictions = predict(given.workdir.expanduser(), images(given.images), given.top, bad)
    if given.output is None:
      write(predictions, sys.stdout)
    else:
      _write_file(predictions, given.output.expanduser())
  except BrokenPipeError:
    sys.stderr.close()  # the reader has closed the pipe; Python would complain when it flushes at exit
    sys.exit(0)
  except (LtjaxError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)
  if bad:
    count = "1 image cannot be decoded and has" if len(bad) == 1 else f"{len(bad)} images cannot be decoded and have"
    print(f"{count} no prediction:", *(
        f"  {shown(name, 'terminal')}: {reason}" for name, reason in bad.items()), sep="\n", file=sys.stderr)
    sys.exit(1)


def _write_file(predictions: Iterator[Prediction], path: pathlib.Path) -> None:
  # A device or a pipe is written to; to replace it by a file would take it away from everybody else.
  special = path.exists() and not path.is_file()
  partial = path if special else path.with_name(f"{path.name}.partial")
  try:
    with open(partial, "w", newline="", encoding="utf-8") as file:
      write(predictions, file)
    if not special:
      partial.replace(path)
  finally:
    if not special:
      partial.unlink(missing_ok=True)
  print(f"written: {path}")


if __name__ == "__main__":
  main(sys.argv[1:])
