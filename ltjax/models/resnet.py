"""ResNets and ResNeXts for large images, with an optional stem for small ones."""

from functools import partial
from typing import Annotated, Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ltjax.augment.features import Generating
from ltjax.errors import ConfigError
from ltjax.losses.arguments import check_fields
from ltjax.models import tuning as tunings
from ltjax.models.batch_norm import GroupedBatchNorm
from ltjax.models.blocks import BasicBlock, through
from ltjax.models.initializers import kaiming_normal_fan_out

__all__ = ["ResNet"]

BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3),
          50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
BASIC = (10, 18, 34)  # with basic blocks
STEMS = ("imagenet", "cifar")


class ResNet(nn.Module):
  """ResNet (He et al.) or ResNeXt (Xie et al.), without pooling and classifier.

  A stem, then four stages at strides 1, 2, 2, 2 with `width`, 2, 4 and 8 `width` channels: basic blocks for the
  depths 10, 18 and 34, otherwise bottlenecks with 4 times as many channels and the stride in their 3x3 convolution.
  Where a stage changes the shape, the shortcut is a 1x1 convolution. `groups=32, group_width=4` is ResNeXt
  32x4d. Padding is PyTorch's. All convolutions start as N(0, 2 / fan_out), as in torchvision and in
  facebookresearch/classifier-balancing. Parameters and BatchNorm statistics are float32.

  Layers have torchvision's names, with `stage2_block1/conv3` for `layer2.0.conv3`, `norm` for `bn` and
  `shortcut_conv`, `shortcut_norm` for `downsample.0`, `downsample.1`.

  Args:
    depth: 10, 18, 34, 50, 101 or 152.
    width: channels of the stem, and of the first stage's blocks.
    groups: groups of the 3x3 convolutions in the bottlenecks.
    group_width: channels per group in the first stage; `width` if there is one group.
    bn_groups: in training, the number of equal parts of the batch that have their own BatchNorm statistics, as on that
      many devices of PyTorch's DataParallel; see `GroupedBatchNorm`.
    stem: "imagenet", a 7x7 convolution at stride 2 and a 3x3 maximum at stride 2; or "cifar", a 3x3 convolution, which
      turns images of 32 x 32 into maps of 8 x 8 in the third stage and 4 x 4 in the last.
    dtype: of the convolutions and the feature maps.
    insert: a module between the third and the fourth stage, `(maps, plan) -> maps`, such as `afa.AFA`.
    tuning: the method of fine-tuning, see `tuning`.

  References:
    He et al., `Deep Residual Learning for Image Recognition <https://arxiv.org/abs/1512.03385>`_, 2016, table 1; Xie et
    al., `Aggregated Residual Transformations <https://arxiv.org/abs/1611.05431>`_, 2017. The functions are those of
    torchvision's `resnet50`, `resnext50_32x4d`, ... and, for depth 10, of the ResNet-10 of
    facebookresearch/classifier-balancing, except that flax stores the biased running variance.
  """
  depth: int = 50
  width: Annotated[int, "[1, inf)"] = 64
  groups: Annotated[int, "[1, inf)"] = 1
  group_width: Annotated[int | None, "[1, inf)"] = None
  bn_groups: Annotated[int, "[1, inf)"] = 1
  stem: str = "imagenet"
  dtype: Any = jnp.float32
  insert: nn.Module | None = None
  tuning: Any = None

  imports_weights = True  # files of torchvision and timm fit it
  families = dict(insert="ltjax.models.afa", tuning="ltjax.models.tuning")  # where a nested block is looked up

  def __post_init__(self):
    check_fields(self)
    _check(self)
    tunings.check(self.tuning, self)
    super().__post_init__()

  @nn.nowrap
  def layers(self) -> tuple[str, ...]:
    """Regular expressions of the parameters, from the input to the output."""
    blocks = (f"backbone/stage{stage}_block{index}/.*" for stage, count in enumerate(BLOCKS[self.depth], start=1)
              for index in range(1, count + 1))
    return ("backbone/stem_.*", *blocks)

  @nn.compact
  def __call__(self, images: Float[Array, "b h w c"] | Generating, *, train: bool) -> Float[Array, "b+m h2 w2 d"]:
    """Returns the feature maps before pooling: 1/32 of the images' height and width, 1/8 with the "cifar" stem.

    Args:
      images: [b h w c], normalised; with an `insert` also `Generating`, which adds m rows.
      train: normalise with the statistics of the batch and update `batch_stats` (which must then be mutable).
    """
    conv = (self.tuning or tunings.Tuning()).around(partial(_conv, dtype=self.dtype))
    norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)
    if train and self.bn_groups > 1:
      norm = partial(GroupedBatchNorm, groups=self.bn_groups, dtype=self.dtype)
    small = self.stem == "cifar"
    stem_conv = conv(self.width, size=3 if small else 7, stride=1 if small else 2, name="stem_conv")
    stem_norm = norm(name="stem_norm")

    def stem(x):
      x = nn.relu(stem_norm(stem_conv(x)))
      return x if small else nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

    stages = []
    for stage, count in enumerate(BLOCKS[self.depth], start=1):
      width, group_width = (first * 2 ** (stage - 1) for first in (self.width, self.group_width or self.width))
      block = partial(_basic, width) if self.depth in BASIC else partial(
          _Bottleneck, 4 * width, self.groups * group_width, self.groups)
      strides = (1 if stage == 1 else 2, *(1,) * (count - 1))
      stages.append([block(stride, conv, norm, name=f"stage{stage}_block{index}")
                     for index, stride in enumerate(strides, start=1)])
    return through(stages, self.insert, stem, images, train=train)


