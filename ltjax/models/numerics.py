"""The arithmetic that heads share: float32 or better, and finite derivatives at zero."""

import jax
import jax.numpy as jnp


def full_precision(x):
  """`x` in float32, or in float64 if it is that."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def matmul(x, kernel):
  """x @ kernel without the rounding of operands."""
  # By default accelerators round float32 operands to TF32 or bfloat16, and a scale of 30 magnifies that.
  return jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST)


def inverse_length(squares):
  """1 / |x| of |x|^2."""
  # The clamp is inside the root, where the derivative of x/|x| at zero stays finite.
  return jax.lax.rsqrt(jnp.maximum(squares, 1e-24))


def normalize(x, axis):
  """x / |x| along an axis; zero stays zero."""
  return x * inverse_length(jnp.sum(x * x, axis=axis, keepdims=True))


def length(x, axis):
  """|x| along an axis, which is kept."""
  return jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=axis, keepdims=True), 1e-24))
