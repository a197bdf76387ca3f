"""Finished runs side by side: groups of seeds, differences with their certainty, and the distance from papers."""

import json
import pathlib
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ltjax.data.longtail import GROUPS
from ltjax.errors import WorkdirError
from ltjax.report import published as table
from ltjax.report.tables import PREDICTION_COLUMNS

MEASURES = ("overall", *GROUPS)
_DRAWS = 10000
_FREE = ("seed", "dataset.root", "dataset.test_root", "dataset.dir", "dataset.lists", "dataset.tfds_dir")


class Run(NamedTuple):
  """A finished run: its folder, its flat config, the content of results.json, and whether each test image was right.

  `labels` and `right` are None for a run whose report has no predictions.csv.
  """

  workdir: pathlib.Path
  config: dict
  results: dict
  labels: np.ndarray | None
  right: np.ndarray | None


class Group(NamedTuple):
  """Runs whose configs differ in the seed alone."""

  name: str
  runs: tuple[Run, ...]

  def values(self, measure: str) -> np.ndarray:
    """`measure` of every run, NaN where it has none: a key of results' `final`, or of its `metrics`."""
    found = [run.results["final"].get(measure, run.results.get("metrics", {}).get(measure)) for run in self.runs]
    return np.array([np.nan if value is None else value for value in found], float)

  @property
  def per_class(self) -> np.ndarray:
    """The accuracy of each class, mean of the runs, [c]."""
    rows = [list(run.results["stages"].values())[-1]["per_class"] for run in self.runs]
    return np.array(rows, float).mean(axis=0)


class Difference(NamedTuple):
  """How much better one group is than another: mean, 95 % interval, and two-sided p, over test images."""

  mean: float
  low: float
  high: float
  p: float


def read(workdir: pathlib.Path, config: Mapping) -> Run:
  """A finished run; `config` is its flat config.

  Raises:
    WorkdirError: the folder has no results, or files that are no results.
  """
  path = workdir / "results.json"
  if not path.is_file():
    raise WorkdirError(f"{workdir}: the run is not finished, as there is no results.json; give the command that "
                       "started it once more")
  try:
    results = json.loads(path.read_text())
    for key in ("final", "stages", "data", "command"):
      results[key]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise WorkdirError(f"{path}: not the results of a run ({type(error).__name__}: {error})") from error
  return Run(workdir, dict(config), results, *_predictions(workdir / "report" / "predictions.csv"))


def _predictions(path: pathlib.Path) -> tuple[np.ndarray | None, np.ndarray | None]:
  import pandas as pd

  if not path.is_file():
    return None, None
  try:
    found = pd.read_csv(path, usecols=list(PREDICTION_COLUMNS[1:3]), dtype=np.int64)
  except ValueError as error:
    raise WorkdirError(f"{path}: not the predictions of a run ({error}); give the run's command once more to write "
                       "them") from error
  labels, predicted = (found[key].to_numpy() for key in PREDICTION_COLUMNS[1:3])
  return labels, labels == predicted


def grouped(runs: Sequence[Run]) -> list[Group]:
  """Runs in groups of one config, seeds and paths of data aside, in their order; named after their first run."""
  found = {}
  for run in runs:
    key = json.dumps({key: value for key, value in run.config.items() if key not in _FREE}, sort_keys=True)
    found.setdefault((key, tuple(run.results["data"]["class_names"])), []).append(run)
  return [Group(members[0].workdir.name + (f" and {len(members) - 1} more" if members[1:] else ""), tuple(members))
          for members in found.values()]


def differing(groups: Sequence[Group]) -> dict[str, list[str]]:
  """{config key: its value in each group, a dash where it is absent} of the keys that are not the same everywhere."""
  configs = [group.runs[0].config for group in groups]
  keys = sorted({key for config in configs for key in config} - set(_FREE))
  values = {key: [repr(config[key]) if key in config else "–" for config in configs] for key in keys}
  return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


def same_test_set(first: Group, second: Group) -> bool:
  """Whether all runs of both were tested on the same classes of images, so that images can be compared."""
  labels = [run.labels for group in (first, second) for run in group.runs]
  names = {tuple(run.results["data"]["class_names"]) for group in (first, second) for run in group.runs}
  return len(names) == 1 and all(each is not None for each in labels) and all(
      np.array_equal(labels[0], each) for each in labels)


def difference(first: Group, second: Group, seed: int = 0) -> Difference | None:
  """How much more often `second` is right than `first`; None where their test images cannot be paired.

  A paired bootstrap: test images are drawn anew, and both groups are measured on the same ones. An image counts with
  the mean over the group's runs. It says how far the difference depends on the test set; how far it depends on the
  seed, the standard deviations of the groups say.

  References:
    Efron and Tibshirani, `An Introduction to the Bootstrap`, 1993, chapter 16.
  """
  if not same_test_set(first, second):
    return None
  before, after = (np.mean([run.right for run in group.runs], axis=0) for group in (first, second))
  # Images with the same difference are drawn together: there are few different ones.
  values, counts = np.unique((after - before).round(9), return_counts=True)
  size = counts.sum()
  means = np.random.default_rng(seed).multinomial(size, counts / size, _DRAWS) @ values / size
  low, high = np.quantile(means, (0.025, 0.975))
  p = min(1.0, 2 * min((1 + (means <= 0).sum()), (1 + (means >= 0).sum())) / (_DRAWS + 1))
  return Difference(float((after - before).mean()), float(low), float(high), float(p))


def published(run: Run) -> dict | None:
  """The row of the papers' results that a run's config reproduces; None where there is none, or values were changed."""
  try:
    words = shlex.split(run.results["command"])
  except ValueError:
    return None
  pairs = [match.groups() for word in words if (match := re.fullmatch(r"--(?:no)?config(\.[^=]+)?(?:=(.*))?", word,
                                                                      re.DOTALL))]
  changed = [key for key, _ in pairs if key and key.removeprefix(".") not in _FREE]
  files = [value for key, value in pairs if not key and value]
  if changed or not files:
    return None
  call = _call(files[0])
  return next((row for row in table.reproducible() if _call(table.published(row)) == call), None)


def _call(config: str) -> tuple[str, frozenset[str]]:
  """(file name, arguments) of the value of --config, with the arguments that CIFAR's configs have by default."""
  path, _, text = config.partition(":")
  name = pathlib.PurePath(path).name
  words = {f"imbalance={word}" if re.fullmatch(r"[\d.]+", word) else word for word in text.split(",") if word}
  if name.endswith("_cifar.py"):
    words |= set() if words & {"cifar10", "cifar100"} else {"cifar10"}
    words |= set() if any(word.startswith("imbalance=") for word in words) else {"imbalance=100"}
  return name, frozenset(words)
