"""How long training takes on a CPU, and how much memory anywhere, estimated before it starts."""

import math
from collections.abc import Iterator

import jax
import numpy as np
from jax.extend.core import jaxprs_in_params

from ltjax.data import decode

RATE = 2e10  # operations a second and core; XLA does 1 to 5 times 1e10 in training, depending on the network
HOUR = 3600.0


def notes(stages) -> list[str]:
  """A note where the stages would take more than an hour on a CPU, with what would not; none elsewhere."""
  if jax.default_backend() != "cpu" or sum(map(_at_most, stages)) < HOUR:
    return []
  seconds = {each.name: seconds_of(each) for each in stages}
  if sum(seconds.values()) < HOUR:
    return []
  name, longest = max(seconds.items(), key=lambda item: item[1])
  stage = next(each for each in stages if each.name == name)
  examples, side = stage.order.steps * stage.order.batch_size, stage.image_shape[1]
  return [f"note: on {cores()} {name} takes about {longest / HOUR:,.0f} hours, as far as its "
          f"{examples:,} training examples of {side} x {side} pixels tell; fewer epochs, a smaller image or network "
          "(--config=configs/gcl_folder.py:resnet10,size=64) or a GPU takes less"]


def cores() -> str:
  """"1 core" or "2 cores": those of this process."""
  count = decode.cores()
  return f"{count} core{'s' if count > 1 else ''}"


def _at_most(stage) -> float:
  """An upper bound of `seconds_of` without a trace of the network: a weight is applied once a pixel at most."""
  weights = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(stage.shapes["params"]))
  return _time(stage, 2.0 * weights * math.prod(stage.image_shape[1:3]))


def seconds_of(stage) -> float:
  """Seconds that a stage takes on the cores of this process; what a GPU would take is not in it."""
  variables, image = _shapes(stage)
  forward = jax.jit(lambda variables, image: stage.model.apply(variables, image, train=False))
  return _time(stage, forward.lower(variables, image).cost_analysis()["flops"])


def memory_of(stage) -> int:
  """Bytes that the devices hold during a step of a stage, about: parameters, optimiser, and what a batch computes.

  A backward pass needs what the forward pass has computed: in XLA's programs for ResNets about five times the results
  of convolutions and matrix products. Without one, as for features that are computed once, two at a time are enough.
  """
  leaves = jax.tree.leaves(stage.shapes)
  parameters = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
  variables, image = _shapes(stage)
  sizes = list(_results(jax.make_jaxpr(lambda v, x: stage.model.apply(v, x, train=False))(variables, image).jaxpr))
  if stage.frozen_backbone:
    batch = max(stage.order.batch_size, stage.settings.eval_batch_size)
    return parameters + 2 * batch * max(sizes, default=0)
  return 4 * parameters + 5 * stage.order.batch_size * sum(sizes)  # weights, gradients, momentum, updates


def _results(jaxpr) -> Iterator[int]:
  """Bytes of the result of every convolution and matrix product, also of those in functions that are called."""
  for equation in jaxpr.eqns:
    if equation.primitive.name in ("conv_general_dilated", "dot_general"):
      yield sum(math.prod(found.aval.shape) * found.aval.dtype.itemsize for found in equation.outvars)
    for inner in jaxprs_in_params(equation.params):
      yield from _results(inner)


def _shapes(stage) -> tuple:
  variables = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), stage.shapes)
  return variables, jax.ShapeDtypeStruct(stage.image_shape, np.float32)


def _time(stage, operations: float) -> float:
  """Seconds of all steps; a backward pass through the backbone takes twice as long as the forward pass."""
  passes = stage.order.steps * stage.order.batch_size * (1 if stage.frozen_backbone else 3)
  if stage.has_constant_features:  # every image once, whatever the number of epochs
    passes = sum(len(getattr(stage.dataset, split)[1]) for split in stage.dataset.splits)
  return passes * operations / (RATE * decode.cores())
