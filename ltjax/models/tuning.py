"""Parameter-efficient fine-tuning: adds parameters to a pretrained backbone, or trains only some of its own.

A tuning is an argument of a backbone: `backbone=dict(name="ViT", tuning=dict(name="adaptformer", width=4))`. A fresh
adapter, LoRA or SSF is exact: it leaves every bit of the output as it is. Fresh prompts do change the output, since
they take part in the attention. `trainable` returns the `train` and `lr_factors` that a stage needs.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Annotated, Any

import flax.linen as nn
import jax.numpy as jnp

from ltjax.errors import ConfigError
from ltjax.losses.arguments import check_fields
from ltjax.models.initializers import kaiming_uniform

__all__ = ["adaptformer", "bias_only", "full", "last_blocks", "lora", "norm_only", "ssf", "vpt"]

ANY = ("ViT", "ResNet", "ResNetCIFAR", "EfficientNet")


@dataclasses.dataclass(frozen=True)
class Tuning:
  """The interface that backbones call. This base class adds and trains nothing."""

  fits = ANY  # the backbones that can take it
  number = 0  # number of prompts

  def __post_init__(self):
    check_fields(self)

  def for_classes(self, num_classes: int) -> "Tuning":
    """This tuning with the values that depend on the number of classes filled in."""
    del num_classes
    return self

  def layer(self, module: nn.Module, x: Any) -> Any:
    """The output of a layer of the backbone."""
    return module(x)

  def around(self, make: Callable) -> Callable:
    """`make`, which makes layers, wrapped so that each layer is called through `layer`."""
    return lambda *args, **kwargs: functools.partial(self.layer, make(*args, **kwargs))

  def beside_mlp(self, x: Any, dtype: Any) -> Any:
    """The output of a branch beside an MLP, given the MLP's residual input; None if there is no branch."""
    return None

  def prompts(self, module: nn.Module, block: int, width: int) -> Any:
    """The new prompts [number width] of a block, counted from 0; None if those of the previous block stay."""
    return None

  def patterns(self, backbone: nn.Module) -> tuple[tuple[str, ...], tuple]:
    """(train, lr_factors) of the backbone's own parameters."""
    return (), ()


def check(tuning: Tuning | None, backbone: nn.Module) -> Tuning:
  """`tuning`, or for None the one that does nothing; raises a `ConfigError` unless it fits the backbone."""
  tuning, name = tuning or Tuning(), type(backbone).__name__
  if not isinstance(tuning, Tuning):
    raise ConfigError(f"{name}: tuning must be one of {', '.join(__all__)}, got {tuning!r}")
  if name in ANY and name not in tuning.fits:
    raise ConfigError(f"{name}: {type(tuning).__name__} is for {' and '.join(tuning.fits)}; for {name} take one of "
                      f"{', '.join(key for key in __all__ if name in globals()[key].fits)}")
  return tuning


def trainable(backbone: nn.Module) -> tuple[tuple[str, ...], tuple]:
  """(train, lr_factors) of a stage that fine-tunes a backbone as its `tuning` says, the head included.

  Args:
    backbone: a module with a `tuning`.

  Raises:
    ConfigError: it has none.
  """
  tuning = getattr(backbone, "tuning", None)
  if tuning is None:
    raise ConfigError("train='tuning' needs a backbone with one; write backbone=dict(..., tuning=dict(name=...)) with "
                      f"one of {', '.join(__all__)}")
  train, lr_factors = tuning.patterns(backbone)
  insert = () if getattr(backbone, "insert", None) is None else ("backbone/insert/.*",)
  return ("head/.*", *train, *insert), lr_factors


# -- tunings that add parameters --------------------------------------------------------------------------------------


def adapter_width(num_classes: int) -> int:
  """LIFT's width of an adapter: 2^floor(log2(C / 24)), at least 1."""
  return 2 ** max(math.floor(math.log2(max(num_classes, 1) / 24)), 0)


