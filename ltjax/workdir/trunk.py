"""Checkpoints without the frozen parameters of a pretrained backbone: their hash and their source stand for them."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.traverse_util
import numpy as np

from ltjax.errors import LtjaxError, WorkdirError
from ltjax.workdir import manifest


class Trunk(NamedTuple):
  """Parameters that a file of weights gives and that no stage changes.

  Args:
    omitted: their paths, such as "params/backbone/block1/fc1/kernel"; none for a run that saves all.
    source: the file, as it is noted in a checkpoint.
    load: (source of a checkpoint) -> {path: array} of all that the file gives.
  """

  omitted: frozenset[str]
  source: str
  load: Callable[[str], Mapping[str, np.ndarray]]


def without(model: dict, paths) -> dict:
  """A tree {"params", "batch_stats"} without the leaves at `paths`."""
  return _grown({path: leaf for path, leaf in _flat(model).items() if path not in paths}, model)


def only(model: dict, paths) -> dict:
  """{path: leaf} of the leaves at `paths`, in order of the paths."""
  return {path: leaf for path, leaf in sorted(_flat(model).items()) if path in paths}


def filled(model: dict, noted: dict, trunk: Trunk | None, where: str) -> dict:
  """`model` of a checkpoint with what it omits.

  Args:
    model: {"params", "batch_stats"} as read.
    noted: {"paths", "sha256", "source"} of the checkpoint.
    trunk: where the parameters come from.
    where: the checkpoint, for messages.

  Raises:
    WorkdirError: the weights are gone, or are others than those of the run.
  """
  if trunk is None:
    raise WorkdirError(f"{where}: the checkpoint holds what was trained on the frozen weights of {noted['source']}, "
                       "but the run's config names no file of weights; give the config of the run")
  try:
    given = trunk.load(noted["source"])
  except LtjaxError as error:
    raise WorkdirError(f"{where}: the checkpoint holds what was trained on the frozen weights of {noted['source']}, "
                       f"which cannot be read: {error}") from error
  frozen = {path: np.asarray(given[path]) for path in sorted(noted["paths"]) if path in given}
  if (found := manifest.fingerprint(frozen)) != noted["sha256"]:
    raise WorkdirError(f"{where}: the checkpoint was trained on frozen weights with the SHA-256 {noted['sha256'][:8]}, "
                       f"but {trunk.source} gives {found[:8]}; put the file of {noted['source']} back, or give another "
                       "--workdir")
  return _grown(_flat(model) | frozen, model)


def _flat(model: dict) -> dict:
  return {f"{kind}/{path}": leaf for kind, tree in model.items()
          for path, leaf in flax.traverse_util.flatten_dict(tree, sep="/").items()}


def _grown(flat: dict, model: dict) -> dict:
  return {kind: {} for kind in model} | flax.traverse_util.unflatten_dict(flat, sep="/")
