"""Weights that PyTorch has trained, as variables of `ResNet`: files with the names of torchvision and timm."""

import importlib
import json
import math
import pathlib
import re
from collections.abc import Mapping

import flax.traverse_util
import jax.numpy as jnp
import numpy as np

from ltjax.errors import DataError

_SAFETENSORS = dict(F64=np.float64, F32=np.float32, F16=np.float16, BF16=jnp.bfloat16, I64=np.int64)
_HEADER = 100_000_000  # bytes that the header of a .safetensors may have: the format's own limit
_PICKLED = (".pth", ".pt", ".bin", ".tar")
_NAMES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_NOT_OURS = re.compile(r"(.+\.)?num_batches_tracked|(fc|classifier|head)\..+")


def into(variables: Mapping, path: str) -> dict:
  """`variables` with the backbone's weights and statistics from a file; the head and an `insert` stay as they are.

  The kernel of a convolution is [h w i/groups o] here and [o i/groups h w] there; all else is the same. The variance is
  PyTorch's, which is unbiased; flax's is not, by a factor below 1.0001 at their batch sizes.

  Args:
    variables: {"params", "batch_stats"} of a `Classifier` with a `ResNet`, arrays or shapes.
    path: a .safetensors file; or what torch.save made of a state dict (.pth), for which torch must be there.

  Raises:
    DataError: no such file, one that is damaged or holds more than tensors; or tensors that are missing, not expected
      or of another shape, all in one message.
  """
  found = {name.removeprefix("module."): tensor for name, tensor in _read(pathlib.Path(path)).items()}
  wanted = {(kind, *place): leaf for kind, tree in variables.items()
            for place, leaf in flax.traverse_util.flatten_dict(tree["backbone"]).items() if place[0] != "insert"}
  names = {place: _torch_name(place[1:]) for place in wanted}
  taken, problems = {}, []
  for place, name in names.items():
    if name not in found:
      problems.append(f"{name} is missing")
      continue
    tensor = np.asarray(found[name])
    taken[place] = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor
    if taken[place].shape != wanted[place].shape:
      shape = wanted[place].shape
      expected = tuple(shape[axis] for axis in (3, 2, 0, 1)) if len(shape) == 4 else tuple(shape)
      problems.append(f"{name} is {tensor.shape}, expected {expected}")
  problems += [f"{name} is not expected" for name in sorted(found.keys() - set(names.values()))
               if not _NOT_OURS.fullmatch(name)]
  if problems:
    more = f" and {len(problems) - 12} more" if len(problems) > 12 else ""
    raise DataError(f"pretrained: {path} does not fit the config's backbone: {'; '.join(problems[:12])}{more}")
  result = {}
  for kind, tree in variables.items():
    flat = flax.traverse_util.flatten_dict(tree["backbone"])
    flat |= {place[1:]: jnp.asarray(value, jnp.float32) for place, value in taken.items() if place[0] == kind}
    result[kind] = {**tree, "backbone": flax.traverse_util.unflatten_dict(flat)}
  return result


def _torch_name(place: tuple[str, ...]) -> str:
  """("stage2_block1", "norm3", "mean") as "layer2.0.bn3.running_mean"."""
  *block, layer, leaf = place
  layer = dict(stem_conv="conv1", stem_norm="bn1", shortcut_conv="downsample.0", shortcut_norm="downsample.1").get(
      layer, layer.replace("norm", "bn"))
  if block:
    stage, number = re.fullmatch(r"stage(\d+)_block(\d+)", block[0]).groups()
    layer = f"layer{stage}.{int(number) - 1}.{layer}"
  return f"{layer}.{_NAMES[leaf]}"


def _read(path: pathlib.Path) -> Mapping[str, np.ndarray]:
  if not path.is_file():
    raise DataError(f"pretrained: no file {str(path)!r}")
  if path.suffix == ".safetensors":
    return _read_safetensors(path)
  if path.suffix in _PICKLED:
    return _read_pickled(path)
  raise DataError(f"pretrained: {path} is neither a .safetensors nor a .pth file")


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  """The tensors of a file: 8 bytes with the length of a JSON header, the header, and the data it describes."""
  try:
    content = np.memmap(path, np.uint8, "r")
    length = int(content[:8].view("<u8")[0])
    if length > min(_HEADER, len(content) - 8):
      raise ValueError(f"a header of {length} bytes")
    header, data = json.loads(bytes(content[8:8 + length])), content[8 + length:]
    tensors = {}
    for name, entry in header.items():
      if name != "__metadata__":
        kind, (start, stop) = np.dtype(_SAFETENSORS[entry["dtype"]]), entry["data_offsets"]
        if not 0 <= start <= stop <= len(data) or stop - start != math.prod(entry["shape"]) * kind.itemsize:
          raise ValueError(f"{name} from byte {start} to {stop} of {len(data)}")
        tensors[name] = np.frombuffer(bytes(data[start:stop]), kind).reshape(entry["shape"])
    return tensors
  except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
    raise DataError(f"pretrained: {path} is not a whole .safetensors file ({type(error).__name__}: {error})") from error


def _read_pickled(path: pathlib.Path) -> dict[str, np.ndarray]:
  """The tensors of a .pth, through torch, which alone is trusted to read the pickle in it without running it."""
  try:
    torch = importlib.import_module("torch")
  except ImportError as error:
    raise DataError(f"pretrained: {path} holds a pickle, which only torch reads safely, and torch is not installed; "
                    "where it is, convert the file: safetensors.torch.save_file(torch.load(FILE, weights_only=True), "
                    "'weights.safetensors')") from error
  if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
    raise DataError(f"pretrained: {path}: torch {torch.__version__} can be made to run what is in a file "
                    "(CVE-2025-32434); take torch 2.6 or later, or a .safetensors file")
  try:
    loaded = torch.load(path, map_location="cpu", weights_only=True)
  except Exception as error:  # torch raises many kinds
    # Other lines of its message tell how to let the file run.
    reason = next((line.strip() for line in str(error).splitlines() if line.strip() and "weights_only" not in line),
                  type(error).__name__)
    raise DataError(f"pretrained: {path} could not be read as weights alone ({reason[:200]})") from error
  for key in ("state_dict", "model"):
    loaded = loaded.get(key, loaded) if isinstance(loaded, Mapping) else loaded
  if not isinstance(loaded, Mapping) or not all(torch.is_tensor(value) for value in loaded.values()):
    raise DataError(f"pretrained: {path} holds no state dict, tensors by their names, at its top or as 'state_dict'")
  return {name: (tensor.float() if tensor.is_floating_point() else tensor).numpy() for name, tensor in loaded.items()}
