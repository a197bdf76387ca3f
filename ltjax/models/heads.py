"""Classifier heads: features in, logits out. A head is chosen by its name in this module.

Every head is called as `head(features, train=train)`; most compute the same in training and in tests. What a head gives
and needs is declared on it: `gives` "logits" (the default), "cosines" or "scaled_cosines"; `keeps_norm` is false where
the length of the features does not reach the logits; a head with `takes_maps` gets the feature maps before pooling;
one with `wants_prototypes` is filled with features of training images; one with `batch_statistics` keeps running ones.
"""

import math
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ltjax.errors import ConfigError
from ltjax.losses.arguments import check_fields
from ltjax.models.camc import CAMC
from ltjax.models.initializers import kaiming_normal
from ltjax.models.numerics import full_precision, length, matmul, normalize

__all__ = ["CAMC", "Cosine", "DisAlign", "LearnableScale", "Linear", "NormalizedLinear", "TDE", "WeightNorm"]

_normal = nn.initializers.variance_scaling(1.0, "fan_in", "normal")  # N(0, 1) / sqrt(d), untruncated


class Linear(nn.Module):
  """The affine classifier: z = W^T x + b.

  The kernel starts as kaiming_normal (fan_in, gain sqrt 2), the bias as U(-1/sqrt(d), 1/sqrt(d)), as in the
  `ResNet_s` of kaidic/LDAM-DRW; with `rare_start` the bias is -log(c - 1), where each class's sigmoid is 1/c.

  Args:
    num_classes: c; at least 2 with `rare_start`.
    rare_start: for sigmoid losses (Cui et al., `Class-Balanced Loss Based on Effective Number of Samples
      <https://arxiv.org/abs/1901.05555>`_, 2019), whose first steps would else push all classes down.
  """
  num_classes: int
  rare_start: bool = False

  @nn.compact
  def __call__(self, features: Float[Array, "b d"], *, train: bool = False) -> Float[Array, "b c"]:
    """Returns the logits [b c] of features [b d], in float32 (float64 for float64)."""
    del train
    dim = features.shape[-1]
    if self.rare_start and self.num_classes < 2:
      raise ConfigError(f"head: Linear with rare_start needs at least 2 classes, got {self.num_classes}")
    start = nn.initializers.constant(-math.log(self.num_classes - 1)) if self.rare_start else (
        _symmetric_uniform(dim**-0.5))
    kernel = self.param("kernel", kaiming_normal, (dim, self.num_classes), jnp.float32)
    bias = self.param("bias", start, (self.num_classes,), jnp.float32)
    return matmul(full_precision(features), kernel) + bias


class Cosine(nn.Module):
  """The cosine classifier, without bias and without scale: z_c = <x/|x|, w_c/|w_c|>.

  The scale belongs to the adjustment or the loss that follows. A zero feature gives zero logits and a finite gradient.
  Each class column of the kernel starts as U(-1, 1), scaled to unit norm.

  Args:
    num_classes: c.

  References:
    Cao et al., `Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss
    <https://arxiv.org/abs/1906.07413>`_, 2019; `NormedLinear` of kaidic/LDAM-DRW.
  """
  num_classes: int

  gives, keeps_norm = "cosines", False

  @nn.compact
  def __call__(self, features: Float[Array, "b d"], *, train: bool = False) -> Float[Array, "b c"]:
    """Returns the cosines [b c] of features [b d], in float32 (float64 for float64)."""
    del train
    kernel = self.param("kernel", _unit_columns, (features.shape[-1], self.num_classes), jnp.float32)
    return matmul(normalize(full_precision(features), axis=-1), normalize(kernel, axis=0))


class NormalizedLinear(nn.Module):
  """NormFC, the linear classifier of unit class vectors with one fixed magnitude g, for both stages of CAMC.

  z_c = g <x, w_c/|w_c|> as it stands, for learning the representation (the paper's equation 7, g = 0.5)
  z_c = g <x/|x|, w_c/|w_c|> with `normalize_features`, for re-training the classifier (equation 8, g = 16)

  There is no bias. The kernel starts as N(0, 1)/sqrt(d); the paper does not say how, and only its direction counts.

  Args:
    num_classes: c.
    scale: g > 0.
    normalize_features: chooses the second equation; never inferred from g.

  References:
    Zhang et al., `Calibrating Class Activation Maps for Long-Tailed Visual Recognition` (CAMC), 2021.
  """
  num_classes: int
  scale: Annotated[float, "(0, inf)"]
  normalize_features: bool = False

  @property
  def keeps_norm(self) -> bool:
    """Whether the length of the features reaches the logits."""
    return not self.normalize_features

  def __post_init__(self):
    check_fields(self)
    super().__post_init__()

  @nn.compact
  def __call__(self, features: Float[Array, "b d"], *, train: bool = False) -> Float[Array, "b c"]:
    """Returns the logits [b c] of features [b d], in float32 (float64 for float64)."""
    del train
    features = full_precision(features)
    kernel = self.param("kernel", _normal, (features.shape[-1], self.num_classes), jnp.float32)
    if self.normalize_features:
      features = normalize(features, axis=-1)
    return self.scale * matmul(features, normalize(kernel, axis=0))


