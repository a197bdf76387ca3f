"""Converts the names and layouts of published networks' parameters to ours.

`convert` turns a file into {("params" or "batch_stats", *path): array}; `describe` guesses what a file holds.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ltjax.errors import DataError

__all__ = ["NORMALIZATIONS", "Converted", "Preprocessing", "convert", "describe", "preprocessing", "projection"]

Place = tuple[str, ...]


class Converted(NamedTuple):
  """A file's arrays under our names.

  Args:
    arrays: {(collection, *path): array}.
    sources: {(collection, *path): the name in the file}.
    surplus: names of the file that have no place in a network of its family.
  """

  arrays: dict[Place, np.ndarray]
  sources: dict[Place, str]
  surplus: list[str]


class Preprocessing(NamedTuple):
  """The preprocessing that a pretrained network expects: pixels / 255, minus `mean`, divided by `std`, per channel.

  Args:
    mean: of the three channels, in [0, 1].
    std: of the three channels, in [0, 1].
    interpolation: of the resizing, "bicubic" or "bilinear", with antialiasing.
    size: side of the images, in pixels; 0 if the weights do not reveal it.
  """

  mean: tuple[float, ...]
  std: tuple[float, ...]
  interpolation: str
  size: int


# (mean, std) by the names that `config.normalization` has for them.
NORMALIZATIONS = dict(
    imagenet=((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    clip=((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    half=((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), lite=((127 / 255,) * 3, (128 / 255,) * 3))
_IMAGENET, _CLIP, _HALF, _LITE = NORMALIZATIONS.values()

# A file may hold more than a backbone: classifiers, counters, the half of CLIP that is not needed.
_BESIDE = re.compile(r"(.+\.)?(num_batches_tracked|position_ids|mask_token|logit_scale|logit_bias)|proj"
                     r"|_?(fc|classifier)\..+|(head|head_drop|pre_logits|visual_projection|text_projection|pooler)(\..+)?")

_RESNET = ((r"conv1\.", "stem_conv."), (r"bn1\.", "stem_norm."),
           (r"layer(\d+)\.(\d+)\.conv(\d)\.", r"stage\1_block\2.conv\3."),
           (r"layer(\d+)\.(\d+)\.bn(\d)\.", r"stage\1_block\2.norm\3."),
           (r"layer(\d+)\.(\d+)\.downsample\.0\.", r"stage\1_block\2.shortcut_conv."),
           (r"layer(\d+)\.(\d+)\.downsample\.1\.", r"stage\1_block\2.shortcut_norm."))
_EFFICIENTNET = ((r"_conv_stem\.", "stem_conv."), (r"_bn0\.", "stem_norm."), (r"_conv_head\.", "head_conv."),
                 (r"_bn1\.", "head_norm."),
                 (r"_blocks\.(\d+)\._(expand|depth|project)(?:wise)?_conv\.", r"\1.\2_conv."),
                 (r"_blocks\.(\d+)\._bn0\.", r"\1.expand_norm."), (r"_blocks\.(\d+)\._bn1\.", r"\1.depth_norm."),
                 (r"_blocks\.(\d+)\._bn2\.", r"\1.project_norm."))
_BLOCK = r"(?:blocks|encoder\.layers?|transformer\.resblocks|Transformer\.encoderblock)[._](\d+)\."
# Each pattern joins the names that timm, Hugging Face, CLIP and big_vision have for one of our parameters.
_VIT = tuple((rf"(?:{name})", ours) for name, ours in (
    (r"patch_embed\.proj\.|embeddings\.patch_embeddings\.projection\.|embeddings\.patch_embedding\.|conv1\.|"
     r"embedding\.", "patch."),
    (r"cls_token$|embeddings\.cls_token$|embeddings\.class_embedding$|class_embedding$|cls$", "token"),
    (r"reg_token$|register_tokens$|embeddings\.register_tokens$", "registers"),
    (r"pos_embed$|embeddings\.position_embeddings$|embeddings\.position_embedding\.weight$|positional_embedding$|"
     r"pos_embedding$|Transformer\.posembed_input\.pos_embedding$", "positions"),
    (r"norm_pre\.|pre_layrnorm\.|ln_pre\.", "norm_pre."),
    (r"norm\.|layernorm\.|post_layernorm\.|ln_post\.|ln_final\.|Transformer\.encoder_norm\.", "norm."),
    (r"token_embedding\.weight$", "embedding"), (r"text_projection$", "projection")))
_VIT_BLOCK = tuple((rf"(?:{name})", ours) for name, ours in (
    (r"norm1\.|layernorm_before\.|layer_norm1\.|ln_1\.|LayerNorm_0\.", "norm1."),
    (r"norm2\.|layernorm_after\.|layer_norm2\.|ln_2\.|LayerNorm_[12]\.", "norm2."),
    (r"attn\.qkv\.|attn\.in_proj_", "qkv."),
    (r"attention\.q_proj\.|attention\.attention\.query\.|self_attn\.q_proj\.|"
     r"MultiHeadDotProductAttention_\d\.query\.", "q."),
    (r"attention\.k_proj\.|attention\.attention\.key\.|self_attn\.k_proj\.|MultiHeadDotProductAttention_\d\.key\.",
     "k."),
    (r"attention\.v_proj\.|attention\.attention\.value\.|self_attn\.v_proj\.|MultiHeadDotProductAttention_\d\.value\.",
     "v."),
    (r"attn\.proj\.|attn\.out_proj\.|attention\.o_proj\.|attention\.output\.dense\.|self_attn\.out_proj\.|"
     r"MultiHeadDotProductAttention_\d\.out\.", "proj."),
    (r"mlp\.fc1\.|mlp\.c_fc\.|intermediate\.dense\.|MlpBlock_\d\.Dense_0\.", "fc1."),
    (r"mlp\.fc2\.|mlp\.c_proj\.|output\.dense\.|MlpBlock_\d\.Dense_1\.", "fc2."),
    (r"(?:ls1|ls_1)\.gamma$|layer_scale1\.lambda1$", "scale1"),
    (r"(?:ls2|ls_2)\.gamma$|layer_scale2\.lambda1$", "scale2")))
_LEAVES = dict(bias="bias", running_mean="mean", running_var="var", scale="scale", kernel="kernel")


class _Family(NamedTuple):
  """The files of one source.

  Args:
    owner: the library or model that uses these names.
    mark: a regular expression for one name; any text before it in the file is the prefix of all names.
    kind: "vit", "resnet", "efficientnet" or "text".
    images: mean and std of the images.
    interpolation: of the resizing.
  """

  owner: str
  mark: str
  kind: str
  images: tuple = _HALF
  interpolation: str = "bicubic"


# In order: the first family with its mark in the file counts, so the special ones precede the general ones.
_FAMILIES = (
    _Family("efficientnet-lite-pytorch", r"_conv_stem\.weight", "efficientnet", _LITE),
    _Family("Hugging Face's CLIP", r"embeddings\.class_embedding", "vit", _CLIP),
    _Family("OpenAI's CLIP or open_clip", r"class_embedding", "vit", _CLIP),
    _Family("Hugging Face's DINOv2", r"encoder\.layer\.0\.layer_scale1\.lambda1", "vit", _IMAGENET),
    _Family("Hugging Face", r"embeddings\.patch_embeddings\.projection\.weight", "vit", _HALF, "bilinear"),
    _Family("timm's CLIP", r"norm_pre\.weight", "vit", _CLIP),
    _Family("DINOv2 or timm", r"blocks\.0\.ls1\.gamma", "vit", _IMAGENET),
    _Family("timm", r"patch_embed\.proj\.weight", "vit"),
    _Family("big_vision", r"Transformer[/.]encoderblock_0[/.]LayerNorm_0[/.]scale", "vit", _HALF, "bilinear"),
    _Family("torchvision", r"layer1\.0\.conv1\.weight", "resnet", _IMAGENET, "bilinear"))
_TEXT = (_Family("OpenAI's CLIP or open_clip", r"token_embedding\.weight", "text"),)
_VIT_SIZES = {192: "Ti", 384: "S", 768: "B", 1024: "L", 1280: "H"}


def convert(found: Mapping[str, np.ndarray], *, blocks: Sequence[str] = (), text: bool = False) -> Converted:
  """The arrays of a file with our names and layouts.

  Args:
    found: {name: array} of the file.
    blocks: the names of an EfficientNet's blocks in order; its files only number them.
    text: take CLIP's text tower instead of its visual one.
  """
  family, names = _recognise(found, text)
  arrays, sources, surplus = {}, {}, []
  for short, name in names.items():
    place = _place(short, found[name], family, blocks) if family else None
    if place is None:
      surplus += [] if _BESIDE.fullmatch(short) else [name]
      continue
    arrays[place], sources[place] = _layout(found[name], place, family), name
  if family and family.kind in ("vit", "text"):
    _join_queries(arrays, sources)
  if family and family.kind == "vit":
    _split_positions(arrays)
  return Converted(arrays, sources, surplus)


def describe(found: Mapping[str, np.ndarray]) -> str:
  """A guess at the network in a file, such as "a ViT-B/16 of timm"."""
  family, names = _recognise(found)
  if family is None:
    return f"no network that ltjax knows (it begins with {', '.join(map(repr, list(found)[:3])) or 'nothing'})"
  places = {_place(short, found[name], family, range(99)): name for short, name in names.items()}
  if family.kind == "resnet":
    convolutions = sum(bool(re.fullmatch(r"layer\d+\.\d+\.conv\d\.weight", short)) for short in names)
    return f"a ResNet-{convolutions + 2} of {family.owner}"
  if family.kind == "efficientnet":
    return f"an EfficientNet-{_lite(found, names)} of {family.owner}"
  kernel = _layout(found[places["params", "patch", "kernel"]], ("params", "patch", "kernel"), family)
  depth = len({place[1] for place in places if place and place[1].startswith("block")})
  name = _VIT_SIZES.get(kernel.shape[-1])
  size = (f"ViT-{name}/{kernel.shape[0]} with" if name else
          f"ViT {kernel.shape[-1]} wide with patches of {kernel.shape[0]} and")
  return f"a {size} {depth} blocks of {family.owner}"


def preprocessing(found: Mapping[str, np.ndarray], file: str) -> Preprocessing:
  """The preprocessing that the weights `found` in a file expect, as far as the names in it reveal.

  timm's names are the same for networks with mean and std 0.5 (AugReg, which this returns) and with ImageNet's (DeiT,
  MAE).

  Raises:
    DataError: a file of an unknown network.
  """
  family, names = _recognise(found)
  if family is None:
    raise DataError(f"pretrained: {file} is of {describe(found)}, so the preprocessing that it expects is unknown; "
                    "docs/pretrained.md lists the networks that ltjax knows")
  size = 224
  if family.kind == "efficientnet":
    size = dict(Lite0=224, Lite1=240, Lite2=260).get(_lite(found, names), 0)
  elif family.kind == "vit":
    arrays = convert(found).arrays
    grid, kernel = arrays.get(("params", "positions")), arrays.get(("params", "patch", "kernel"))
    size = grid.shape[0] * kernel.shape[0] if grid is not None and grid.ndim == 3 else 0
  return Preprocessing(*family.images, family.interpolation, size)


def projection(found: Mapping[str, np.ndarray]) -> np.ndarray:
  """The matrix [d e] that projects the features of CLIP's images into the space where it compares them with texts.

  Raises:
    DataError: the file has none.
  """
  for name, array in found.items():
    if re.fullmatch(r"(.+\.)?proj", name) and array.ndim == 2:
      return np.asarray(array, np.float32)
    if name.endswith("visual_projection.weight"):
      return np.asarray(array.T, np.float32)
  raise DataError(f"there is no projection to the space of texts in these weights, which are of {describe(found)}")


def _recognise(found, text=False) -> tuple[_Family | None, dict[str, str]]:
  """(family, {name without the prefix: name in the file}); names that lack the family's prefix are left out."""
  for family in _TEXT if text else _FAMILIES:
    for name in found:
      if match := re.fullmatch(rf"(|.*[./]){family.mark}", name):
        prefix = match[1]
        return family, {full.removeprefix(prefix): full for full in found if full.startswith(prefix)}
  return None, {name: name for name in found}


