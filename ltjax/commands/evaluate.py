"""Evaluates a finished run on any images, without training: the same page, and accuracies under other class priors.

python -m ltjax evaluate runs/mine                               the test set of the run
python -m ltjax evaluate runs/mine --split=train                 its training images, or --split=held_out
python -m ltjax evaluate runs/mine --data=DIR                    a folder for each class, named like it
python -m ltjax evaluate runs/mine --data=FILE.csv --root=DIR    a table of paths and class names
python -m ltjax evaluate runs/mine --data=FILE.txt --root=DIR    a list of `<path> <label>` lines
python -m ltjax evaluate runs/mine --prior=FILE.csv              also with the weights `class,weight` of a file
python -m ltjax evaluate runs/mine --regroup=36,71               also of the classes 0:36, 36:71 and 71: by their index

writes index.html, results.json, classes.csv, predictions.csv and the figures to --out. The accuracies under other
priors weigh the classes: forward priors are long-tailed like the training set, backward priors the other way round.
MiSLAS's code groups CIFAR-LT by index, whatever the imbalance: 36,71 of CIFAR-100, 3,7 of CIFAR-10.
"""

import argparse
import csv
import json
import pathlib
import sys
import types
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from ltjax import bridge, metrics
from ltjax.config import parse
from ltjax.config.load import EXIT_BAD_INPUT
from ltjax.data import decode, listing, tables, tally
from ltjax.data.files import Paths
from ltjax.errors import ConfigError, DataError, LtjaxError, WorkdirError, nearest, writing
from ltjax.report import page, predictions
from ltjax.report.names import printable, shown
from ltjax.workdir import folder, identity

SPLITS = dict(test="test", held_out="held-out", train="training")
RATIOS = (50, 25, 10, 5, 2)  # of the largest to the smallest prior


def own_data(workdir: pathlib.Path):
  """The data set that a run was trained on, read again.

  Raises:
    WorkdirError: the data are not those that the run was started with.
  """
  dataset, _ = parse(folder.load(workdir)).read()
  before = folder.read_identity(workdir)
  if before and (different := identity.differences(before, identity.describe(dataset))):
    raise WorkdirError(f"{workdir}: the data of its config are not those that the run was trained on: "
                       f"{'; '.join(different)}. Restore them, or give the images with --data")
  return dataset


def own_split(workdir: pathlib.Path, split: str, class_names: Sequence[str]) -> tuple:
  """(images, labels) of a split of the data set that a run was trained on.

  Raises:
    ConfigError: the run has no such split, or its data set has other classes by now.
    WorkdirError: the data are not those that the run was started with.
  """
  dataset = own_data(workdir)
  if getattr(dataset, split) is None:
    raise ConfigError(f"--split: the run holds out no images; there are {', '.join(dataset.splits)}")
  if dataset.class_names != tuple(class_names):
    raise ConfigError(f"{workdir}: the data set of its config has other classes by now; give the images with --data")
  return getattr(dataset, split)


def results(workdir: pathlib.Path) -> dict:
  """The content of a finished run's results.json."""
  return json.loads((workdir / "results.json").read_text())


def listed(path: str, root: str, class_names: Sequence[str], background: str) -> tuple:
  """(images, labels) that a folder, a table or a list names.

  Args:
    path: a folder of class folders, a CSV file, or a list that ends in .txt or .txt.xz.
    root: the folder that paths in a file start from; the file's own where it is empty.
    class_names: of the run.
    background: the colour behind transparent images.

  Raises:
    DataError: nothing there, or a class that the run does not know.
  """
  place = epath.Path(path).expanduser()
  if not place.exists():
    raise DataError(f"--data: {path}: no such folder or file")
  top = str(epath.Path(root).expanduser()) if root else str(place if place.is_dir() else place.parent)
  if place.is_dir():
    found, names = listing.class_folders(place, "root")
    labels = _labels(names, class_names, path)[found.labels]
  elif path.endswith((".txt", ".txt.xz")):
    found = tables.split_list(str(place), "test_list", classes=len(class_names), root=top)
    labels = found.labels
  else:
    found = tables.table(str(place), "test_csv", root=top)
    labels = _labels(found.labels.tolist(), class_names, path)
  files = Paths(top, found.paths)
  return decode.Images(files, decode.BadImages("error", len(files)), background), labels


def _labels(names: Sequence[str], known: Sequence[str], where: str) -> np.ndarray:
  label = {name: number for number, name in enumerate(known)}
  if strange := sorted(set(names) - set(label)):
    raise DataError(f"--data: {where}: the run knows no class {strange[0]!r}{nearest(strange[0], known)}; remove or "
                    f"rename {'it' if len(strange) == 1 else f'these {len(strange):,} classes'}")
  return np.array([label[name] for name in names], np.int64)