def _conv(width, *, size=3, stride=1, groups=1, dtype, name):
  pad = size // 2  # at stride 2, "SAME" pads less on the left than on the right; PyTorch pads both sides equally
  return nn.Conv(width, (size, size), strides=stride, padding=((pad, pad), (pad, pad)), feature_group_count=groups,
                 use_bias=False, kernel_init=kaiming_normal_fan_out, dtype=dtype, name=name)


def _basic(width, stride, conv, norm, name):
  return BasicBlock(width, stride, conv, norm, _shortcut, name=name)


class _Bottleneck(nn.Module):
  width: int
  inner: int
  groups: int
  stride: int
  conv: Any
  norm: Any

  @nn.compact
  def __call__(self, x, mask=None):
    y = self.conv(self.inner, size=1, name="conv1")(x)
    y = nn.relu(self.norm(name="norm1")(y, mask=mask))
    y = self.conv(self.inner, stride=self.stride, groups=self.groups, name="conv2")(y)
    y = nn.relu(self.norm(name="norm2")(y, mask=mask))
    y = self.conv(self.width, size=1, name="conv3")(y)
    y = self.norm(name="norm3")(y, mask=mask)
    return nn.relu(y + _shortcut(self, x, mask))


def _shortcut(block, x, mask):
  if block.stride == 1 and x.shape[-1] == block.width:
    return x
  x = block.conv(block.width, size=1, stride=block.stride, name="shortcut_conv")(x)
  return block.norm(name="shortcut_norm")(x, mask=mask)


def _check(module: ResNet) -> None:
  if module.depth not in BLOCKS:
    raise ConfigError(f"ResNet: depth must be one of {', '.join(map(str, BLOCKS))}, got {module.depth}")
  if module.stem not in STEMS:
    raise ConfigError(f"ResNet: stem must be one of {', '.join(STEMS)}, got {module.stem!r}")
  if module.depth in BASIC and (module.groups, module.group_width) != (1, None):
    raise ConfigError(f"ResNet: the basic blocks of depth {module.depth} have no groups; remove groups and group_width")
  if module.groups > 1 and module.group_width is None:
    raise ConfigError(f"ResNet: groups={module.groups} needs group_width, the channels of a group in the first stage "
                      "(4 in ResNeXt 32x4d)")