def _lite(found, names) -> str:
  """Lite0, Lite1 or Lite2, by the number of blocks and the width of the last one."""
  count = len({short.split(".")[1] for short in names if short.startswith("_blocks.")})
  wide = "_conv_head.weight" in names and found[names["_conv_head.weight"]].shape[1] > 320
  return {(16, False): "Lite0", (21, False): "Lite1", (21, True): "Lite2"}.get((count, wide), f"Lite of {count} blocks")


def _place(name: str, array: np.ndarray, family: _Family, blocks) -> Place | None:
  """Our path of a parameter of the file; None if it has none."""
  name = name.replace("/", ".")
  rules, front = dict(resnet=_RESNET, efficientnet=_EFFICIENTNET).get(family.kind, _VIT), ()
  if family.kind in ("vit", "text") and (match := re.match(_BLOCK, name)):
    rules, front, name = _VIT_BLOCK, (f"block{int(match[1]) + 1}",), name[match.end():]
  for pattern, ours in rules:
    if match := re.match(pattern, name):
      path, rest = match.expand(ours), name[match.end():]
      break
  else:
    return None
  if not path.endswith("."):
    return ("params", *front, path) if not rest else None
  parts = path.rstrip(".").split(".")
  if family.kind == "resnet" and len(parts) == 2:
    stage, block = re.fullmatch(r"(stage\d+_block)(\d+)", parts[0]).groups()
    parts[0] = f"{stage}{int(block) + 1}"
  if family.kind == "efficientnet" and len(parts) == 2:
    if int(parts[0]) >= len(blocks):
      return None
    parts[0] = str(blocks[int(parts[0])])
  leaf = _LEAVES.get(rest, ("kernel" if array.ndim > 1 else "scale") if rest == "weight" else None)
  return leaf and ("batch_stats" if leaf in ("mean", "var") else "params", *front, *parts, leaf)


