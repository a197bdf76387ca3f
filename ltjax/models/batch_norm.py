"""Batch normalisation with the statistics of parts of the batch, and in some layers only."""

import contextlib
import re
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ltjax.errors import ConfigError


class GroupedBatchNorm(nn.Module):
  """In training, flax's `BatchNorm` applied separately to each of `groups` equal, contiguous parts of the batch.

  y = (x - mean_g) / sqrt(var_g + epsilon) scale + bias, where mean_g, var_g are over the examples of group g and all
  positions

  Group g is the part that PyTorch's DataParallel sends to its g-th device. As there, only the first group updates the
  running statistics. Parameters and statistics have the names, shapes and types of flax's `BatchNorm`, which does the
  evaluation.

  Args:
    groups: the number of groups, a divisor of the batch size.
    momentum: of the running statistics, r <- momentum r + (1 - momentum) s.
    epsilon: added to the variance.
    dtype: of the result; statistics are always in float32 (float64 for float64).
  """
  groups: int
  momentum: float = 0.9
  epsilon: float = 1e-5
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b h w d"], *, mask: None = None) -> Float[Array, "b h w d"]:
    """Returns the normalised maps.

    Args:
      x: feature maps.
      mask: which rows enter the statistics; must be None, for all rows.

    Raises:
      ConfigError: `groups` does not divide the batch, or there is a mask.
    """
    if mask is not None:
      raise ConfigError(f"bn_groups={self.groups}: the statistics of groups cannot leave out rows, as generation "
                        "requires; write bn_groups=1")
    if len(x) % self.groups:
      raise ConfigError(f"bn_groups={self.groups} does not divide a batch of {len(x)}; give a batch size that is a "
                        "multiple of it")
    scale, bias = (self.param(name, init, x.shape[-1:], jnp.float32) for name, init in (
        ("scale", nn.initializers.ones), ("bias", nn.initializers.zeros)))
    parts = x.reshape(self.groups, -1, *x.shape[1:]).astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = jnp.mean(parts, axis=(1, 2, 3), keepdims=True)
    var = jnp.maximum(jnp.mean(jnp.square(parts), axis=(1, 2, 3), keepdims=True) - jnp.square(mean), 0)
    for name, init, value in (("mean", jnp.zeros, mean), ("var", jnp.ones, var)):
      running = self.variable("batch_stats", name, init, x.shape[-1:], jnp.float32)
      running.value = self.momentum * running.value + (1 - self.momentum) * value[0].ravel()
    y = (parts - mean) * (jax.lax.rsqrt(var + self.epsilon) * scale) + bias
    return y.reshape(x.shape).astype(self.dtype)


def moving(patterns: Sequence[str]) -> contextlib.AbstractContextManager:
  """Inside the context, only the BatchNorm layers whose paths match a pattern follow `train`; the others evaluate.

  y = (x - mean) / sqrt(var + epsilon) scale + bias, with the running mean and var, in every other layer

  Args:
    patterns: regular expressions of complete paths, such as "backbone/stage4_block3/.*".
  """

  def intercept(call, args, kwargs, context):
    layer = context.module
    if not isinstance(layer, nn.BatchNorm | GroupedBatchNorm) or context.method_name != "__call__" or (
        any(re.fullmatch(pattern, "/".join(layer.path)) for pattern in patterns)):
      return call(*args, **kwargs)
    x = args[0]
    mean, var = (layer.get_variable("batch_stats", name) for name in ("mean", "var"))
    scale, bias = (layer.get_variable("params", name) for name in ("scale", "bias"))
    y = (x - mean) * (jax.lax.rsqrt(var + layer.epsilon) * scale) + bias
    return y.astype(layer.dtype or y.dtype)

  return nn.intercept_methods(intercept)


def mode(batch_norm: str | Sequence[str]) -> tuple[bool, contextlib.AbstractContextManager]:
  """(`train`, context) with which to apply a model, for the `batch_norm` of a stage."""
  if isinstance(batch_norm, str):
    return batch_norm != "eval", contextlib.nullcontext()
  return True, moving(batch_norm)
