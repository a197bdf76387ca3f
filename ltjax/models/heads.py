"""Classifier heads: features in, logits out. A head is chosen by its name in this module.

Call a head as `head(features, train=train)`; most compute the same in training and in evaluation. Each head declares
its output and its needs: `gives` is "logits" (the default), "cosines" or "scaled_cosines"; `keeps_norm` is False if
the length of the features does not affect the logits; a head with `takes_maps` takes the feature maps before pooling;
one with `wants_prototypes` holds features of training images; one with `batch_statistics` holds running statistics;
one that `projects` returns (logits, projections) in training, and the loss takes the latter for features; one with
`class_vectors` names the parameter that a `head_init` sets, if it is not `kernel`.
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
from ltjax.models.initializers import kaiming_normal, symmetric_uniform
from ltjax.models.numerics import full_precision, length, matmul, normalize
from ltjax.models.oltr import OLTR

__all__ = ["CAMC", "OLTR", "TDE", "Cosine", "DisAlign", "LearnableScale", "Linear", "NormalizedLinear",
           "ProjectedLinear", "WeightNorm"]

_normal = nn.initializers.variance_scaling(1.0, "fan_in", "normal")  # N(0, 1) / sqrt(d), untruncated


class Linear(nn.Module):
  """The affine classifier: z = W^T x + b.

  The kernel starts as kaiming_normal (fan_in, gain sqrt 2), the bias as U(-1/sqrt(d), 1/sqrt(d)), as in the
  `ResNet_s` of kaidic/LDAM-DRW; with `rare_start` the bias starts at -log(c - 1), where each class's sigmoid is 1/c.

  Args:
    num_classes: c; at least 2 with `rare_start`.
    rare_start: for sigmoid losses (Cui et al., `Class-Balanced Loss Based on Effective Number of Samples
      <https://arxiv.org/abs/1901.05555>`_, 2019), whose first steps would otherwise push all classes down.
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
        symmetric_uniform(dim**-0.5))
    kernel = self.param("kernel", kaiming_normal, (dim, self.num_classes), jnp.float32)
    bias = self.param("bias", start, (self.num_classes,), jnp.float32)
    return matmul(full_precision(features), kernel) + bias


class ProjectedLinear(nn.Module):
  """`Linear`, and beside it a projection for a contrastive loss: p = W_2 ReLU(W_1 x + b_1) + b_2.

  All of the projection starts as the linear head does. Evaluation ignores it.

  Args:
    num_classes: c.
    dim: of the projections; 128 in supervised contrastive learning.
    hidden: units of the hidden layer; 0 for as many as the features have.

  References:
    Khosla et al., `Supervised Contrastive Learning <https://arxiv.org/abs/2004.11362>`_, 2020; Wang et al.,
    `Contrastive Learning based Hybrid Networks for Long-Tailed Image Classification
    <https://arxiv.org/abs/2103.14267>`_, 2021.
  """
  num_classes: int
  dim: Annotated[int, "[1, inf)"] = 128
  hidden: Annotated[int, "[0, inf)"] = 0

  projects = "embeddings"

  def __post_init__(self):
    check_fields(self)
    super().__post_init__()

  @nn.compact
  def __call__(self, features: Float[Array, "b d"], *, train: bool = False) -> Float[Array, "b c"] | tuple[
      Float[Array, "b c"], Float[Array, "b p"]]:
    """Returns the logits [b c] of features [b d], in float32 (float64 for float64); in training also projections."""
    inner = Linear(self.num_classes)
    nn.share_scope(self, inner)
    x = full_precision(features)
    for number, width in ((1, self.hidden or x.shape[-1]), (2, self.dim)):
      kernel = self.param(f"project_kernel{number}", kaiming_normal, (x.shape[-1], width), jnp.float32)
      bias = self.param(f"project_bias{number}", symmetric_uniform(x.shape[-1]**-0.5), (width,), jnp.float32)
      x = matmul(nn.relu(x) if number == 2 else x, kernel) + bias
    logits = inner(features, train=train)
    return (logits, x) if train else logits


