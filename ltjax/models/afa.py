"""Attentive feature augmentation (AFA): splits maps into a class-related and a variation-related part.

A backbone applies one of these modules between two of its stages, `insert=dict(name="AFA")`. It takes maps and returns
maps, followed by the generated rows if the backbone was called with `Generating` images.
"""

import math
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ltjax.augment.features import Plan, combine
from ltjax.errors import ConfigError
from ltjax.losses.arguments import check_fields
from ltjax.models.initializers import kaiming_normal
from ltjax.models.numerics import full_precision

__all__ = ["AFA", "CBAM", "GlobalContext", "decompose"]

MASK_AXES = ("channel", "spatial")


def decompose(
    maps: Float[Array, "b h w d"], w_query: Float[Array, "hw hw"], w_key: Float[Array, "hw hw"],
    w_value: Float[Array, "hw hw"], se: tuple, *, mask_axis: str = "channel",
) -> tuple[Float[Array, "b h w d"], Float[Array, "b h w d"]]:
  """Splits maps by attention over their channels, each of which is a token of h w numbers.

  Q, K, V = X W_q, X W_k, X W_v with X [d, hw]; X_att = softmax_keys(Q K^T / sqrt(hw)) V
  M = softmax(X_att (1 + s)), s = sigmoid(W_2 ReLU(W_1 GAP(X_att) + b_1) + b_2); X_class = M V, X_var = V - X_class

  Args:
    maps: X, [b h w d].
    w_query: W_q [hw hw], positions in row-major order; the same for every example (algorithm 1 of the paper gives it
      a leading B, which can only mean broadcasting).
    w_key: W_k [hw hw].
    w_value: W_v [hw hw].
    se: (w1 [d r], b1 [r], w2 [r d], b2 [d]) of the squeeze-and-excitation block.
    mask_axis: the axis over which M sums to 1, "channel" (the mask compares channels, as the attention does) or
      "spatial"; the paper does not say which.

  Returns:
    (X_class, X_var), each [b h w d], float32 whatever the precision of the maps (float64 for float64).

  Raises:
    ConfigError: an unknown mask_axis, or maps of another size than the matrices.

  References:
    Wang et al., `Attentive Feature Augmentation for Long-Tailed Visual Recognition` (AFA, LTVR), 2022, equations 1-5.
  """
  if mask_axis not in MASK_AXES:
    raise ConfigError(f"decompose: mask_axis must be one of {', '.join(MASK_AXES)}, got {mask_axis!r}")
  b, h, w, d = maps.shape
  if w_query.shape != (h * w, h * w):
    raise ConfigError(f"decompose: maps of {h} x {w} need matrices of ({h * w}, {h * w}), got {w_query.shape}")
  x = full_precision(maps).reshape(b, h * w, d)
  query, key, value = (jnp.einsum("bpd,pq->bqd", x, matrix) for matrix in (w_query, w_key, w_value))
  similarity = jnp.einsum("bpd,bpe->bde", query, key) / math.sqrt(h * w)
  attended = jnp.einsum("bde,bpe->bpd", jax.nn.softmax(similarity, axis=-1), value)
  w1, b1, w2, b2 = se
  excitation = jax.nn.sigmoid(jax.nn.relu(jnp.mean(attended, axis=1) @ w1 + b1) @ w2 + b2)
  mask = jax.nn.softmax(attended * (1 + excitation[:, None]), axis=-1 if mask_axis == "channel" else 1)
  class_related = mask * value
  return class_related.reshape(maps.shape), (value - class_related).reshape(maps.shape)


class _Insert(nn.Module):
  """The common part of the modules: `split` returns (X_class, X_var); enhancement and generation follow.

  X_enh = X + X_class (equation 6; X without `addition`), and rows X_class[i] + X_var[j] as a plan requests them

  Args:
    addition: whether to add the class-related part to the maps.
    stop_gradient: whether to stop the gradient from the generated rows to X_class and X_var; the paper does not say.
  """
  addition: bool = True
  stop_gradient: bool = False

  def __call__(self, maps: Float[Array, "b h w d"], plan: Plan | None = None) -> Float[Array, "b+m h w d"]:
    """Returns the enhanced maps, then a row per slot of `plan`, in the precision of `maps`.

    Raises:
      ConfigError: maps of another size than the module was built for.
    """
    class_related, variation_related = self.split(maps)
    enhanced = maps + class_related.astype(maps.dtype) if self.addition else maps
    if plan is None:
      return enhanced
    if self.stop_gradient:
      class_related, variation_related = jax.lax.stop_gradient((class_related, variation_related))
    return jnp.concatenate([enhanced, combine(class_related, variation_related, plan).astype(maps.dtype)])

  def split(self, maps: Float[Array, "b h w d"]) -> tuple[Any, Any]:
    """Returns (class-related, variation-related), each [b h w d]."""
    raise NotImplementedError