def priors(class_counts: np.ndarray) -> dict[str, np.ndarray]:
  """{name: weights [c]} of the priors that one looks at: uniform, and long-tailed ones of several imbalances.

  forward: w_c = ratio^(-r_c / (C - 1)), where r_c in 0 .. C - 1 is the rank of the class from the largest training
  count to the smallest; backward: the same from the smallest to the largest

  References:
    Hong et al., `Disentangling Label Distribution for Long-tailed Visual Recognition
    <https://arxiv.org/abs/2012.00321>`_, 2021, section 5.2; there the test set is drawn, here its classes are weighed.

  >>> {name: found.round(2).tolist() for name, found in priors(np.array([9, 1])).items() if name.endswith(" 2")}
  {'forward 2': [1.0, 0.5], 'backward 2': [0.5, 1.0]}
  """
  rank = np.empty(len(class_counts))
  rank[np.argsort(-class_counts, kind="stable")] = np.linspace(0, 1, len(class_counts))
  forward = {f"forward {ratio}": float(ratio) ** -rank for ratio in RATIOS}
  backward = {f"backward {ratio}": float(ratio) ** (rank - 1) for ratio in reversed(RATIOS)}
  return forward | dict(uniform=np.ones(len(class_counts))) | backward


def weighted_accuracy(confusion: np.ndarray, weights: np.ndarray) -> float | None:
  """sum_c w_c accuracy_c / sum_c w_c over the classes with test images; None where these have no weight.

  >>> weighted_accuracy(np.array([[1, 0], [1, 1]]), np.array([1.0, 3.0]))
  0.625
  """
  weights = weights * (confusion.sum(axis=1) > 0)
  return float(weights @ metrics.per_class_accuracy(confusion) / weights.sum()) if weights.any() else None


def regroup(text: str, classes: int) -> tuple[slice, ...]:
  """Consecutive groups of classes from the indices at which new ones begin.

  Raises:
    ConfigError: indices that do not rise from 1 to `classes` - 1.

  >>> [(part.start, part.stop) for part in regroup("3,7", 10)]
  [(0, 3), (3, 7), (7, 10)]
  """
  words = text.split(",")
  bounds = [0, *(int(word) if word.strip().isdecimal() else -1 for word in words), classes]
  if any(first >= last for first, last in zip(bounds, bounds[1:], strict=False)):
    raise ConfigError(f"--regroup: expected rising indices between 1 and {classes - 1}, at which a group of classes "
                      f"begins, such as {max(1, classes // 3)},{max(2, 2 * classes // 3)}, got {text!r}")
  return tuple(map(slice, bounds[:-1], bounds[1:]))


def read_prior(path: pathlib.Path, class_names: Sequence[str]) -> np.ndarray:
  """Weights [c] from a CSV of class names and weights; 0 for a class that is not in it.

  Raises:
    ConfigError: an unknown class, or a weight that is not a number of at least 0.
  """
  label, found = {name: number for number, name in enumerate(class_names)}, np.zeros(len(class_names))
  with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
    for number, row in enumerate(csv.reader(file), 1):
      if len(row) != 2 or (number == 1 and row[0] not in label):  # a heading
        if number == 1:
          continue
        raise ConfigError(f"--prior: {path}:{number}: expected `class,weight`, got {','.join(row)[:100]!r}")
      if row[0] not in label:
        raise ConfigError(f"--prior: {path}:{number}: the run knows no class {row[0]!r}{nearest(row[0], class_names)}")
      try:
        found[label[row[0]]] = float(row[1])
      except ValueError:
        found[label[row[0]]] = np.nan
      if not 0 <= found[label[row[0]]] < np.inf:
        raise ConfigError(f"--prior: {path}:{number}: expected a weight of at least 0, got {row[1]!r}")
  if not found.any():
    raise ConfigError(f"--prior: {path}: no class has a weight; give lines `class,weight`")
  return found


def target_prior(text: str, stage) -> np.ndarray:
  """Weights [c] of the classes: "uniform", "train" for the counts of the run's training images, or those of a file.

  Raises:
    ConfigError: no such file, or not lines of `class,weight`.
  """
  if text == "uniform":
    return np.ones(len(stage.class_counts))
  if text == "train":
    return np.asarray(stage.class_counts, np.float64)
  path = pathlib.Path(text).expanduser()
  if not path.is_file():
    raise ConfigError(f"--prior: {text!r} is no file{nearest(text, ('uniform', 'train'))}; give uniform, train, or a "
                      "CSV file of lines `class,weight`")
  return read_prior(path, stage.dataset.class_names)


