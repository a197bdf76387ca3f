"""Arithmetic for the heads: float32 or better, and finite derivatives at zero."""

import jax
import jax.numpy as jnp


def full_precision(x):
  """`x` in float32; float64 stays."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def matmul(x, kernel):
  """x @ kernel without rounding the operands."""
  # By default accelerators round float32 operands to TF32 or bfloat16, and a scale of 30 magnifies that.
  return jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST)


def inverse_length(squares):
  """1 / |x| of |x|^2."""
  # Clamped inside the root, so that the derivative of x/|x| at zero stays finite.
  return jax.lax.rsqrt(jnp.maximum(squares, 1e-24))


def normalize(x, axis):
  """x / |x| along an axis; zero stays zero."""
  return x * inverse_length(jnp.sum(x * x, axis=axis, keepdims=True))


def length(x, axis):
  """|x| along an axis, which stays with size 1."""
  return jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=axis, keepdims=True), 1e-24))
