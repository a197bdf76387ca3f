"""How every loss prepares its arguments: it checks them, and promotes them to float32 or better.

Shapes and types are always checked, values only where they are known: Python numbers, and arrays outside `jit`.

A class without images is an error where the counts are known. Traced counts may hold a zero, for instance when each
client of a federated run has its own. As long as no label is of that class, losses and gradients stay finite: its
prior is 0, and every other rule treats it as the rarest class that has images. In JAX's debug mode, `jax_debug_nans`,
an example with such a label is NaN: JAX then runs the function without `jit`, where the class is named, and
`checkify.nan_checks` reports it.
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

# A hyper-parameter: a constant, or the traced value of a schedule.
Number = float | Float[Array, ""]


def at_least_float32(x: Real[Array, "..."]) -> Float[Array, "..."]:
  """Returns `x` as float32, or as float64 if it is that already; integers become JAX's default float."""
  x = jnp.asarray(x)
  floating = jnp.issubdtype(x.dtype, jnp.floating)
  return x.astype(jnp.promote_types(x.dtype, jnp.float32) if floating else jnp.result_type(float))


def interval_of(annotation) -> str | None:
  """Returns the range in an annotation such as `Annotated[float, "[0, inf)"]`, or None."""
  for member in (annotation, *typing.get_args(annotation)):
    for extra in getattr(member, "__metadata__", ()):
      if isinstance(extra, str) and extra[:1] in "[(" and "," in extra:
        return extra
  return None


@functools.cache
def intervals(function: Callable) -> dict[str, str]:
  """Returns {name: range} for the parameters of a function, or the fields of a class, that declare a range."""
  declared = {p.name: interval_of(p.annotation) for p in inspect.signature(function).parameters.values()}
  return {name: interval for name, interval in declared.items() if interval}


def ranged(function: Callable) -> Callable:
  """Makes a function check its keyword arguments against their declared ranges; traced values pass.

  In debug mode it also makes the examples NaN whose class has a traced count of 0.
  """
  limits, name, signature = intervals(function), function.__name__, inspect.signature(function)

  @functools.wraps(function)
  def checked(*args, **kwargs):
    for key in limits.keys() & kwargs.keys():
      in_range(f"{name}: {key}", kwargs[key], limits[key])
    result = function(*args, **kwargs)
    if not jax.config.jax_debug_nans:
      return result
    given = signature.bind(*args, **kwargs).arguments
    return _nan_without_images(result, given.get("labels"), given.get("class_counts"))

  return checked


def _nan_without_images(result, labels, class_counts):
  """`result`, [b] or [b c], with NaN for labels of classes whose traced count is 0."""
  if labels is None or not isinstance(class_counts, jax.core.Tracer):
    return result
  has_images = jnp.asarray(class_counts)[jnp.asarray(labels)] > 0
  one = jnp.expand_dims(has_images.astype(result.dtype), tuple(range(has_images.ndim, result.ndim)))
  return result * (one / one)  # 0 / 0 where the class has no image


def check_fields(module) -> None:
  """Checks the fields of a linen module against their declared ranges; for its `__post_init__`."""
  for key, interval in intervals(type(module)).items():
    if (value := getattr(module, key)) is not None:
      in_range(f"{type(module).__name__}: {key}", value, interval)


def in_range(what: str, value: Number | tuple, interval: str) -> None:
  """Raises a ConfigError unless `value`, or each of its entries, is in `interval`; traced values pass.

  >>> in_range("focal: gamma", 2.0, "[0, inf)")
  """
  numbers = _known(value)
  if numbers is None:
    return
  low, high = (float(bound) for bound in interval[1:-1].split(","))
  above = numbers >= low if interval[0] == "[" else numbers > low
  below = numbers <= high if interval[-1] == "]" else numbers < high
  if not (inside := above & below).all():
    raise ConfigError(f"{what} must be in {interval}, got {numbers[~inside][0] if numbers.ndim else numbers}.")


def positive_counts(class_counts: Real[Array, "c"], logits: Float[Array, "b c"] | None = None) -> Float[Array, "c"]:
  """Returns `class_counts` as floats, with the smallest of the others for a traced 0.

  Args:
    class_counts: training images of each class, [c].
    logits: if given, the counts take their precision and must be one per class of theirs.

  Raises:
    DataError: a count that is not positive, or a wrong number of counts.
  """
  counts = _checked_counts(class_counts, logits)
  if _known(class_counts) is not None:
    return counts
  return jnp.where(counts == 0, jnp.min(counts, where=counts > 0, initial=jnp.inf), counts)


def class_prior(class_counts: Real[Array, "c"], logits: Float[Array, "b c"]) -> Float[Array, "c"]:
  """Returns pi = n / N in the precision of `logits`; 0 for a traced 0. Raises as `positive_counts` does."""
  counts = _checked_counts(class_counts, logits)
  return counts / counts.sum()