class Cosine(nn.Module):
  """The cosine classifier, without bias and without scale: z_c = <x/|x|, w_c/|w_c|>.

  The adjustment or loss that follows applies the scale. A zero feature gives zero logits and a finite gradient. Each
  column of the kernel starts as U(-1, 1), scaled to unit norm.

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
  """NormFC, the linear classifier with unit class vectors and one fixed magnitude g, for both stages of CAMC.

  z_c = g <x, w_c/|w_c|> by default, for learning the representation (the paper's equation 7, g = 0.5)
  z_c = g <x/|x|, w_c/|w_c|> with `normalize_features`, for re-training the classifier (equation 8, g = 16)

  There is no bias. The kernel starts as N(0, 1)/sqrt(d); the paper does not say how, but only the direction matters.

  Args:
    num_classes: c.
    scale: g > 0.
    normalize_features: use the second equation.

  References:
    Zhang et al., `Calibrating Class Activation Maps for Long-Tailed Visual Recognition` (CAMC), 2021.
  """
  num_classes: int
  scale: Annotated[float, "(0, inf)"]
  normalize_features: bool = False

  @property
  def keeps_norm(self) -> bool:
    """Whether the length of the features affects the logits."""
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

  The parameter `scale` is g [c], or one number for all classes with `shared` (WN-g). It starts at 1, about the length
  of the kernel's columns, which start as N(0, 1)/sqrt(d); the CAMC paper gives no start for g [c].

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
  """Learnable weight scaling (LWS): z'_c = f_c z_c, where z is the output of `Linear` (with its bias) or `Cosine`.

  The parameter `scale` is f [c] and starts at 1, where the head equals the wrapped one. The parameters of the wrapped
  head keep their names and paths (`kernel`, and `bias` if it is linear), so that a stage can load them from the stage
  before. The stage decides whether they stay frozen (Kang et al.) or keep learning slowly (MiSLAS).

  Args:
    num_classes: c.
    cosine: wrap `Cosine` instead of `Linear`.

  References:
    Kang et al., `Decoupling Representation and Classifier for Long-Tailed Recognition
    <https://arxiv.org/abs/1910.09217>`_, 2020: `DotProduct_Classifier` of facebookresearch/classifier-balancing.
  """
  num_classes: int
  cosine: bool = False

  @property
  def gives(self) -> str:
    """The kind of output."""
    return "scaled_cosines" if self.cosine else "logits"

  @property
  def keeps_norm(self) -> bool:
    """Whether the length of the features affects the logits."""
    return not self.cosine

  @nn.compact
  def __call__(self, features: Float[Array, "b d"], *, train: bool = False) -> Float[Array, "b c"]:
    """Returns the logits [b c] of features [b d], in float32 (float64 for float64)."""
    scale = self.param("scale", nn.initializers.ones, (self.num_classes,), jnp.float32)
    return scale * _wrapped(self)(features, train=train)


class DisAlign(nn.Module):
  """Distribution alignment: applies a per-class affine map to the logits, weighted by a learned confidence.

  z'_c = (1 + conf a_c) z_c + conf b_c, conf = sigmoid(<v, x> + b0), where z is the output of `Linear` or `Cosine`

  This is the released form. The paper writes conf (alpha_c z_c + beta_c) + (1 - conf) z_c, so alpha = a + 1, beta = b.
  `logit_scale` a starts at 1 (so the paper's alpha starts at 2), `logit_bias` b at 0, `confidence_kernel` v at 0.1 and
  `confidence_bias` b0 as U(-1/sqrt(d), 1/sqrt(d)), so the first logits differ from those of the wrapped head. Its
  parameters keep their names and paths (`kernel`, and `bias` if it is linear); the method freezes them.

  Args:
    num_classes: c.
    cosine: wrap `Cosine` instead of `Linear`.

  References:
    Zhang et al., `Distribution Alignment: A Unified Framework for Long-tail Visual Recognition
    <https://arxiv.org/abs/2103.16370>`_, 2021: `DisAlignLinear` of Megvii-BaseDetection/cvpods.
  """
  num_classes: int
  cosine: bool = False

  @property
  def gives(self) -> str:
    """The kind of output."""
    return "scaled_cosines" if self.cosine else "logits"

  @property
  def keeps_norm(self) -> bool:
    """Whether the length of the features affects the logits."""
    return not self.cosine

  @nn.compact
  def __call__(self, features: Float[Array, "b d"], *, train: bool = False) -> Float[Array, "b c"]:
    """Returns the logits [b c] of features [b d], in float32 (float64 for float64)."""
    dim = features.shape[-1]
    scale = self.param("logit_scale", nn.initializers.ones, (self.num_classes,), jnp.float32)
    shift = self.param("logit_bias", nn.initializers.zeros, (self.num_classes,), jnp.float32)
    direction = self.param("confidence_kernel", nn.initializers.constant(0.1), (dim, 1), jnp.float32)
    offset = self.param("confidence_bias", symmetric_uniform(dim**-0.5), (1,), jnp.float32)
    confidence = jax.nn.sigmoid(matmul(full_precision(features), direction) + offset)
    return (1 + confidence * scale) * _wrapped(self)(features, train=train) + confidence * shift


class TDE(nn.Module):
  """The de-confounded classifier: a multi-head cosine classifier that removes the momentum direction in evaluation.

  Features and class vectors are cut into K pieces of length d/K, x_k and w_kc; c_k is such a piece of the running mean.

  training: z_c = (tau/K) sum_k <x_k/|x_k|, w_kc / (|w_kc| + gamma)>
  evaluation: the same with x_k/|x_k| - alpha cos(x_k, c_k) c_k/|c_k| instead of x_k/|x_k|

  The running mean is `mean` [d] in the collection `batch_stats`. Every step sets c <- mu c + mean(x), without a factor
  1 - mu, because only the direction matters. It starts at zero, where both equations agree. `train` selects the
  equation, so a stage whose BatchNorm is in evaluation mode trains with the second one and leaves the mean unchanged.
  There is no bias; the kernel starts as U(-1/sqrt(d), 1/sqrt(d)).

  Args:
    num_classes: c.
    alpha: strength of the removal, >= 0; 3 in the released ImageNet-LT runs, 1.5 on CIFAR.
    tau: the scale, > 0.
    gamma: shrinks short class vectors more than long ones, >= 0.
    num_heads: K, a divisor of d.
    momentum: mu in [0, 1).

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

  keeps_norm, batch_statistics = False, True

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
      raise ConfigError(f"head: TDE splits the features into num_heads equal pieces, but {dim} is not a multiple of "
                        f"{self.num_heads}; give a divisor")
    kernel = self.param("kernel", symmetric_uniform(dim**-0.5), (dim, self.num_classes), jnp.float32)
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
  """Returns the head that `head` wraps; the two share one scope of parameters."""
  inner = (Cosine if head.cosine else Linear)(head.num_classes)
  nn.share_scope(head, inner)
  return inner


def _unit_columns(key, shape, dtype):
  return normalize(jax.random.uniform(key, shape, dtype, -1.0, 1.0), axis=0)
