"""The CIFAR ResNets (6n+2 layers) of the long-tailed CIFAR benchmarks, with one branch or two."""

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from ltjax.augment.batches import Branches
from ltjax.augment.features import Generating
from ltjax.errors import ConfigError
from ltjax.models.initializers import kaiming_normal

__all__ = ["Branches", "ResNetBBN", "ResNetCIFAR", "mix"]

_PADDING = ((1, 1), (1, 1))  # "SAME" pads (0, 1) at stride 2, PyTorch and the paper pad (1, 1)


class ResNetCIFAR(nn.Module):
  """ResNet for small images (He et al.), parameter-free shortcuts, without pooling and classifier.

  A 3x3 stem, then three stages of n = (depth - 2) / 6 basic blocks at strides 1, 2, 2. Where a stage changes the
  shape, the shortcut takes every second pixel and pads zero channels, (new - old) / 2 on each side ("option A"), so a
  stage may add any even number of channels. Parameters and BatchNorm statistics are float32.

  Args:
    depth: 6n + 2, so 8, 14, 20, 26, 32, ...
    widths: channels of the three stages; the stem has `widths[0]`.
    dtype: of the convolutions and the feature maps.
    insert: a module between the second and the third stage, `(maps, plan) -> maps`, such as `afa.AFA`.

  References:
    He et al., `Deep Residual Learning for Image Recognition <https://arxiv.org/abs/1512.03385>`_, 2016, section 4.2.
    The function is that of `ResNet_s` of kaidic/LDAM-DRW, except that flax stores the biased running variance.
  """
  depth: int = 32
  widths: Sequence[int] = (16, 32, 64)
  dtype: Any = jnp.float32
  insert: nn.Module | None = None

  families = dict(insert="ltjax.models.afa")  # the module that resolves the name of a nested block

  def __post_init__(self):
    _check("ResNetCIFAR", 8, self.depth, self.widths)
    super().__post_init__()

  @nn.compact
  def __call__(self, images: Float[Array, "b h w c"] | Generating, *, train: bool) -> Float[Array, "b+m h2 w2 d"]:
    """Returns the feature maps before pooling, height and width a quarter of the images' (rounded up).

    Args:
      images: [b h w c], normalised; with an `insert` also `Generating`, which adds m rows.
      train: normalise with the statistics of the batch and update `batch_stats` (which must then be mutable).
    """
    conv, norm = _layers(train, self.dtype)
    n = (self.depth - 2) // 6
    return _stages((n, n, n), self.widths, conv, norm, self.insert)(images)


class ResNetBBN(nn.Module):
  """`ResNetCIFAR` with two last blocks in parallel: a conventional branch f_c and a re-balancing branch f_r.

  [f_c(x) ; f_r(x)] for images x: how BBN predicts, and the CIFAR network of TDE and LADE
  2 [a f_c(x) ; (1-a) f_r(x')] for `Branches` (x, x', a): how BBN trains

  A mean over h, w is linear, so a classifier of these maps computes BBN's z = W^T 2 [a f_c ; (1-a) f_r] + b; its loss
  is a CE(z, y) + (1-a) CE(z, y'). As in the released code, the two batches pass through the shared layers one after
  the other: BatchNorm normalises each by its own statistics and updates the running ones twice per step. `cb_block` and
  `rb_block` replace the last block of stage 3; every other layer has the same name as in `ResNetCIFAR`.

  Args:
    depth: 6n + 2 from 14, so 14, 20, 26, 32, ...
    widths: channels of the three stages; the maps have 2 `widths[2]`.
    dtype: of the convolutions and the feature maps.

  References:
    Zhou et al., `BBN: Bilateral-Branch Network with Cumulative Learning for Long-Tailed Visual Recognition
    <https://arxiv.org/abs/1912.02413>`_, 2020: `BBN_ResNet_Cifar` and `Combiner.bbn_mix` of megvii-research/BBN.
  """
  depth: int = 32
  widths: Sequence[int] = (16, 32, 64)
  dtype: Any = jnp.float32

  takes_branches = True

  def __post_init__(self):
    _check("ResNetBBN", 14, self.depth, self.widths)
    super().__post_init__()

  @nn.compact
  def __call__(self, images: Float[Array, "b h w c"] | Branches, *, train: bool) -> Float[Array, "b h2 w2 2d"]:
    """Returns the feature maps before pooling, the conventional branch's channels first.

    Args:
      images: [b h w c], normalised, or `Branches` of two such arrays.
      train: normalise with the statistics of the batch and update `batch_stats` (which must then be mutable).
    """
    conv, norm = _layers(train, self.dtype)
    n = (self.depth - 2) // 6
    shared = _stages((n, n, n - 1), self.widths, conv, norm)
    conventional, rebalancing = (_BasicBlock(self.widths[-1], 1, conv, norm, name=f"{name}_block")
                                 for name in ("cb", "rb"))
    if isinstance(images, Branches):
      x, others = shared(images.conventional), shared(images.rebalancing)
      return mix(conventional(x), rebalancing(others), images.share)
    x = shared(images)
    return jnp.concatenate([conventional(x), rebalancing(x)], axis=-1)


