"""Data sets as sizes alone: what a plan needs of them, without an image."""

import numpy as np

from ltjax.config.spec import RunSpec
from ltjax.data import longtail, sources
from ltjax.data.official import OFFICIAL

_PROFILES = dict(exponential=longtail.exponential_counts, step=longtail.step_counts, pareto=longtail.pareto_counts)
_CIFAR = dict(cifar10=10, cifar100=100)


class Absent:
  """n encoded images that nobody has."""

  def __init__(self, count: int):
    self._count = count

  def __len__(self) -> int:
    return self._count


def dataset(spec: RunSpec) -> tuple[sources.Dataset, str]:
  """(the data set of a config, where its sizes are from); the sets of the papers need not be there.

  Raises:
    DataError: another data set, which is not there.
  """
  name, given = spec.dataset.name, spec.dataset.constants
  if name in _CIFAR:
    classes = _CIFAR[name]
    counts = _PROFILES[given["profile"]](classes, 50_000 // classes, given["imbalance"])
    made = _made(counts, np.full(classes, 10_000 // classes), given, lambda n: np.broadcast_to(
        np.zeros((), np.uint8), (n, 32, 32, 3)))
    return made, "sizes by the definition of the set"
  if name in OFFICIAL:
    official = OFFICIAL[name]
    total = {role: part.lines for role, part in official.lists.items()}
    counts = _spread(official.classes, official.largest, official.smallest, total["train"])
    return _made(counts, _even(official.classes, total["test"]), given, Absent,
                 total.get("held_out", 0)), "published sizes"
  found, _ = spec.read()
  return found, "read"


def _made(counts, tests, given, images, held_out: int = 0) -> sources.Dataset:
  labels, classes = np.repeat(np.arange(len(counts)), counts), len(counts)
  held = np.zeros(0, np.int64)
  if given.get("holdout"):
    places, held = sources.hold_out(labels, given["holdout"], given["subset_seed"])
    labels, held = labels[places], labels[held]
  elif held_out:
    held = np.repeat(np.arange(classes), _even(classes, held_out))
  tests = np.repeat(np.arange(classes), tests)
  return sources.Dataset(
      (images(len(labels)), labels), (images(len(tests)), tests), np.arange(len(labels)),
      tuple(map(str, range(classes))), (0.5,) * 3, (0.25,) * 3, (images(len(held)), held) if len(held) else None)


def _even(classes: int, total: int) -> np.ndarray:
  """`total` examples over `classes`, as evenly as can be."""
  return np.diff(np.arange(classes + 1) * total // classes)


def _spread(classes: int, largest: int, smallest: int, total: int) -> np.ndarray:
  """Class counts from the largest to the smallest that sum to `total`: a geometric row to a power that fits."""
  shares, low, high = np.linspace(0, 1, classes), 0.01, 100.0
  for _ in range(60):
    power = np.sqrt(low * high)
    counts = largest * (smallest / largest) ** shares**power
    low, high = (power, high) if counts.sum() < total else (low, power)
  counts = np.maximum(counts.astype(np.int64), smallest)
  counts[: total - counts.sum()] += 1
  return counts
