"""A list of operations as one function of a batch, and whether their order makes sense."""

import inspect
import zlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from ltjax.augment.images import normalize
from ltjax.distributed import platforms
from ltjax.errors import ConfigError

# The numbers under which operations fold their draws into the key; others use a hash of their name. An operation's
# draws so depend on its name alone, and adding another to the list leaves them as they are.
_STREAMS = dict(random_crop=0, flip=1, mixup=2, jitter=3)
PIXELS, NORMALIZED, MIXED = range(3)
_WANTS = ("raw pixels", "normalised images", "labels beside the images")


def level(operation: Callable) -> int | None:
  """What an operation works on: PIXELS, NORMALIZED, MIXED for one that mixes examples; None where it does not care."""
  try:
    parameters = inspect.signature(operation, eval_str=True).parameters
  except (NameError, AttributeError, SyntaxError, TypeError):  # an annotation that cannot be evaluated
    parameters = inspect.signature(operation).parameters
  if "labels" in parameters:
    return MIXED
  dtypes = getattr(parameters["images"].annotation, "dtypes", ())
  if "uint8" in dtypes:
    return PIXELS if len(dtypes) == 1 else None
  return NORMALIZED if dtypes else None


def stream(key: jax.Array, name: str, repetition: int = 0) -> jax.Array:
  """The key of the operation `name`; `repetition` counts those of the same name before it in the list."""
  own = jax.random.fold_in(key, _STREAMS.get(name, zlib.crc32(name.encode())))
  return jax.random.fold_in(own, repetition) if repetition else own


def check_order(operations: Sequence[tuple[str, Callable]]) -> None:
  """Raises a ConfigError where (name, function) pairs are in an order that makes no sense."""
  reached, last = PIXELS, ""
  for name, function in operations:
    wanted = level(function)
    if wanted == reached == MIXED:
      raise ConfigError(f"{name}: the examples are mixed already; remove one of the two, {last} or {name}")
    if wanted is None and reached == MIXED:
      raise ConfigError(f"{name} works on single examples and must come before {last}, which mixes them")
    if wanted is not None and wanted < reached:
      raise ConfigError(f"{name} works on {_WANTS[wanted]} and must come before {last}, which works on "
                        f"{_WANTS[reached]}")
    if wanted is not None:
      reached, last = wanted, name
  sizes = [name for name, function in operations if hasattr(function, "boxes")]
  if len(sizes) > 1:
    raise ConfigError(f"{sizes[0]} and {sizes[1]} both give the images a size; remove one")


def compose(operations: Sequence[tuple[str, Callable, Callable]], normalize: Callable = normalize) -> Callable:
  """apply(images, key, labels, mean, std) -> (normalised images, ((labels, weight), ...)), to be called inside jit.

  Two further arguments go to the operations that take them: `progress`, the part of the stage that is over, and
  `partners`, a function order -> images[order] for one that mixes examples.

  Images are normalised right after the last operation that wants raw pixels and the flips that follow it. An operation
  that takes either kind works on raw pixels before that place, and on normalised images after it.

  Args:
    operations: (name, function, the function with its hyper-parameters bound) in their order.
    normalize: (images, mean, std) -> what the network takes.

  Raises:
    ConfigError: an order that makes no sense.
  """
  check_order([(name, function) for name, function, _ in operations])
  names, levels = [name for name, _, _ in operations], [level(function) for _, function, _ in operations]
  pixels = max((place + 1 for place, wanted in enumerate(levels) if wanted == PIXELS), default=0)
  while pixels < len(operations) and getattr(operations[pixels][1], "rearranges", False):
    pixels += 1
  parameters = [inspect.signature(function).parameters for _, function, _ in operations]

  def partners_of(raw, images, mean, std):
    # Between devices bytes travel instead of floats, and the numbers are the same. On a CPU floats do: there LLVM would
    # fuse normalising and mixing, and round the mixture another way.
    return images.__getitem__ if platforms.target() == "cpu" else lambda order: normalize(raw[order], mean, std)

  def apply(images, key, labels, mean, std, progress=0.0):
    pairs = ((labels, 1.0),)
    for place, (name, _, call) in enumerate(operations):
      partners = images.__getitem__
      if place == pixels:
        raw, images = images, normalize(images, mean, std)
        partners = partners_of(raw, images, mean, std)
      if levels[place] == PIXELS and images.dtype != jnp.uint8:
        images = jnp.clip(jnp.round(images), 0, 255).astype(jnp.uint8)
      own = stream(key, name, names[:place].count(name))
      offered = dict(progress=progress, partners=partners)
      given = {name: value for name, value in offered.items() if name in parameters[place]}
      if levels[place] == MIXED:
        images, pairs = call(images, own, labels, **given)
      else:
        images = call(images, own, **given)
    return images if pixels < len(operations) else normalize(images, mean, std), pairs

  return apply