class WeightNorm(nn.Module):
  """Weight normalisation, NormFC with learned magnitudes: z_c = g_c <x, w_c/|w_c|>, without bias.

  The parameter `scale` is g [c], or one number for all classes where `shared` (WN-g); it starts at 1, which for classes
  of their own the CAMC paper leaves open (1 is about the length of the kernel's columns, N(0, 1)/sqrt(d), too).

  Args:
    num_classes: c.
    shared: one magnitude for all classes.

  References:
    Salimans and Kingma, `Weight Normalization <https://arxiv.org/abs/1602.07868>`_, 2016; WN and WN-g of CAMC.
  """
  num_classes: int
  shared: bool = False

  @nn.compact
  def __call__(self, features: Float[Array, "b d"], *, train: bool = False) -> Float[Array, "b c"]:
    """Returns the logits [b c] of features [b d], in float32 (float64 for float64)."""
    del train
    kernel = self.param("kernel", _normal, (features.shape[-1], self.num_classes), jnp.float32)
    scale = self.param("scale", nn.initializers.ones, () if self.shared else (self.num_classes,), jnp.float32)
    return scale * matmul(full_precision(features), normalize(kernel, axis=0))


class LearnableScale(nn.Module):
  """Learnable weight scaling (LWS): z'_c = f_c z_c, where z is what `Linear` (bias included) or `Cosine` gives.

  The parameter `scale` is f [c] and starts at 1, where the head equals the wrapped one. The wrapped head's parameters
  keep their names and places (`kernel`, and `bias` if it is linear), so that a stage can take them over from the stage
  before; whether they are frozen (Kang et al) or go on learning slowly (MiSLAS) is the stage's to say.

  Args:
    num_classes: c.
    cosine: wrap `Cosine` in place of `Linear`.

  References:
    Kang et al., `Decoupling Representation and Classifier for Long-Tailed Recognition
    <https://arxiv.org/abs/1910.09217>`_, 2020: `DotProduct_Classifier` of facebookresearch/classifier-balancing.
  """
  num_classes: int
  cosine: bool = False

  @property
  def gives(self) -> str:
    """What kind of numbers the head puts out."""
    return "scaled_cosines" if self.cosine else "logits"

  @property
  def keeps_norm(self) -> bool:
    """Whether the length of the features reaches the logits."""
    return not self.cosine

  @nn.compact
  def __call__(self, features: Float[Array, "b d"], *, train: bool = False) -> Float[Array, "b c"]:
    """Returns the logits [b c] of features [b d], in float32 (float64 for float64)."""
    scale = self.param("scale", nn.initializers.ones, (self.num_classes,), jnp.float32)
    return scale * _wrapped(self)(features, train=train)


class DisAlign(nn.Module):
  """Distribution alignment: a per-class affine map of the logits, mixed in by how much an example is trusted.

  z'_c = (1 + conf a_c) z_c + conf b_c, conf = sigmoid(<v, x> + b0), where z is what `Linear` or `Cosine` gives

  This is the released form. The paper writes conf (alpha_c z_c + beta_c) + (1 - conf) z_c, so alpha = a + 1, beta = b.
  `logit_scale` a starts at 1 (the paper's alpha at 2), `logit_bias` b at 0, `confidence_kernel` v at 0.1 and
  `confidence_bias` b0 as U(-1/sqrt(d), 1/sqrt(d)): at the start the logits are not the wrapped ones. The wrapped head's
  parameters keep their names and places (`kernel`, and `bias` if it is linear); the method freezes them.

  Args:
    num_classes: c.
    cosine: wrap `Cosine` in place of `Linear`.

  References:
    Zhang et al., `Distribution Alignment: A Unified Framework for Long-tail Visual Recognition
    <https://arxiv.org/abs/2103.16370>`_, 2021: `DisAlignLinear` of Megvii-BaseDetection/cvpods.
  """
  num_classes: int
  cosine: bool = False

  @property
  def gives(self) -> str:
    """What kind of numbers the head puts out."""
    return "scaled_cosines" if self.cosine else "logits"

  @property
  def keeps_norm(self) -> bool:
    """Whether the length of the features reaches the logits."""
    return not self.cosine

  @nn.compact
  def __call__(self, features: Float[Array, "b d"], *, train: bool = False) -> Float[Array, "b c"]:
    """Returns the logits [b c] of features [b d], in float32 (float64 for float64)."""
    dim = features.shape[-1]
    scale = self.param("logit_scale", nn.initializers.ones, (self.num_classes,), jnp.float32)
    shift = self.param("logit_bias", nn.initializers.zeros, (self.num_classes,), jnp.float32)
    direction = self.param("confidence_kernel", nn.initializers.constant(0.1), (dim, 1), jnp.float32)
    offset = self.param("confidence_bias", _symmetric_uniform(dim**-0.5), (1,), jnp.float32)
    confidence = jax.nn.sigmoid(matmul(full_precision(features), direction) + offset)
    return (1 + confidence * scale) * _wrapped(self)(features, train=train) + confidence * shift