def evaluate(workdir: pathlib.Path, data: str = "", root: str = "", split: str = "test",
             prior: pathlib.Path | None = None, groups: str = "",
             out: pathlib.Path = pathlib.Path("evaluation")) -> dict:
  """Evaluates the last stage of a finished run, writes the page to `out`, and returns the content of its results.json.

  Args:
    workdir: of the run; nothing in it is changed.
    data: a folder, CSV or list of images; empty for the run's own `split`.
    root: the folder that paths in `data` start from.
    split: "test", "held_out" or "train" of the run's data set.
    prior: a CSV of class names and weights.
    groups: indices at which further groups of classes begin, see `regroup`.
    out: the folder of the page.

  Raises:
    WorkdirError: not the folder of a finished run.
    ConfigError: anything wrong with the arguments.
    DataError: anything wrong with the images.
  """
  stage, variables = bridge.finished(workdir)
  names, counts = stage.dataset.class_names, stage.class_counts
  weights = priors(counts) | ({prior.name: read_prior(prior, names)} if prior else {})
  parts = regroup(groups, len(counts)) if groups else ()
  if data:
    if not stage.dataset.holds_files:
      raise ConfigError(f"--data: {workdir} was trained on arrays of one size, not on image files; give --split "
                        "instead")
    images, labels = listed(data, root, names, stage.dataset.background)
  else:
    images, labels = own_split(workdir, split, names)
  stage.dataset = stage.dataset._replace(test=(images, labels))
  seen = predictions.of_stage(stage, variables)
  confusion = tally.matrix(labels, seen.predicted, len(counts))
  found = _results(results(workdir), stage, confusion, data or f"its {SPLITS[split]} images", weights)
  found["metrics"] = page.measures(confusion, counts, names, seen)
  index = np.arange(len(counts))
  found["regrouped"] = {f"{part.start}:{part.stop}": weighted_accuracy(
      confusion, (part.start <= index) & (index < part.stop)) for part in parts}
  with writing(out):
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    result = types.SimpleNamespace(confusion=confusion, variables=variables)
    page.draw(folder.load(workdir).to_json(indent=1), (stage,), {stage.name: result}, found, seen, None, {}, out)
  return found


def _results(before: Mapping, stage, confusion: np.ndarray, what: str, weights: Mapping[str, np.ndarray]) -> dict:
  """The results of the run with what was measured now in the place of what was measured then."""
  test = metrics.scores(confusion, stage.class_counts)
  row = before["stages"][stage.name] | dict(test=test, per_class=metrics.measured(confusion))
  return dict(before) | dict(
      final=test, balanced_accuracy=metrics.balanced_accuracy(confusion), stages={stage.name: row}, posthoc=[],
      baselines=[], evaluated_on=shown(what, "json"),
      data=before["data"] | dict(test_images=int(confusion.sum())),
      priors={name: weighted_accuracy(confusion, values) for name, values in weights.items()})


def table(found: Mapping) -> str:
  """The accuracies by group, by index if asked for, and under every prior, for a terminal."""
  priors, groups = ([f"{name:14}{'-' if value is None else f'{100 * value:8.2f}':>8}" for name, value in found[
      key].items()] for key in ("priors", "regrouped"))
  title = ("", "accuracy, %, of classes by index") if groups else ()
  return "\n".join((page.table(found), *title, *groups, "", "accuracy, %, under other class priors", *priors))


def main(arguments: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(prog="ltjax evaluate", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("run", type=pathlib.Path, metavar="RUN", help="folder of a finished run")
  parser.add_argument("--split", choices=SPLITS, default="test", help="of the run's own data set")
  parser.add_argument("--data", default="", help="a folder, CSV or list of other images")
  parser.add_argument("--root", default="", help="folder that the paths in --data start from; else the file's own")
  parser.add_argument("--prior", type=pathlib.Path, help="CSV of class names and weights")
  parser.add_argument("--regroup", default="", metavar="INDEX,INDEX", help="where further groups of classes begin")
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("evaluation"), help="folder of the page")
  given = parser.parse_args(arguments)
  try:
    found = evaluate(given.run.expanduser(), given.data, given.root, given.split,
                     given.prior and given.prior.expanduser(), given.regroup, given.out.expanduser())
  except (LtjaxError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)
  print(printable(f"{table(found)}\n\nwritten: {given.out.expanduser() / 'index.html'}", sys.stdout))


if __name__ == "__main__":
  main(sys.argv[1:])