def _layout(array, place, family) -> np.ndarray:
  """`array` in our layout."""
  if family.owner == "big_vision":
    heads = {"q": (array.shape[0], -1), "k": (array.shape[0], -1), "v": (array.shape[0], -1),
             "proj": (-1, array.shape[-1])}.get(place[-2] if len(place) > 2 else "")
    if heads and array.ndim > 1:
      array = array.reshape(heads if place[-1] == "kernel" else -1)
  elif place[-1] == "kernel":
    array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
  if place[-1] in ("token", "registers") or (place[-1] == "positions" and array.ndim > 2):
    array = array.reshape(-1, array.shape[-1])
  return array


def _join_queries(arrays, sources) -> None:
  """Replaces the matrices of queries, keys and values by one."""
  for place in [place for place in arrays if place[-2:-1] == ("q",)]:
    three = [(*place[:-2], letter, place[-1]) for letter in "qkv"]
    joined = (*place[:-2], "qkv", place[-1])
    if all(part in arrays for part in three):
      sources[joined] = sources[place]
      arrays[joined] = np.concatenate([arrays.pop(part) for part in three], axis=-1)


def _split_positions(arrays) -> None:
  """Reshapes positions to a grid, and adds the class token's position to the token."""
  positions, token = arrays.get(("params", "positions")), arrays.get(("params", "token"))
  if positions is None:
    return
  for own in (0, 1):
    side = math.isqrt(max(len(positions) - own, 0))
    if side**2 == len(positions) - own:
      if own and token is not None:
        arrays["params", "token"] = token + positions[:1]
      arrays["params", "positions"] = positions[own:].reshape(side, side, -1)
      return
