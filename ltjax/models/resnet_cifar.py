"""The CIFAR ResNets (6n+2 layers) that the long-tailed CIFAR benchmarks are run with."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ltjax.errors import ConfigError

__all__ = ["ResNetCIFAR"]

_PADDING = ((1, 1), (1, 1))  # "SAME" pads (0, 1) at stride 2, PyTorch and the paper pad (1, 1)
# PyTorch's kaiming_normal_; the initializer that jax calls kaiming_normal draws from a truncated normal.
_kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class ResNetCIFAR(nn.Module):
  """ResNet for small images (He et al.), parameter-free shortcuts, without pooling and classifier.

  A 3x3 stem, then three stages of n = (depth - 2) / 6 basic blocks at strides 1, 2, 2. Where a stage changes the
  shape, the shortcut keeps every second pixel and pads zero channels, (new - old) / 2 on each side ("option A"); so
  a stage may widen by any even number of channels. Parameters and BatchNorm statistics are float32.

  Args:
    depth: 6n + 2, so 8, 14, 20, 26, 32, ...
    widths: channels of the three stages; the stem has `widths[0]`.
    dtype: of the convolutions and the feature maps.

  References:
    He et al, `Deep Residual Learning for Image Recognition <https://arxiv.org/abs/1512.03385>`_, 2016, section 4.2.
    Same function as `ResNet_s` of kaidic/LDAM-DRW, except that flax keeps the biased running variance.
  """
  depth: int = 32
  widths: Sequence[int] = (16, 32, 64)
  dtype: Any = jnp.float32

  def __post_init__(self):
    _check(self.depth, self.widths)
    super().__post_init__()

  @nn.compact
  def __call__(self, images: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 d"]:
    """Returns the feature maps before pooling, height and width a quarter of the images' (rounded up).

    Args:
      images: [b h w c], normalised.
      train: normalise with the statistics of the batch and update `batch_stats` (which must then be mutable).
    """
    conv = partial(
        nn.Conv, kernel_size=(3, 3), padding=_PADDING, use_bias=False, kernel_init=_kaiming_normal, dtype=self.dtype)
    norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)
    x = conv(self.widths[0], name="stem_conv")(images)
    x = nn.relu(norm(name="stem_norm")(x))
    for stage, width in enumerate(self.widths, start=1):
      for block in range(1, (self.depth - 2) // 6 + 1):
        stride = 2 if stage > 1 and block == 1 else 1
        x = _BasicBlock(width, stride, conv, norm, name=f"stage{stage}_block{block}")(x)
    return x


class _BasicBlock(nn.Module):
  width: int
  stride: int
  conv: Any
  norm: Any

  @nn.compact
  def __call__(self, x):
    y = self.conv(self.width, strides=self.stride, name="conv1")(x)
    y = nn.relu(self.norm(name="norm1")(y))
    y = self.conv(self.width, name="conv2")(y)
    y = self.norm(name="norm2")(y)
    return nn.relu(y + _shortcut(x, self.width, self.stride))


def _shortcut(x, width, stride):
  pad = (width - x.shape[-1]) // 2
  return jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (pad, pad)))


def _check(depth, widths):
  if depth < 8 or depth % 6 != 2:
    raise ConfigError(f"ResNetCIFAR: depth must be 6n+2 (8, 14, 20, 26, 32, 38, 44, 50, 56, ...), got {depth}")
  grows = all(new >= old and (new - old) % 2 == 0 for old, new in zip(widths, widths[1:], strict=False))
  if len(widths) != 3 or widths[0] < 1 or not grows:
    raise ConfigError(
        "ResNetCIFAR: widths must be three channel counts, each equal to the one before or larger by an even number "
        f"(zeros are padded evenly on both sides), got {tuple(widths)}")