def _checked_counts(class_counts, logits) -> Float[Array, "c"]:
  _check_length("class_counts", class_counts, logits)
  _check_each("class_counts", class_counts, lambda n: np.isfinite(n) & (n > 0), "positive",
              "leave classes without training images out of the label set")
  counts = at_least_float32(class_counts)
  return counts if logits is None else counts.astype(logits.dtype)


def seen_or_one(seen_counts: Real[Array, "c"], logits: Float[Array, "b c"]) -> Float[Array, "c"]:
  """Returns running counts as floats in the precision of `logits`; an unseen class counts as 1."""
  _check_length("seen_counts", seen_counts, logits)
  _check_each("seen_counts", seen_counts, lambda n: np.isfinite(n) & (n >= 0), "zero or positive",
              "count the images of each class that training has drawn so far")
  return jnp.maximum(at_least_float32(seen_counts).astype(logits.dtype), 1)


def class_indices(labels: Int[Array, "b"], logits: Float[Array, "b c"]) -> Int[Array, "b"]:
  """Returns `labels` as an array; raises a DataError unless each row of `logits` has one integer in [0, c)."""
  labels = labels if isinstance(labels, jax.Array) else np.asarray(labels)
  if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape != logits.shape[:-1]:
    raise DataError(f"labels must be {logits.shape[:-1]} integers, one for each row of logits, "
                    f"got {labels.dtype} of shape {labels.shape}.")
  values = _known(labels)
  if values is not None and values.size and not 0 <= values.min() <= values.max() < logits.shape[-1]:
    bad = np.argmax((values < 0) | (values >= logits.shape[-1]))
    raise DataError(f"labels must be in [0, {logits.shape[-1]}), but label {bad} is {values.reshape(-1)[bad]}.")
  return jnp.asarray(labels)


def is_label(labels: Int[Array, "b"], logits: Float[Array, "b c"]) -> Bool[Array, "b c"]:
  """Returns a mask that is True at each row's label."""
  return class_indices(labels, logits)[..., None] == jnp.arange(logits.shape[-1])


def computed_once(x: Float[Array, "..."]) -> Float[Array, "..."]:
  """Returns `x`; without this barrier XLA computes a class vector again for every element it is added to."""
  return jax.lax.optimization_barrier(x)


def only_at_label(values: Float[Array, "b"] | float, labels: Int[Array, "b"],
                  logits: Float[Array, "b c"]) -> Float[Array, "b c"]:
  """Returns [b c] with `values`, one per row or one for all, at the labels and 0 elsewhere."""
  # XLA fuses this mask into its reader; a class vector or a one-hot product would be read once per element.
  values = computed_once(jnp.broadcast_to(jnp.asarray(values, logits.dtype), logits.shape[:-1]))
  return jnp.where(is_label(labels, logits), values[..., None], 0)


def probabilities(labels: Float[Array, "b c"], logits: Float[Array, "b c"]) -> Float[Array, "b c"]:
  """Returns target probabilities as floats; raises a DataError unless each row of [b c] sums to 1."""
  if np.shape(labels) != logits.shape:
    raise DataError(f"labels given as probabilities must have the shape {logits.shape} of logits, "
                    f"got {np.shape(labels)}.")
  values = _known(labels)
  if values is not None and values.size:
    sums = values.astype(np.float64).sum(axis=-1).reshape(-1)
    # Rounding to bfloat16 moves a sum by up to 2e-3, and a float32 array may have been rounded before.
    bad = ~(np.abs(sums - 1) <= 1e-2) | (values < 0).any(axis=-1).reshape(-1)
    if bad.any():
      row = int(np.argmax(bad))
      raise DataError(f"labels given as probabilities must be in [0, 1] and sum to 1, but row {row} sums to "
                      f"{sums[row]:g} and its smallest is {values.reshape(len(sums), -1)[row].min()}.")
  return at_least_float32(labels)


def _known(x) -> np.ndarray | None:
  """Returns `x` as a NumPy array, or None where this process does not know its values."""
  if isinstance(x, jax.core.Tracer) or (isinstance(x, jax.Array) and not x.is_fully_addressable):
    return None
  return np.asarray(x)


def _check_length(name: str, counts, logits) -> None:
  if logits is not None and np.shape(counts) != logits.shape[-1:]:
    raise DataError(f"{name} must be one number for each of the {logits.shape[-1]} classes of logits, "
                    f"got shape {np.shape(counts)}.")


def _check_each(name: str, counts, good, wanted: str, fix: str) -> None:
  values = _known(counts)
  if values is None:
    return
  bad = np.flatnonzero(~good(values))
  if bad.size:
    raise DataError(f"{name} must be {wanted}, but class {bad[0]} has {values[bad[0]]} ({bad.size} such classes of "
                    f"{values.size}); {fix}.")
