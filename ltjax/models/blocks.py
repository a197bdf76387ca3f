"""The parts that all residual networks use: the basic block, and the loop over their stages."""

import itertools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ltjax.augment.features import Generating
from ltjax.models.numerics import computed_once


class BasicBlock(nn.Module):
  """relu(norm2(conv2(relu(norm1(conv1(x))))) + shortcut(x)), two convolutions of 3x3 (He et al., 2016, figure 2).

  Args:
    width: channels.
    stride: of the first convolution and of the shortcut.
    conv: makes a convolution, `(width, stride=, name=) -> module`.
    norm: makes a normalisation, `(name=) -> module`.
    shortcut: `(block, x, mask) -> x` in the shape of the result.
  """
  width: int
  stride: int
  conv: Any
  norm: Any
  shortcut: Callable

  @nn.compact
  def __call__(self, x, mask=None):
    """Returns the maps; `mask` says which rows enter the statistics of the normalisation."""
    y = self.conv(self.width, stride=self.stride, name="conv1")(x)
    y = nn.relu(self.norm(name="norm1")(y, mask=mask))
    y = self.conv(self.width, name="conv2")(y)
    y = self.norm(name="norm2")(y, mask=mask)
    return nn.relu(y + self.shortcut(self, x, mask))


def through(stages, insert, stem, images, *, train: bool):
  """The maps of `images` after `stem` and all blocks of `stages`, with `insert` before the last stage.

  Rows that the plan leaves empty do not enter that stage's BatchNorm statistics.
  """
  images, plan = images if isinstance(images, Generating) else (images, None)
  kept = computed_once if train else lambda x: x
  x, mask = kept(stem(images)), None
  for block in itertools.chain(*stages[:-1]):
    x = kept(block(x))
  if insert is not None:
    x = insert(x, plan)
  if plan is not None:
    mask = jnp.concatenate([jnp.ones(len(images), bool), plan.valid])[:, None, None, None]
  for block in stages[-1]:
    x = kept(block(x, mask))
  return x
