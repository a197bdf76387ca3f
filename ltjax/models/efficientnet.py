"""EfficientNet-Lite: small networks with strong ImageNet features, one `pip install` away."""

import math
from functools import partial
from typing import Annotated, Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ltjax.augment.features import Generating
from ltjax.errors import ConfigError
from ltjax.losses.arguments import check_fields
from ltjax.models import tuning as tunings
from ltjax.models.blocks import through
from ltjax.models.initializers import kaiming_normal_fan_out
from ltjax.models.numerics import depthwise

__all__ = ["EfficientNet"]

# variant: (width, depth, side of the images)
VARIANTS = dict(lite0=(1.0, 1.0, 224), lite1=(1.0, 1.1, 240), lite2=(1.1, 1.2, 260))
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
          (1, 3, 1, 6, 320))  # blocks, kernel, stride, expansion, channels
STEM, HEAD = 32, 1280


class EfficientNet(nn.Module):
  """EfficientNet-Lite without pooling and classifier: 1280 feature maps at 1/32 of the images' height and width.

  A 3x3 stem at stride 2, seven stages of inverted bottlenecks, a 1x1 convolution; ReLU6, no squeeze-and-excitation,
  padding as TensorFlow's "SAME". Stem, head and the number of blocks of the first and last stage do not grow with the
  variant. Parameters and BatchNorm statistics are float32. The weights want images (x - 127) / 128 of 224, 240 or 260
  pixels.

  Args:
    variant: "lite0", "lite1" or "lite2".
    drop_path: probability of leaving out the last block in training, rising linearly from 0 at the first; it draws
      from the rng collection "dropout". The published networks were trained with 0.2.
    dtype: of the convolutions and the feature maps.
    insert: a module before the last change of resolution, `(maps, plan) -> maps`, such as `afa.AFA`.
    tuning: the method of fine-tuning, see `tuning`.

  References:
    Tan and Le, `EfficientNet <https://arxiv.org/abs/1905.11946>`_, ICML 2019, table 1; the lite variants of
    tensorflow/tpu, 2020. Same functions as the PyPI package efficientnet-lite-pytorch 0.1.0.
  """
  variant: str = "lite0"
  drop_path: Annotated[float, "[0, 1)"] = 0.0
  dtype: Any = jnp.float32
  insert: nn.Module | None = None
  tuning: Any = None

  imports_weights = True  # files of efficientnet-lite-pytorch fit it
  families = dict(insert="ltjax.models.afa", tuning="ltjax.models.tuning")  # where a nested block is looked up

  def __post_init__(self):
    check_fields(self)
    if self.variant not in VARIANTS:
      raise ConfigError(f"EfficientNet: variant must be one of {', '.join(VARIANTS)}, got {self.variant!r}")
    tunings.check(self.tuning, self)
    super().__post_init__()

  @nn.nowrap
  def blocks(self) -> list[list[tuple[int, int, int, int]]]:
    """(kernel, stride, expansion, channels) of each block, by stages."""
    width, depth, _ = VARIANTS[self.variant]
    stages = []
    for number, (count, kernel, stride, expansion, channels) in enumerate(STAGES):
      count = count if number in (0, len(STAGES) - 1) else math.ceil(count * depth)
      stages.append([(kernel, stride if index == 0 else 1, expansion, _round(channels * width))
                     for index in range(count)])
    return stages

  @nn.nowrap
  def layers(self) -> tuple[str, ...]:
    """Regular expressions of the parameters, from the input to the output."""
    blocks = (f"backbone/stage{stage}_block{index}/.*" for stage, own in enumerate(self.blocks(), start=1)
              for index in range(1, len(own) + 1))
    return ("backbone/stem_.*", *blocks, "backbone/head_.*")

  @nn.compact
  def __call__(self, images: Float[Array, "b h w c"] | Generating, *, train: bool) -> Float[Array, "b+m h2 w2 d"]:
    """Returns the feature maps before pooling.

    Args:
      images: [b h w c], normalised; with an `insert` also `Generating`, which adds m rows.
      train: normalise with the statistics of the batch and update `batch_stats` (which must then be mutable).
    """
    tune = self.tuning or tunings.Tuning()
    conv = tune.around(partial(_conv, dtype=self.dtype))
    norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.99, epsilon=1e-3, dtype=self.dtype)
    stem_conv, stem_norm = conv(STEM, size=3, stride=2, name="stem_conv"), norm(name="stem_norm")
    head_conv, head_norm = conv(HEAD, size=1, name="head_conv"), norm(name="head_norm")
    described, stages, number = self.blocks(), [], 0
    total = sum(map(len, described))
    for stage, own in enumerate(described, start=1):
      stages.append([])
      for index, block in enumerate(own, start=1):
        drop = nn.Dropout(self.drop_path * number / total, broadcast_dims=(1, 2, 3), deterministic=not train)
        stages[-1].append(_Block(*block, conv, norm, drop, name=f"stage{stage}_block{index}"))
        number += 1

    def head(x, mask):
      return nn.relu6(head_norm(head_conv(x), mask=mask))

    # `through` inserts before its last part, which here is the last change of resolution and all that follows.
    parts = [[block for own in stages[:5] for block in own], [*stages[5], *stages[6], head]]
    return through(parts, self.insert, lambda x: nn.relu6(stem_norm(stem_conv(x))), images, train=train)


def _conv(width, *, size, stride=1, groups=1, dtype, name):
  return nn.Conv(width, (size, size), strides=stride, padding="SAME", feature_group_count=groups, use_bias=False,
                 kernel_init=kaiming_normal_fan_out, dtype=dtype, name=name,
                 conv_general_dilated=depthwise if groups > 1 else None)


class _Block(nn.Module):
  """An inverted bottleneck: a widening 1x1 convolution, a depthwise convolution, a narrowing 1x1 convolution."""
  kernel: int
  stride: int
  expansion: int
  width: int
  conv: Any
  norm: Any
  drop: Any

  @nn.compact
  def __call__(self, x, mask=None):
    y, inner = x, x.shape[-1] * self.expansion
    if self.expansion > 1:
      y = nn.relu6(self.norm(name="expand_norm")(self.conv(inner, size=1, name="expand_conv")(y), mask=mask))
    y = self.conv(inner, size=self.kernel, stride=self.stride, groups=inner, name="depth_conv")(y)
    y = nn.relu6(self.norm(name="depth_norm")(y, mask=mask))
    y = self.norm(name="project_norm")(self.conv(self.width, size=1, name="project_conv")(y), mask=mask)
    return x + self.drop(y) if self.stride == 1 and x.shape[-1] == self.width else y


def _round(channels: float) -> int:
  """`channels` rounded to a multiple of 8, never below 90 % of it."""
  rounded = max(8, int(channels + 4) // 8 * 8)
  return rounded + 8 if rounded < 0.9 * channels else rounded
