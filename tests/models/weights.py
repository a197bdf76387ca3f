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


def vit(*, width: int, depth: int, patch: int, grid: int, clip: bool = False) -> dict[str, np.ndarray]:
  """Random tensors of a ViT under timm's names; `clip` has a LayerNorm first and patches without bias."""
  rng, found = np.random.default_rng(0), {}

  def layer(name, *shape, bias=True):
    found[f"{name}.weight"] = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else (
        rng.uniform(0.5, 1.5, shape))
    if bias:
      found[f"{name}.bias"] = 0.1 * rng.standard_normal(shape[0])

  layer("patch_embed.proj", width, 3, patch, patch, bias=not clip)
  found |= dict(cls_token=rng.standard_normal((1, 1, width)), pos_embed=rng.standard_normal((1, 1 + grid**2, width)))
  for block in (f"blocks.{number}" for number in range(depth)):
    for name, shape in {"norm1": (width,), "norm2": (width,), "attn.qkv": (3 * width, width),
                        "attn.proj": (width, width), "mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)
                        }.items():
      layer(f"{block}.{name}", *shape)
  for name in ("norm", "norm_pre") if clip else ("norm",):
    layer(name, width)
  return {name: value.astype(np.float32) for name, value in found.items()}
