"""Classifier heads: features in, logits out. A head is chosen by its name in this module.

Every head is called as `head(features, train=train)`; most compute the same in training and in tests.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["Cosine", "Linear"]

# PyTorch's kaiming_normal_; the initializer that jax calls kaiming_normal draws from a truncated normal.
_kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class Linear(nn.Module):
  """The affine classifier: z = W^T x + b.

  The kernel starts as kaiming_normal (fan_in, gain sqrt 2), the bias as U(-1/sqrt(d), 1/sqrt(d)), as in the
  `ResNet_s` of kaidic/LDAM-DRW.

  Args:
    num_classes: c.
  """
  num_classes: int

  @nn.compact
  def __call__(self, features: Float[Array, "b d"], *, train: bool = False) -> Float[Array, "b c"]:
    """Returns the logits [b c] of features [b d], in float32 (float64 for float64)."""
    del train
    dim = features.shape[-1]
    kernel = self.param("kernel", _kaiming_normal, (dim, self.num_classes), jnp.float32)
    bias = self.param("bias", _symmetric_uniform(dim**-0.5), (self.num_classes,), jnp.float32)
    return _matmul(_full_precision(features), kernel) + bias


class Cosine(nn.Module):
  """The cosine classifier, without bias and without scale: z_c = <x/|x|, w_c/|w_c|>.

  The scale belongs to the adjustment or the loss that follows. A zero feature gives zero logits and a finite gradient.
  Each class column of the kernel starts as U(-1, 1), scaled to unit norm.

  Args:
    num_classes: c.

  References:
    Cao et al, `Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss
    <https://arxiv.org/abs/1906.07413>`_, 2019; `NormedLinear` of kaidic/LDAM-DRW.
  """
  num_classes: int

  @nn.compact
  def __call__(self, features: Float[Array, "b d"], *, train: bool = False) -> Float[Array, "b c"]:
    """Returns the cosines [b c] of features [b d], in float32 (float64 for float64)."""
    del train
    kernel = self.param("kernel", _unit_columns, (features.shape[-1], self.num_classes), jnp.float32)
    return _matmul(_normalize(_full_precision(features), axis=-1), _normalize(kernel, axis=0))


def _full_precision(x):
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _matmul(x, kernel):
  # By default accelerators round float32 operands to TF32 or bfloat16, and a scale of 30 magnifies that.
  return jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST)


def _normalize(x, axis):
  # The clamp is inside the root, where the derivative of x/|x| at zero stays finite.
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=axis, keepdims=True), 1e-24))


def _symmetric_uniform(bound):
  return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def _unit_columns(key, shape, dtype):
  return _normalize(jax.random.uniform(key, shape, dtype, -1.0, 1.0), axis=0)
