"""What every loss does to its arguments before the mathematics."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real
from numpy.typing import DTypeLike

from ltjax.errors import DataError


def at_least_float32(x: Real[Array, "..."]) -> Float[Array, "..."]:
  """`x` as float32, or as float64 where it is float64; integers take JAX's default float."""
  x = jnp.asarray(x)
  floating = jnp.issubdtype(x.dtype, jnp.floating)
  return x.astype(jnp.promote_types(x.dtype, jnp.float32) if floating else jnp.result_type(float))


def positive_counts(class_counts: Real[Array, "c"], dtype: DTypeLike | None = None) -> Float[Array, "c"]:
  """`class_counts` as floats of `dtype`; DataError names the classes without images where the values can be seen."""
  # A traced value has no number yet. There a zero count gives the infinity that its equation says.
  if not isinstance(class_counts, jax.core.Tracer):
    counts = np.asarray(class_counts)
    bad = np.flatnonzero(~(counts > 0))
    if bad.size:
      raise DataError(
          f"class_counts must be positive, but class {bad[0]} has {counts[bad[0]]} ({bad.size} such classes of "
          f"{counts.size}); leave classes without training images out of the label set.")
  counts = at_least_float32(class_counts)
  return counts if dtype is None else counts.astype(dtype)
