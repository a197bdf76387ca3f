"""What every loss does to its arguments before the mathematics: precision, and one error for what cannot be right.

Only values that can be seen are checked: Python numbers and arrays outside `jit`. Shapes and types are always checked.
"""

import functools
import inspect
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Real

from ltjax.errors import ConfigError, DataError


def at_least_float32(x: Real[Array, "..."]) -> Float[Array, "..."]:
  """`x` as float32, or as float64 where it is float64; integers take JAX's default float."""
  x = jnp.asarray(x)
  floating = jnp.issubdtype(x.dtype, jnp.floating)
  return x.astype(jnp.promote_types(x.dtype, jnp.float32) if floating else jnp.result_type(float))


Number = float | Float[Array, ""]  # of a hyper-parameter: a constant, or the traced value of a schedule


def interval_of(annotation) -> str | None:
  """The range that an annotation declares, as `Annotated[float, "[0, inf)"]` does; None where it declares none."""
  for member in (annotation, *typing.get_args(annotation)):
    for extra in getattr(member, "__metadata__", ()):
      if isinstance(extra, str) and extra[:1] in "[(" and "," in extra:
        return extra
  return None


@functools.cache
def intervals(function: Callable) -> dict[str, str]:
  """{parameter: range} of a function, or of the fields of a class, as the annotations declare them."""
  declared = {p.name: interval_of(p.annotation) for p in inspect.signature(function).parameters.values()}
  return {name: interval for name, interval in declared.items() if interval}


def ranged(function: Callable) -> Callable:
  """Checks every keyword argument that has a declared range, at every call; traced values pass."""
  limits, name = intervals(function), function.__name__

  @functools.wraps(function)
  def checked(*args, **kwargs):
    for key in limits.keys() & kwargs.keys():
      in_range(f"{name}: {key}", kwargs[key], limits[key])
    return function(*args, **kwargs)

  return checked


def check_fields(module) -> None:
  """`ranged` for the fields of a linen module: called from its `__post_init__`."""
  for key, interval in intervals(type(module)).items():
    if (value := getattr(module, key)) is not None:
      in_range(f"{type(module).__name__}: {key}", value, interval)


def in_range(what: str, value: float | Float[Array, ""], interval: str) -> None:
  """ConfigError unless the number `value` is inside `interval`, say "[0, inf)"; traced values pass.

  >>> in_range("focal: gamma", 2.0, "[0, inf)")
  """
  number = _seen(value)
  if number is None or number.ndim:
    return
  low, high = (float(bound) for bound in interval[1:-1].split(","))
  above = number >= low if interval[0] == "[" else number > low
  below = number <= high if interval[-1] == "]" else number < high
  if not (above and below):
    raise ConfigError(f"{what} must be in {interval}, got {number}.")


def positive_counts(class_counts: Real[Array, "c"], logits: Float[Array, "b c"] | None = None) -> Float[Array, "c"]:
  """`class_counts` as floats; DataError names the classes without images.

  With `logits`, in their precision, and DataError unless there is one count for each of their classes.
  """
  _check_length("class_counts", class_counts, logits)
  # A traced value has no number yet. There a zero count gives the infinity that its equation says.
  _check_each("class_counts", class_counts, lambda n: np.isfinite(n) & (n > 0), "positive",
              "leave classes without training images out of the label set")
  counts = at_least_float32(class_counts)
  return counts if logits is None else counts.astype(logits.dtype)


def seen_or_one(seen_counts: Real[Array, "c"], logits: Float[Array, "b c"]) -> Float[Array, "c"]:
  """Running counts as floats in the precision of `logits`, a class that was never seen counting as 1."""
  _check_length("seen_counts", seen_counts, logits)
  _check_each("seen_counts", seen_counts, lambda n: np.isfinite(n) & (n >= 0), "zero or positive",
              "they are the images of each class that training has met so far")
  return jnp.maximum(at_least_float32(seen_counts).astype(logits.dtype), 1)