class TDE(nn.Module):
  """The de-confounded classifier: a multi-head cosine classifier that in tests takes out the direction of momentum.

  Features and class vectors are cut into K pieces of d/K, x_k and w_kc; c_k is the running mean feature's.

  training: z_c = (tau/K) sum_k <x_k/|x_k|, w_kc / (|w_kc| + gamma)>
  tests: the same, with x_k/|x_k| - alpha cos(x_k, c_k) c_k/|c_k| in the place of x_k/|x_k|

  The mean is `mean` [d] of the collection `batch_stats`: c <- mu c + mean(x) in every step, without a factor 1 - mu,
  because only its directions count. It starts at zero, where tests and training agree. `train` chooses the equation, so
  a stage whose BatchNorm evaluates learns with the second one and leaves the mean alone. There is no bias; the kernel
  starts as U(-1/sqrt(d), 1/sqrt(d)).

  Args:
    num_classes: c.
    alpha: how much is taken out; 3 in the released ImageNet-LT runs, 1.5 on CIFAR.
    tau: the scale.
    gamma: keeps short class vectors short.
    num_heads: K, which divides d.
    momentum: mu.

  References:
    Tang et al., `Long-Tailed Classification by Keeping the Good and Removing the Bad Momentum Causal Effect
    <https://arxiv.org/abs/2009.12991>`_, 2020: `Causal_Norm_Classifier` of KaihuaTang/Long-Tailed-Recognition.pytorch.
  """
  num_classes: int
  alpha: Annotated[float, "[0, inf)"] = 3.0
  tau: Annotated[float, "(0, inf)"] = 16.0
  gamma: Annotated[float, "[0, inf)"] = 1 / 32
  num_heads: Annotated[int, "[1, inf)"] = 2
  momentum: Annotated[float, "[0, 1)"] = 0.9

  keeps_norm, batch_statistics = False, True  # its running mean would take rows in that are no images

  def __post_init__(self):
    check_fields(self)
    super().__post_init__()

  @nn.compact
  def __call__(self, features: Float[Array, "b d"], *, train: bool = False) -> Float[Array, "b c"]:
    """Returns the logits [b c] of features [b d], in float32 (float64 for float64).

    Args:
      features: [b d].
      train: compute the training logits and update `batch_stats` (which must then be mutable).

    Raises:
      ConfigError: d is not a multiple of K.
    """
    features, dim = full_precision(features), features.shape[-1]
    if dim % self.num_heads:
      raise ConfigError(f"head: TDE cuts the features into num_heads equal pieces, but {dim} is not a multiple of "
                        f"{self.num_heads}")
    kernel = self.param("kernel", _symmetric_uniform(dim**-0.5), (dim, self.num_classes), jnp.float32)
    mean = self.variable("batch_stats", "mean", jnp.zeros, (dim,), jnp.float32)
    if train and not self.is_initializing():
      mean.value = self.momentum * mean.value + jnp.mean(features, axis=0).astype(mean.value.dtype)

    pieces = normalize(features.reshape(-1, self.num_heads, dim // self.num_heads), axis=-1)
    if not train:
      confounder = normalize(mean.value.reshape(self.num_heads, -1), axis=-1)
      pieces -= self.alpha * jnp.sum(pieces * confounder, axis=-1, keepdims=True) * confounder
    weights = kernel.reshape(self.num_heads, -1, self.num_classes)
    weights = weights / (length(weights, axis=1) + self.gamma)
    return self.tau / self.num_heads * matmul(pieces.reshape(features.shape), weights.reshape(kernel.shape))


def _wrapped(head):
  """The head around which `head` is built; its parameters lie among `head`'s own."""
  inner = (Cosine if head.cosine else Linear)(head.num_classes)
  nn.share_scope(head, inner)
  return inner


def _symmetric_uniform(bound):
  return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def _unit_columns(key, shape, dtype):
  return normalize(jax.random.uniform(key, shape, dtype, -1.0, 1.0), axis=0)