@dataclasses.dataclass(frozen=True)
class AdaptFormer(Tuning):
  """x + mlp(norm2(x)) + s up(relu(down(norm(x)))), a small MLP beside each large one; up and its bias start at 0.

  Args:
    width: of the small MLP; None for LIFT's 2^floor(log2(C / 24)) with C classes.

  References:
    Chen et al., `AdaptFormer <https://arxiv.org/abs/2205.13535>`_, NeurIPS 2022; with the learned scale s and the
    width of Shi et al., LIFT, ICML 2024. `ViT-B`, 32 wide: 617,868 parameters.
  """
  width: Annotated[int | None, "[1, inf)"] = None

  fits = ("ViT",)

  def for_classes(self, num_classes: int) -> "AdaptFormer":
    """This tuning with a width."""
    return self if self.width else dataclasses.replace(self, width=adapter_width(num_classes))

  def beside_mlp(self, x, dtype):
    """s up(relu(down(norm(x))))."""
    if self.width is None:
      raise ConfigError("adaptformer: without a width it needs the number of classes; call for_classes or give width")
    return _Adapter(self.width, dtype, name="adapter")(x)

  def patterns(self, backbone):
    """The adapters."""
    return ("backbone/.*adapter.*",), ()


class _Adapter(nn.Module):
  width: int
  dtype: Any

  @nn.compact
  def __call__(self, x):
    y = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, dtype=self.dtype, name="norm")(x)
    y = nn.Dense(self.width, kernel_init=kaiming_uniform, dtype=self.dtype, name="down")(y)
    y = nn.Dense(x.shape[-1], kernel_init=nn.initializers.zeros, dtype=self.dtype, name="up")(nn.relu(y))
    return y * self.param("scale", nn.initializers.ones, (1,), jnp.float32).astype(y.dtype)


@dataclasses.dataclass(frozen=True)
class LoRA(Tuning):
  """W x + B A x / rank: low-rank matrices on a ViT's queries and values, on other networks' ungrouped convolutions.

  For a k x k convolution, A is a k x k convolution with `rank` channels and B is a 1 x 1 convolution. B starts at 0.

  Args:
    rank: the rank of the product B A.

  References:
    Hu et al., `LoRA <https://arxiv.org/abs/2106.09685>`_, ICLR 2022, equation 3 with alpha = 1, as in LIFT.
  """
  rank: Annotated[int, "[1, inf)"] = 4

  def layer(self, module, x):
    """W x + B A x / rank."""
    y = module(x)
    if module.name == "qkv":
      return y + _LowRankQueries(self.rank, module.dtype, name="qkv_lora")(x)
    if isinstance(module, nn.Conv) and module.feature_group_count == 1 and module.name != "patch":
      return y + _LowRankConv(self.rank, module, name=f"{module.name}_lora")(x)
    return y

  def patterns(self, backbone):
    """The low-rank matrices."""
    return ("backbone/.*lora.*",), ()


class _LowRankQueries(nn.Module):
  rank: int
  dtype: Any

  @nn.compact
  def __call__(self, x):
    dense = functools.partial(nn.Dense, use_bias=False, dtype=self.dtype)
    query, value = (dense(x.shape[-1], kernel_init=nn.initializers.zeros, name=f"{name}_up")(
        dense(self.rank, kernel_init=kaiming_uniform, name=f"{name}_down")(x)) / self.rank for name in "qv")
    # Queries, keys and values are one matrix in our ViT; LoRA leaves the keys as they are.
    return jnp.concatenate([query, jnp.zeros_like(query), value], axis=-1)


class _LowRankConv(nn.Module):
  rank: int
  like: Any

  @nn.compact
  def __call__(self, x):
    down = self.like.clone(features=self.rank, kernel_init=kaiming_uniform, use_bias=False, parent=self, name="down")
    up = nn.Conv(self.like.features, (1, 1), use_bias=False, kernel_init=nn.initializers.zeros, dtype=self.like.dtype,
                 name="up")
    return up(down(x)) / self.rank