def class_indices(labels: Int[Array, "b"], logits: Float[Array, "b c"]) -> Int[Array, "b"]:
  """`labels` as an array; DataError unless it has one integer in [0, c) for each row of `logits`."""
  labels = labels if isinstance(labels, jax.Array) else np.asarray(labels)
  if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape != logits.shape[:-1]:
    raise DataError(f"labels must be {logits.shape[:-1]} integers, one for each row of logits, "
                    f"got {labels.dtype} of shape {labels.shape}.")
  values = _seen(labels)
  if values is not None and values.size and not 0 <= values.min() <= values.max() < logits.shape[-1]:
    bad = np.argmax((values < 0) | (values >= logits.shape[-1]))
    raise DataError(f"labels must be in [0, {logits.shape[-1]}), but label {bad} is {values.reshape(-1)[bad]}.")
  return jnp.asarray(labels)


def is_label(labels: Int[Array, "b"], logits: Float[Array, "b c"]) -> Bool[Array, "b c"]:
  """True at each row's label."""
  return class_indices(labels, logits)[..., None] == jnp.arange(logits.shape[-1])


def computed_once(x: Float[Array, "..."]) -> Float[Array, "..."]:
  """`x`, computed once: XLA would otherwise compute a class vector again for each element that it is added to."""
  return jax.lax.optimization_barrier(x)


def only_at_label(values: Float[Array, "b"] | float, labels: Int[Array, "b"],
                  logits: Float[Array, "b c"]) -> Float[Array, "b c"]:
  """One number for each row, or one for all, at its label, and 0 elsewhere."""
  # XLA fuses this into whatever reads it, where a class vector or a one-hot product would be read once an element.
  values = computed_once(jnp.broadcast_to(jnp.asarray(values, logits.dtype), logits.shape[:-1]))
  return jnp.where(is_label(labels, logits), values[..., None], 0)


def probabilities(labels: Float[Array, "b c"], logits: Float[Array, "b c"]) -> Float[Array, "b c"]:
  """Target probabilities as floats; DataError unless each row has one for each class and they sum to 1."""
  if jnp.shape(labels) != logits.shape:
    raise DataError(f"labels given as probabilities must have the shape {logits.shape} of logits, "
                    f"got {jnp.shape(labels)}.")
  values = _seen(labels)
  if values is not None and values.size:
    sums = values.astype(np.float64).sum(axis=-1).reshape(-1)
    # Rounding to bfloat16 moves a sum by up to 2e-3, and what was rounded may since have been made wider.
    bad = ~(np.abs(sums - 1) <= 1e-2) | (values < 0).any(axis=-1).reshape(-1)
    if bad.any():
      row = int(np.argmax(bad))
      raise DataError(f"labels given as probabilities must be in [0, 1] and sum to 1, but row {row} sums to "
                      f"{sums[row]:g} and its least is {values.reshape(len(sums), -1)[row].min()}.")
  return at_least_float32(labels)


def _seen(x) -> np.ndarray | None:
  """`x` as a NumPy array where this process can see its values, else None."""
  if isinstance(x, jax.core.Tracer) or (isinstance(x, jax.Array) and not x.is_fully_addressable):
    return None
  return np.asarray(x)


def _check_length(name: str, counts, logits) -> None:
  if logits is not None and jnp.shape(counts) != logits.shape[-1:]:
    raise DataError(f"{name} must be one number for each of the {logits.shape[-1]} classes of logits, "
                    f"got shape {jnp.shape(counts)}.")


def _check_each(name: str, counts, good, wanted: str, mend: str) -> None:
  values = _seen(counts)
  if values is None:
    return
  bad = np.flatnonzero(~good(values))
  if bad.size:
    raise DataError(f"{name} must be {wanted}, but class {bad[0]} has {values[bad[0]]} ({bad.size} such classes of "
                    f"{values.size}); {mend}.")
