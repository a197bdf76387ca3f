"""Loads published weights into the backbone of a `Classifier`: PyTorch's files and big_vision's."""

import re
from collections.abc import Mapping

import flax.traverse_util
import jax.numpy as jnp
import numpy as np

from ltjax.errors import DataError
from ltjax.models import import_names, weight_files
from ltjax.models.vit import resample

__all__ = ["into", "paths", "preprocessing", "projection", "summary"]

# Parameters that no file of weights has: an insert's, and those that a tuning adds.
_ADDED = re.compile(r"insert|adapter|prompts.*|.*_lora|.*_ssf")

_POSITIONS = ("params", "positions")


def into(variables: Mapping, path: str) -> dict:
  """`variables` with the backbone's weights and statistics from a file.

  The head, an `insert` and a tuning's parameters stay as they are. Positions of a ViT are resampled if the grids
  differ. The running variance is PyTorch's, which is unbiased; flax's is biased, by a factor below 1.0001 at the batch
  sizes of these networks.

  Args:
    variables: {"params", "batch_stats"} of a `Classifier`, arrays or shapes.
    path: a .safetensors, .npz or .pth file, or a name in `weight_files.PACKAGES`.

  Raises:
    DataError: no such file, one that is damaged or holds more than tensors, or one of another network.
  """
  file = weight_files.locate(path)
  found, wanted = weight_files.read(file), _wanted(variables)
  converted = import_names.convert(found, blocks=_blocks(wanted))
  arrays = converted.arrays
  positions, own = arrays.get(_POSITIONS), wanted.get(_POSITIONS)
  if positions is not None and own is not None and positions.ndim == 3 and positions.shape[-1] == own.shape[-1]:
    arrays[_POSITIONS] = np.asarray(resample(jnp.asarray(positions, jnp.float32), own.shape[:2]))
  if problems := _problems(wanted, converted):
    raise DataError(f"pretrained: {file} is {import_names.describe(found)} and does not fit the config's backbone: "
                    f"{', '.join(problems)}; give a backbone of that kind, or other weights")
  result = {}
  for kind, tree in variables.items():
    flat = flax.traverse_util.flatten_dict(tree.get("backbone", {}))
    flat |= {place: jnp.asarray(arrays[kind, *place], jnp.float32) for place in flat if (kind, *place) in wanted}
    result[kind] = {**tree, "backbone": flax.traverse_util.unflatten_dict(flat)} if flat else tree
  return result


def summary(variables: Mapping, path: str) -> str:
  """A sentence on what `into` loads: how many parameters, of which network, from which file.

  Args:
    variables: as for `into`.
    path: as for `into`.
  """
  file = weight_files.locate(path)
  count = sum(leaf.size for (kind, *_), leaf in _wanted(variables).items() if kind == "params")
  return (f"backbone: {count:,} parameters from {file}, {import_names.describe(weight_files.read(file))} (SHA-256 "
          f"{weight_files.sha256(file)[:8]})")


def preprocessing(path: str) -> import_names.Preprocessing:
  """The preprocessing that the weights of a file expect; see `import_names.preprocessing`."""
  file = weight_files.locate(path)
  return import_names.preprocessing(weight_files.read(file), str(file))


def projection(path: str) -> np.ndarray:
  """CLIP's projection from the features of images to the space of texts; see `import_names.projection`."""
  return import_names.projection(weight_files.read(weight_files.locate(path)))


def paths(variables: Mapping) -> frozenset[str]:
  """"params/backbone/..." of the parameters that are in a file exactly as they are used.

  That leaves out a ViT's positions, which may be resampled.

  Args:
    variables: as for `into`.
  """
  return frozenset("/".join((place[0], "backbone", *place[1:])) for place in _wanted(variables)
                   if place[0] == "params" and place != _POSITIONS)


def _wanted(variables) -> dict:
  """{(collection, *path in the backbone): leaf} of all arrays that a file must have."""
  return {(kind, *place): leaf for kind, tree in variables.items()
          for place, leaf in flax.traverse_util.flatten_dict(tree.get("backbone", {})).items()
          if not any(_ADDED.fullmatch(part) for part in place)}


def _blocks(wanted) -> list[str]:
  """The names of blocks in order, stage by stage."""
  names = {place[1] for place in wanted if re.fullmatch(r"stage\d+_block\d+", place[1])}
  return sorted(names, key=lambda name: tuple(map(int, re.findall(r"\d+", name))))


def _problems(wanted, converted) -> list[str]:
  """How many parameters are missing, surplus and of another shape, with the first three of each."""
  arrays, sources = converted.arrays, converted.sources
  missing = ["/".join(place[1:]) for place in wanted if place not in arrays]
  surplus = sorted([*converted.surplus, *(sources[place] for place in arrays if place not in wanted)])
  other = [f"{sources[place]} gives {tuple(arrays[place].shape)}, expected {tuple(leaf.shape)}"
           for place, leaf in wanted.items() if place in arrays and arrays[place].shape != tuple(leaf.shape)]
  kinds = (("missing", missing), ("surplus", surplus), ("of another shape", other))
  return [f"{len(names)} {kind} ({'; '.join(names[:3])}{'; ...' if len(names) > 3 else ''})"
          for kind, names in kinds if names]
