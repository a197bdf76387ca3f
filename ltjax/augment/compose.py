"""A list of operations as one function of a batch, and whether their order makes sense."""

import inspect
import zlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from ltjax.augment.images import normalize
from ltjax.errors import ConfigError

# The numbers under which operations fold their draws into the key; others use a hash of their name. An operation's
# draws so depend on its name alone, and adding another to the list leaves them as they are.
_STREAMS = dict(random_crop=0, flip=1, mixup=2, jitter=3)
PIXELS, NORMALIZED, MIXED = range(3)
_WANTS = ("raw pixels", "normalised images", "labels beside the images")


def level(operation: Callable) -> int | None:
  """What an operation works on: PIXELS, NORMALIZED, MIXED for one that mixes examples; None where it does not care."""
  parameters = inspect.signature(operation).parameters
  if "labels" in parameters:
    return MIXED
  dtypes = getattr(parameters["images"].annotation, "dtypes", ())
  if "uint8" in dtypes:
    return PIXELS if len(dtypes) == 1 else None
  return NORMALIZED if dtypes else None


def compose(operations: Sequence[tuple[str, Callable, Callable]]) -> Callable:
  """apply(images, key, labels, mean, std) -> (normalised images, ((labels, weight), ...)), to be called inside jit.

  Images are normalised before the first operation that wants that, or at the end.

  Args:
    operations: (name, function, the function with its hyper-parameters bound) in their order.

  Raises:
    ConfigError: an order that makes no sense.
  """
  reached, levels = (PIXELS, ""), []
  for name, function, _ in operations:
    wanted = level(function)
    if wanted is not None and wanted < reached[0]:
      raise ConfigError(f"{name} works on {_WANTS[wanted]} and must come before {reached[1]}, which works on "
                        f"{_WANTS[reached[0]]}")
    if wanted is not None and wanted >= reached[0]:
      reached = (wanted, name)
    levels.append(reached[0] if wanted is None else wanted)
  sizes = [name for name, function, _ in operations if hasattr(function, "boxes")]
  if len(sizes) > 1:
    raise ConfigError(f"{sizes[0]} and {sizes[1]} both give the images a size; remove one")

  def apply(images, key, labels, mean, std):
    pairs, normalized, seen = ((labels, 1.0),), False, []
    for (name, function, call), wanted in zip(operations, levels, strict=True):
      own = jax.random.fold_in(key, _STREAMS.get(name, zlib.crc32(name.encode())))
      for _ in range(seen.count(name)):  # the second of a name has other draws than the first
        own = jax.random.fold_in(own, 1)
      seen.append(name)
      if wanted >= NORMALIZED and not normalized:
        images, normalized = normalize(images, mean, std), True
      if level(function) == PIXELS and images.dtype != jnp.uint8:
        images = jnp.clip(jnp.round(images), 0, 255).astype(jnp.uint8)
      if level(function) == MIXED:
        if len(pairs) > 1:
          raise ConfigError(f"{name}: the examples are mixed already; remove one of the two operations")
        images, pairs = call(images, own, labels)
      else:
        images = call(images, own)
    return images if normalized else normalize(images, mean, std), pairs

  return apply
