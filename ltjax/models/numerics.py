"""Arithmetic for networks and heads: float32 or better, finite derivatives at zero, and convolutions that CPUs like."""

import functools

import jax
import jax.numpy as jnp

from ltjax.distributed import platforms


def depthwise(images, kernel, strides, padding, *, feature_group_count, **options):
  """`jax.lax.conv_general_dilated` of one channel at a time, for `flax.linen.Conv`.

  On a CPU it is the sum over the k x k taps of shifted images times a weight per channel: XLA's own grouped
  convolutions take ten to forty times as long there.
  """
  if platforms.target() != "cpu":
    return jax.lax.conv_general_dilated(images, kernel, strides, padding, feature_group_count=feature_group_count,
                                        **options)
  if not isinstance(padding, str):
    padding = tuple(map(tuple, padding))
  return _taps(images, kernel, tuple(strides), padding)


# Compiled, so that a call outside of jit, as in drawing parameters, is one program and not hundreds.
@functools.partial(jax.jit, static_argnums=(2, 3))
def _taps(images, kernel, strides, padding):
  sides, taps = images.shape[1:3], kernel.shape[:2]
  if isinstance(padding, str):
    padding = jax.lax.padtype_to_pads(sides, taps, strides, padding)
  images = jnp.pad(images, ((0, 0), *padding, (0, 0)))
  # (first, last + 1, stride) of what each tap reads, along the height and the width.
  (rows, columns) = [[slice(tap, tap + (padded - size) // stride * stride + 1, stride) for tap in range(size)]
                     for padded, size, stride in zip(images.shape[1:3], taps, strides, strict=True)]
  return sum(images[:, row, column] * kernel[i, j, 0] for i, row in enumerate(rows) for j, column in enumerate(columns))


def computed_once(x):
  """`x`, which a training step on a CPU computes once, for the layers after it and for their gradients.

  XLA on a CPU would compute it again for each of these, and as it is the sum of all residual blocks before it, that
  takes a third of ResNet-32's step. `platforms.compiler_options` makes the compiler respect the barrier.
  """
  return jax.lax.optimization_barrier(x) if platforms.target() == "cpu" else x


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
