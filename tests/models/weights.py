"""Writes files of weights."""

import json

import numpy as np


def save(path, tensors: dict[str, np.ndarray], change=lambda header: None) -> str:
  """A .safetensors file, written by the format's description."""
  kinds = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64"}
  header, data = {"__metadata__": {"format": "pt"}}, b""
  for name, tensor in tensors.items():
    content = np.ascontiguousarray(tensor).tobytes()
    header[name] = dict(dtype=kinds[tensor.dtype.name], shape=list(tensor.shape),
                        data_offsets=[len(data), len(data) + len(content)])
    data += content
  change(header)
  text = json.dumps(header).encode()
  path.write_bytes(len(text).to_bytes(8, "little") + text + data)
  return str(path)
