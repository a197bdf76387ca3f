"""How long training takes on a CPU, estimated before it starts."""

import math

import jax
import numpy as np

from ltjax.data import decode

RATE = 2e10  # operations a second and core; XLA does 1 to 5 times 1e10 in training, depending on the network
HOUR = 3600.0


def notes(stages) -> list[str]:
  """A note where the stages would take more than an hour on a CPU, with what would not; none elsewhere."""
  if jax.default_backend() != "cpu" or sum(map(_at_most, stages)) < HOUR:
    return []
  seconds = {each.name: _seconds(each) for each in stages}
  if sum(seconds.values()) < HOUR:
    return []
  name, longest = max(seconds.items(), key=lambda item: item[1])
  stage = next(each for each in stages if each.name == name)
  examples, side = stage.order.steps * stage.order.batch_size, stage.image_shape[1]
  return [f"note: on these {decode.cores()} cores {name} takes about {longest / HOUR:,.0f} hours, as far as its "
          f"{examples:,} training examples of {side} x {side} pixels tell; fewer epochs, a smaller image or network "
          "(--config=configs/gcl_folder.py:resnet10,size=64) or a GPU takes less"]


def _at_most(stage) -> float:
  """An upper bound of `_seconds` without a trace of the network: a weight is applied once a pixel at most."""
  weights = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(stage.shapes["params"]))
  return _time(stage, 2.0 * weights * math.prod(stage.image_shape[1:3]))


def _seconds(stage) -> float:
  variables = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), stage.shapes)
  image = jax.ShapeDtypeStruct(stage.image_shape, np.float32)
  forward = jax.jit(lambda variables, image: stage.model.apply(variables, image, train=False))
  return _time(stage, forward.lower(variables, image).cost_analysis()["flops"])


def _time(stage, operations: float) -> float:
  """Seconds of all steps; a backward pass through the backbone takes twice as long as the forward pass."""
  frozen = all(factor is None for factor in jax.tree.leaves(
      stage.optimizer.factors["backbone"], is_leaf=lambda factor: factor is None))
  passes = stage.order.steps * stage.order.batch_size * (1 if frozen else 3)
  return passes * operations / (RATE * decode.cores())
