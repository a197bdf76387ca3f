"""The CIFAR ResNets (6n+2 layers) of the long-tailed CIFAR benchmarks, with one branch or two."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from ltjax.augment.batches import Branches
from ltjax.augment.features import Generating
from ltjax.errors import ConfigError
from ltjax.models import tuning as tunings
from ltjax.models.blocks import BasicBlock, through
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
    tuning: the method of fine-tuning, see `tuning`.

  References:
    He et al., `Deep Residual Learning for Image Recognition <https://arxiv.org/abs/1512.03385>`_, 2016, section 4.2.
    The function is that of `ResNet_s` of kaidic/LDAM-DRW, except that flax stores the biased running variance.
  """
  depth: int = 32
  widths: Sequence[int] = (16, 32, 64)
  dtype: Any = jnp.float32
  insert: nn.Module | None = None
  tuning: Any = None

  # The modules that resolve the names of nested blocks.
  families = dict(insert="ltjax.models.afa", tuning="ltjax.models.tuning")

  def __post_init__(self):
    _check("ResNetCIFAR", 8, self.depth, self.widths)
    tunings.check(self.tuning, self)
    super().__post_init__()

  @nn.nowrap
  def layers(self) -> tuple[str, ...]:
    """Regular expressions of the parameters, from the input to the output."""
    blocks = (f"backbone/stage{stage}_block{index}/.*" for stage in (1, 2, 3)
              for index in range(1, (self.depth - 2) // 6 + 1))
    return ("backbone/stem_.*", *blocks)

  @nn.compact
  def __call__(self, images: Float[Array, "b h w c"] | Generating, *, train: bool) -> Float[Array, "b+m h2 w2 d"]:
    """Returns the feature maps before pooling, height and width a quarter of the images' (rounded up).

    Args:
      images: [b h w c], normalised; with an `insert` also `Generating`, which adds m rows.
      train: normalise with the statistics of the batch and update `batch_stats` (which must then be mutable).
    """
    conv, norm = _layers(train, self.dtype, self.tuning)
    n = (self.depth - 2) // 6
    return _stages((n, n, n), self.widths, conv, norm, train, self.insert)(images)


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
    shared = _stages((n, n, n - 1), self.widths, conv, norm, train)
    conventional, rebalancing = (BasicBlock(self.widths[-1], 1, conv, norm, _shortcut, name=f"{name}_block")
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


def _layers(train, dtype, tuning=None):
  """Returns the convolution and the BatchNorm of all blocks."""
  conv = (tuning or tunings.Tuning()).around(partial(_conv, dtype=dtype))
  return conv, partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype)


def _conv(width, *, stride=1, dtype, name):
  return nn.Conv(width, (3, 3), strides=stride, padding=_PADDING, use_bias=False, kernel_init=kaiming_normal,
                 dtype=dtype, name=name)


def _stages(blocks, widths, conv, norm, train, insert=None):
  """Returns the stem and three stages as a function; its layers belong to the calling module."""
  stem_conv, stem_norm, stages = conv(widths[0], name="stem_conv"), norm(name="stem_norm"), []
  for stage, (width, count) in enumerate(zip(widths, blocks, strict=True), start=1):
    strides = (1 if stage == 1 else 2, *(1,) * (count - 1))
    stages.append([BasicBlock(width, stride, conv, norm, _shortcut, name=f"stage{stage}_block{block}")
                   for block, stride in enumerate(strides, start=1)])
  return partial(through, stages, insert, lambda x: nn.relu(stem_norm(stem_conv(x))), train=train)


def _shortcut(block, x, mask):
  del mask
  pad, stride = (block.width - x.shape[-1]) // 2, block.stride
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
