"""How long a stage takes at best, from its compiled programs and the published peaks of the chip."""

import math
from typing import NamedTuple

from ltjax.commands.planning.programs import Program, evaluation_batch
from ltjax.commands.planning.topologies import Topology
from ltjax.stage import Stage

_HOP = 1e-6  # seconds from a chip to its neighbour; an estimate, as nobody publishes it
# Matrix products of float32 numbers: on TPUs XLA takes one bfloat16 pass by default, on NVIDIA's cards TF32.
_FLOAT32_ON_GPU = 0.5


class Bound(NamedTuple):
  """The estimated least time of a program, in seconds, by what takes it.

  Compute and memory overlap, so the larger counts. The interconnect is added: BatchNorm's statistics are needed at
  once, and nothing is there to hide them behind.
  """

  compute: float
  memory: float
  interconnect: float

  @property
  def seconds(self) -> float:
    """Of one call."""
    return max(self.compute, self.memory) + self.interconnect

  @property
  def by(self) -> str:
    """What takes most of it."""
    return max(self._fields, key=lambda field: getattr(self, field))


def bound(program: Program, topology: Topology, *, float32: bool, repeats: int = 1) -> Bound | None:
  """The bound of a program; None where the peaks of the chip are not known.

  Args:
    program: compiled for
    topology: which has the peaks.
    float32: whether its matrix products are in float32.
    repeats: how often the loop that is most of it runs, as the compiler counts a loop's body once.
  """
  chip = topology.chip
  if chip is None:
    return None
  flops = chip.flops * (_FLOAT32_ON_GPU if float32 and topology.platform == "gpu" else 1)
  devices, count = topology.mesh.devices.size, sum(each.count for each in program.collectives)
  moved = sum(each.bytes * (2 if each.kind == "all-reduce" else 1) for each in program.collectives)
  hops = devices ** (1 / 2) if topology.platform == "tpu" else 1
  interconnect = moved * (devices - 1) / devices / chip.links + count * hops * _HOP if devices > 1 else 0.0
  return Bound(repeats * program.flops / flops, repeats * program.traffic / chip.bandwidth, repeats * interconnect)


class Times(NamedTuple):
  """Estimated least times of a stage.

  Args:
    step, evaluation: seconds of one step and of one evaluation of the test set.
    images: a second, of all devices, in training.
    epoch: hours of one epoch of steps.
    total: hours of the stage, evaluations included.
    device_hours: of all chips.
  """

  step: float
  evaluation: float
  images: float
  epoch: float
  total: float
  device_hours: float


def times(stage: Stage, step: Bound, evaluation: Bound | None, topology: Topology) -> Times:
  """The times of a stage with such bounds."""
  order, settings, seconds = stage.order, stage.settings, 0.0
  if evaluation:
    seconds = math.ceil(len(stage.dataset.test[1]) / evaluation_batch(stage)) * evaluation.seconds
  rounds = math.ceil(order.epochs / settings.eval_every_epochs)
  total = (order.steps * step.seconds + rounds * seconds) / 3600
  images = order.batch_size * len(stage.spec.samplers) / step.seconds
  return Times(step.seconds, seconds, images, order.steps_per_epoch * step.seconds / 3600, total,
               total * topology.chips)
