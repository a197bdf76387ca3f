"""The .safetensors format: a JSON header with the type, shape and place of each array, and the arrays behind it.

https://github.com/huggingface/safetensors describes it. Nothing in such a file can run.
"""

import hashlib
import json
import math
import pathlib
from collections.abc import Mapping
from typing import BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

_TYPES = dict(F64=np.float64, F32=np.float32, F16=np.float16, BF16=jnp.bfloat16, I64=np.int64, I32=np.int32,
              I16=np.int16, I8=np.int8, U8=np.uint8, BOOL=np.bool_)
_HEADER = 100_000_000  # bytes that a header may have: the format's own limit


class File(NamedTuple):
  """A file of arrays.

  Args:
    tensors: the arrays, mapped into memory and read where they are used.
    metadata: the strings that the header holds beside them.
    start: the byte at which the arrays begin.
  """

  tensors: dict[str, np.ndarray]
  metadata: dict[str, str]
  start: int


def read(file: pathlib.Path | BinaryIO) -> File:
  """The arrays and the metadata of a file, given by its path or open.

  Raises:
    ValueError: it is damaged or of another format, with the reason.
    OSError: it cannot be read.
  """
  content = np.memmap(file, np.uint8, "r")
  try:
    if len(content) < 8:
      raise ValueError(f"{len(content)} bytes, fewer than say how long its header is")
    length = int(content[:8].view("<u8")[0])
    if length > min(_HEADER, len(content) - 8):
      raise ValueError(f"a header of {length} bytes")
    header, data, tensors, end = json.loads(bytes(content[8:8 + length])), content[8 + length:], {}, 0
    metadata = header.pop("__metadata__", {})
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
      kind, (start, stop) = np.dtype(_TYPES[entry["dtype"]]), entry["data_offsets"]
      # The format allows no overlap: with it, a small file could claim any amount of memory.
      if not end <= start <= stop <= len(data) or stop - start != math.prod(entry["shape"]) * kind.itemsize:
        raise ValueError(f"{name} from byte {start} to {stop} of {len(data)}, after one that ends at {end}")
      end = stop
      # Not a view of the map: an array may begin at any byte, which `view` does not take.
      tensors[name] = np.frombuffer(data[start:stop], kind).reshape(entry["shape"])
    return File(tensors, dict(metadata), 8 + length)
  except (KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
    raise ValueError(f"{type(error).__name__}: {error}") from error


def header(arrays: Mapping[str, tuple], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
  """(the bytes before the arrays, {name: the byte in the file at which an array begins}).

  Args:
    arrays: {name: (type, shape)}, in the order of the file.
    metadata: strings that the header holds beside them.
  """
  names = {np.dtype(kind): name for name, kind in _TYPES.items()}
  entries, starts, place = dict(__metadata__=dict(metadata)), {}, 0
  for name, (kind, shape) in arrays.items():
    size = math.prod(shape) * np.dtype(kind).itemsize
    entries[name] = dict(dtype=names[np.dtype(kind)], shape=list(shape), data_offsets=[place, place + size])
    starts[name], place = place, place + size
  text = json.dumps(entries).encode()
  text += b" " * (-len(text) % 8)  # the arrays begin at a multiple of eight, as the format recommends
  return len(text).to_bytes(8, "little") + text, {name: 8 + len(text) + start for name, start in starts.items()}


def content_sha256(path: pathlib.Path, start: int, text: bytes = b"") -> str:
  """The SHA-256 of `text` and of all bytes of the file from `start` on."""
  with open(path, "rb") as file:
    file.seek(start)
    return hashlib.file_digest(file, lambda: hashlib.sha256(text)).hexdigest()
