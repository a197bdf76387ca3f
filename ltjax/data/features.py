"""Features that a backbone has computed once, in a file, as a data set: what `ltjax extract` writes.

A file holds `features` [n d], or maps [n h w d], of all images; their `labels` and `split` [n], numbers of `SPLITS`;
`selected`, the training images' indices in the set they come from; and perhaps `views` [v n d], more features of each
training image, augmented. Its manifest says what made them.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np

from ltjax.data import sources, tables
from ltjax.data.sources import Fraction, Seed
from ltjax.errors import ConfigError, DataError, LtjaxError
from ltjax.workdir import safetensors

__all__ = ["features"]

SPLITS = ("train", "held_out", "test")
MANIFEST, DIGEST = "ltjax_features", "ltjax_sha256"  # in the metadata of the file
_HINT = "write it again with `ltjax extract`"


def features(*, root: str, weights: str = "", size: Annotated[int, "[0, inf)"] = 0, mean: Sequence[float] = (),
             std: Sequence[float] = (), class_names: str = "", holdout: Fraction = 0.0,
             subset_seed: Seed = 0) -> sources.Dataset:
  """The features of a file that `ltjax extract` wrote.

  Args:
    root: the file.
    weights: SHA-256 of the weights that must have made them, or its first digits: of the file of weights, or of the
      parameters; any where it is empty.
    size: side of the images that they must have been made of; any where it is 0.
    mean, std: what these images must have been normalised with; anything where they are empty.
    class_names: a file with the classes that there must be, in order, a name a line; any where it is empty.
    holdout: fraction of the training examples that is held out, in place of those that the file holds out.
    subset_seed: of that choice.

  Raises:
    DataError: no such file, one that is damaged or holds something else; or features that something else made.
  """
  tensors, manifest = load(pathlib.Path(root).expanduser())
  names = tables.class_names(class_names) if class_names else ()
  try:
    _check_origin(root, manifest, weights, dict(size=size, mean=list(mean), std=list(std)), names)
    return dataset(tensors, manifest, holdout, subset_seed)
  except LtjaxError:
    raise
  except (KeyError, TypeError, ValueError, IndexError) as error:
    raise DataError(f"dataset.root: {root} holds other arrays than `ltjax extract` writes ({type(error).__name__}: "
                    f"{error}); {_HINT}") from error


def dataset(tensors: Mapping[str, np.ndarray], manifest: Mapping, holdout: float = 0.0,
            seed: int = 0) -> sources.Dataset:
  """The arrays of a file as a `Dataset`, whose images are features [n v ...]: of each image itself, then its views."""
  labels, split, parts = tensors["labels"], tensors["split"], {}
  for number, name in enumerate(SPLITS):
    own = slice(*np.searchsorted(split, (number, number + 1)))  # the splits follow one another
    parts[name] = tensors["features"][own, None], labels[own]
  selected = tensors["selected"]
  if holdout:
    kept, held = sources.hold_out(parts["train"][1], holdout, seed)
    parts |= dict(train=_take(parts["train"], kept), held_out=_take(parts["train"], held))
    selected = selected[kept]
  if "views" in tensors:
    views = tensors["views"][:, kept] if holdout else tensors["views"]
    parts["train"] = np.concatenate((parts["train"][0], views.swapaxes(0, 1)), axis=1), parts["train"][1]
  return sources.Dataset(
      parts["train"], parts["test"], selected, tuple(manifest["class_names"]), (0.0,), (1.0,),
      parts["held_out"] if len(parts["held_out"][1]) else None, notes=(_note(manifest),), made_by=manifest)


def _take(part: tuple, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  return part[0][places], part[1][places]


def _note(manifest: Mapping) -> str:
  """What made the features, for the first lines of a run."""
  size = manifest["preprocessing"]["size"]
  return (f"features of {manifest['backbone']['name']}, weights {manifest['weights_sha256'][:8]}"
          f"{f', {size} pixels' if size else ''}{', maps' if manifest['maps'] else ''}"
          f"{f', {views} augmented views' if (views := manifest['views']) else ''}")


# -- the file ---------------------------------------------------------------------------------------------------------


def load(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict]:
  """(arrays, manifest) of a file of features; the arrays are mapped into memory.

  Raises:
    DataError: no such file, one that is damaged, or one that holds something else.
  """
  if path.is_dir():
    raise DataError(f"dataset.root: {path} is a folder; expected a file of features, which `ltjax extract --config=... "
                    "--output=FILE` writes")
  if not path.is_file():
    raise DataError(f"dataset.root: no file {str(path)!r}; write one with `ltjax extract --config=... "
                    f"--output={path}`")
  try:
    tensors, metadata, start = safetensors.read(path)
  except ValueError as error:
    raise DataError(f"dataset.root: {path} is not a complete .safetensors file ({error}); {_HINT}") from error
  if MANIFEST not in metadata:
    raise DataError(f"dataset.root: {path} has no manifest of `ltjax extract`, so nothing says what made its arrays; "
                    f"{_HINT}")
  if metadata.get(DIGEST) != safetensors.content_sha256(path, start, metadata[MANIFEST].encode()):
    raise DataError(f"dataset.root: {path} is not what was written: its SHA-256 differs; {_HINT}")
  return tensors, json.loads(metadata[MANIFEST])


def _check_origin(root: str, manifest: Mapping, weights: str, preprocessing: Mapping, names: Sequence[str]) -> None:
  """Raises where something else made the features than the run expects."""
  hashes = [manifest["weights_sha256"], manifest["file_sha256"]]
  if weights and (len(weights) < 6 or not weights.isalnum()):
    raise ConfigError(f"dataset.weights: expected a SHA-256 or at least its first 6 digits, got {weights!r}")
  if weights and not any(found.startswith(weights.lower()) for found in hashes if found):
    raise DataError(f"dataset.weights: the features in {root} were made by the weights "
                    f"{' and '.join(found[:8] for found in hashes if found)}, expected {weights[:8]}; {_HINT}, or "
                    "give weights=''")
  for key, wanted in preprocessing.items():
    found = manifest["preprocessing"][key]
    if wanted and not (len(found) == len(wanted) and np.allclose(found, wanted, atol=1e-6)
                       if isinstance(wanted, list) else found == wanted):
      raise DataError(f"dataset.{key}: the features in {root} were made of images with {key} {found}, expected "
                      f"{wanted}; {_HINT}")
  found = tuple(manifest["class_names"])
  if names and found != tuple(names):
    place = next((k for k, (a, b) in enumerate(zip(found, names, strict=False)) if a != b), min(len(found), len(names)))
    here, there = (repr(part[place]) if place < len(part) else "absent" for part in (found, names))
    raise DataError(f"dataset.class_names: the features in {root} are of other classes ({len(found)}, expected "
                    f"{len(names)}): class {place} is {here}, expected {there}; {_HINT}")