@dataclasses.dataclass(frozen=True)
class VPT(Tuning):
  """Learned tokens between the class token and the patches: `number` at the input, or with `deep` before every block.

  They start as U(-v, v), v = sqrt(6 / (3 patch^2 + d)). Fresh prompts change the features a little.

  Args:
    number: the number of prompts.
    deep: every block has its own prompts, which replace those of the previous block.

  References:
    Jia et al., `Visual Prompt Tuning <https://arxiv.org/abs/2203.12119>`_, ECCV 2022, equations 4 to 8.
  """
  number: Annotated[int, "[1, inf)"] = 10
  deep: bool = True

  fits = ("ViT",)

  def prompts(self, module, block, width):
    """The prompts of a block."""
    if block and not self.deep:
      return None
    limit = math.sqrt(6 / (3 * module.patch**2 + width))
    name = f"prompts_block{block + 1}" if self.deep else "prompts"
    return module.param(name, lambda key, shape: nn.initializers.uniform(2 * limit)(key, shape) - limit,
                        (self.number, width))

  def patterns(self, backbone):
    """The prompts."""
    return ("backbone/prompts.*",), ()


@dataclasses.dataclass(frozen=True)
class SSF(Tuning):
  """gamma y + beta after every layer of a ViT; gamma starts at 1, beta at 0.

  For inference they can be merged into the layer before.

  References:
    Lian et al., `Scaling & Shifting Your Features <https://arxiv.org/abs/2210.08823>`_, NeurIPS 2022, equation 3.
  """

  fits = ("ViT",)

  def layer(self, module, x):
    """gamma module(x) + beta."""
    y = module(x)
    return _ScaleShift(name=f"{module.name}_ssf")(y)

  def patterns(self, backbone):
    """gamma and beta."""
    return ("backbone/.*_ssf/.*",), ()


class _ScaleShift(nn.Module):

  @nn.compact
  def __call__(self, y):
    scale, shift = (self.param(name, init, y.shape[-1:], jnp.float32).astype(y.dtype) for name, init in (
        ("scale", nn.initializers.ones), ("shift", nn.initializers.zeros)))
    return y * scale + shift


# -- tunings that train some of the backbone's own parameters ---------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class BiasOnly(Tuning):
  """Trains all biases, including those of normalisations (Zaken et al., BitFit, ACL 2022)."""

  def patterns(self, backbone):
    """The biases."""
    return ("backbone/.*bias",), ()


@dataclasses.dataclass(frozen=True)
class NormOnly(Tuning):
  """Trains the scales and biases of all normalisations: a ViT's LayerNorm, BatchNorm elsewhere."""

  def patterns(self, backbone):
    """The normalisations."""
    return (r"backbone/(.*/)?\w*norm\w*/(scale|bias)",), ()


@dataclasses.dataclass(frozen=True)
class LastBlocks(Tuning):
  """Trains the last blocks and all layers after them.

  Args:
    blocks: the number of blocks.
  """
  blocks: Annotated[int, "[1, inf)"] = 1

  def patterns(self, backbone):
    """The last blocks."""
    groups = backbone.layers()
    blocks = [index for index, group in enumerate(groups) if "block" in group]
    if self.blocks > len(blocks):
      raise ConfigError(f"last_blocks: {type(backbone).__name__} has {len(blocks)} blocks, got blocks={self.blocks}")
    return groups[blocks[-self.blocks]:], ()


@dataclasses.dataclass(frozen=True)
class Full(Tuning):
  """Trains all parameters, at a learning rate that falls with the distance from the head.

  lr_factor = decay^(G - 1 - g) for group g of G: the input, each block, and the layers after the last (factor 1)

  Args:
    decay: factor of the learning rate from one group to the one before; 1 for equal rates.

  References:
    Bao et al., `BEiT <https://arxiv.org/abs/2106.08254>`_, ICLR 2022, layer-wise decay.
  """
  decay: Annotated[float, "(0, 1]"] = 0.75

  def patterns(self, backbone):
    """All groups and their factors."""
    groups = backbone.layers()
    factors = tuple((group, self.decay ** (len(groups) - 1 - index)) for index, group in enumerate(groups))
    return ("backbone/.*",), factors if self.decay < 1 else ()


# The names in a config.
adaptformer, lora, vpt, ssf = AdaptFormer, LoRA, VPT, SSF
bias_only, norm_only, last_blocks, full = BiasOnly, NormOnly, LastBlocks, Full