class AFA(_Insert):
  """The module of the AFA paper: `decompose`, addition of the class-related part, generation.

  `query`, `key` and `value` [h w h w] start as N(0, 1/hw); their shape ties the module to one size of maps. There are
  no biases (equation 1). The squeeze-and-excitation block has max(d // reduction, 4) hidden units. The paper specifies
  none of these; a reduction of 16 is the default of that block.

  Args:
    addition: whether to add the class-related part to the maps (table VII).
    stop_gradient: whether to stop the gradient from the generated rows to X_class and X_var; the paper does not say.
    mask_axis: as in `decompose`.
    reduction: of the squeeze-and-excitation block.

  References:
    Wang et al., `Attentive Feature Augmentation for Long-Tailed Visual Recognition` (AFA, LTVR), 2022, section III-C.
    No code was released.
  """
  mask_axis: str = "channel"
  reduction: Annotated[int, "[1, inf)"] = 16

  def __post_init__(self):
    if self.mask_axis not in MASK_AXES:
      raise ConfigError(f"AFA: mask_axis must be one of {', '.join(MASK_AXES)}, got {self.mask_axis!r}")
    check_fields(self)
    super().__post_init__()

  @nn.compact
  def split(self, maps):
    """Applies equations 1 to 5."""
    b, h, w, d = maps.shape
    if self.has_variable("params", "query"):
      height, width, _, _ = self.get_variable("params", "query").shape
      if (h, w) != (height, width):
        raise ConfigError(f"AFA was built for maps of {height} x {width}, got {h} x {w}; its matrices fit one size, so "
                          "train and evaluate with images of equal size")
    normal = nn.initializers.normal((h * w) ** -0.5)
    matrices = [self.param(name, normal, (h, w, h, w), jnp.float32).reshape(h * w, h * w)
                for name in ("query", "key", "value")]
    hidden = _hidden(d, self.reduction)
    se = (self.param("se_kernel1", kaiming_normal, (d, hidden), jnp.float32),
          self.param("se_bias1", nn.initializers.zeros, (hidden,), jnp.float32),
          self.param("se_kernel2", kaiming_normal, (hidden, d), jnp.float32),
          self.param("se_bias2", nn.initializers.zeros, (d,), jnp.float32))
    return decompose(maps, *matrices, se, mask_axis=self.mask_axis)


class CBAM(_Insert):
  """AFA with a convolutional block attention module instead of its decomposition (table V of the AFA paper).

  X' = M_c X, M_c = sigmoid(MLP(avg_p X) + MLP(max_p X)); X_class = M_s X', M_s = sigmoid(conv7x7([avg_d X'; max_d X']))

  X_var = X - X_class is the paper's equation 5 with X for V; the paper does not say how it splits the output of the
  block. The released code of the block has a BatchNorm after the 7x7 convolution; we omit it.

  Args:
    addition: whether to add the class-related part to the maps.
    stop_gradient: whether to stop the gradient from the generated rows to X_class and X_var.
    reduction: of the channel MLP.

  References:
    Woo et al., `CBAM: Convolutional Block Attention Module <https://arxiv.org/abs/1807.06521>`_, 2018, equations 2, 3.
  """
  reduction: Annotated[int, "[1, inf)"] = 16

  def __post_init__(self):
    check_fields(self)
    super().__post_init__()

  @nn.compact
  def split(self, maps):
    """Returns (the output of the block, the maps minus that output)."""
    x, d = full_precision(maps), maps.shape[-1]
    first = nn.Dense(_hidden(d, self.reduction), kernel_init=kaiming_normal, name="channel1")
    second = nn.Dense(d, kernel_init=kaiming_normal, name="channel2")
    squeezed = [second(nn.relu(first(reduce(x, axis=(1, 2))))) for reduce in (jnp.mean, jnp.max)]
    refined = jax.nn.sigmoid(sum(squeezed))[:, None, None] * x
    pooled = jnp.stack([jnp.mean(refined, axis=-1), jnp.max(refined, axis=-1)], axis=-1)
    where = nn.Conv(1, (7, 7), padding=((3, 3), (3, 3)), use_bias=False, kernel_init=kaiming_normal, name="spatial")
    class_related = jax.nn.sigmoid(where(pooled)) * refined
    return class_related, x - class_related


class GlobalContext(_Insert):
  """AFA with a global context block instead of its decomposition (table V of the AFA paper).

  X_class = t at every position, t = W_2 ReLU(LayerNorm(W_1 sum_p a_p x_p)), a = softmax_p(<w, x_p>)
  X_var = X - X_class

  So X + X_class is the output of the block. The paper does not say how it splits that output.

  Args:
    addition: whether to add the class-related part to the maps.
    stop_gradient: whether to stop the gradient from the generated rows to X_class and X_var.
    reduction: of the bottleneck W_1, W_2.

  References:
    Cao et al., `GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond
    <https://arxiv.org/abs/1904.11492>`_, 2019, section 3.3.
  """
  reduction: Annotated[int, "[1, inf)"] = 16

  def __post_init__(self):
    check_fields(self)
    super().__post_init__()

  @nn.compact
  def split(self, maps):
    """Returns (the context, the maps minus the context)."""
    x, (b, h, w, d) = full_precision(maps), maps.shape
    flat = x.reshape(b, h * w, d)
    attention = jax.nn.softmax(nn.Dense(1, kernel_init=kaiming_normal, name="where")(flat), axis=1)
    context = jnp.sum(attention * flat, axis=1)
    hidden = nn.Dense(_hidden(d, self.reduction), kernel_init=kaiming_normal, name="transform1")(context)
    hidden = nn.relu(nn.LayerNorm(epsilon=1e-5, name="transform_norm")(hidden))
    # Starts at zero, as in the released code, so that the block is the identity at first.
    context = nn.Dense(d, kernel_init=nn.initializers.zeros, name="transform2")(hidden)
    class_related = jnp.broadcast_to(context[:, None, None], x.shape)
    return class_related, x - class_related


def _hidden(channels: int, reduction: int) -> int:
  return max(channels // reduction, 4)