def mix(
    conventional: Float[Array, "*b d"], rebalancing: Float[Array, "*b d"], share: float | Real[Array, ""],
) -> Float[Array, "*b 2d"]:
  """Returns 2 [a f_c ; (1-a) f_r] in float32 (float64 for float64), which keeps the digits of a; 1/2 concatenates."""
  conventional, rebalancing = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (conventional, rebalancing))
  return 2 * jnp.concatenate([share * conventional, (1 - share) * rebalancing], axis=-1)


def _layers(train, dtype):
  """Returns the convolution and the BatchNorm of all blocks."""
  conv = partial(
      nn.Conv, kernel_size=(3, 3), padding=_PADDING, use_bias=False, kernel_init=kaiming_normal, dtype=dtype)
  return conv, partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype)


def _stages(blocks, widths, conv, norm, insert=None):
  """Returns the stem and three stages as a function; its layers belong to the calling module."""
  stem_conv, stem_norm, stages = conv(widths[0], name="stem_conv"), norm(name="stem_norm"), []
  for stage, (width, count) in enumerate(zip(widths, blocks, strict=True), start=1):
    strides = (1 if stage == 1 else 2, *(1,) * (count - 1))
    stages.append([_BasicBlock(width, stride, conv, norm, name=f"stage{stage}_block{block}")
                   for block, stride in enumerate(strides, start=1)])
  return partial(through, stages, insert, lambda x: nn.relu(stem_norm(stem_conv(x))))


def through(stages, insert, stem, images):
  """Returns the maps of `images` after `stem` and all blocks of `stages`, with `insert` before the last stage.

  BatchNorm of the last stage ignores the invalid rows of a plan.
  """
  images, plan = images if isinstance(images, Generating) else (images, None)
  x, mask = stem(images), None
  for block in itertools.chain(*stages[:-1]):
    x = block(x)
  if insert is not None:
    x = insert(x, plan)
  if plan is not None:
    mask = jnp.concatenate([jnp.ones(len(images), bool), plan.valid])[:, None, None, None]
  for block in stages[-1]:
    x = block(x, mask)
  return x


class _BasicBlock(nn.Module):
  width: int
  stride: int
  conv: Any
  norm: Any

  @nn.compact
  def __call__(self, x, mask=None):
    y = self.conv(self.width, strides=self.stride, name="conv1")(x)
    y = nn.relu(self.norm(name="norm1")(y, mask=mask))
    y = self.conv(self.width, name="conv2")(y)
    y = self.norm(name="norm2")(y, mask=mask)
    return nn.relu(y + _shortcut(x, self.width, self.stride))


def _shortcut(x, width, stride):
  pad = (width - x.shape[-1]) // 2
  return jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (pad, pad)))


def _check(name, least, depth, widths):
  if depth < least or depth % 6 != 2:
    valid = ", ".join(str(depth) for depth in range(least, 57, 6))
    raise ConfigError(f"{name}: depth must be 6n+2 ({valid}, ...), got {depth}")
  grows = all(new >= old and (new - old) % 2 == 0 for old, new in zip(widths, widths[1:], strict=False))
  if len(widths) != 3 or widths[0] < 1 or not grows:
    raise ConfigError(
        f"{name}: widths must be three channel counts, each equal to the previous one or larger by an even number "
        f"(the shortcut pads zeros equally on both sides), got {tuple(widths)}")
