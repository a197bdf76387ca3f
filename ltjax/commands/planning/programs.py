"""The programs of a stage, compiled for a topology from shapes alone."""

import re
import time
from typing import NamedTuple

import jax
import numpy as np

from ltjax.commands.planning import hlo, traffic
from ltjax.commands.planning.topologies import GiB, Topology
from ltjax.data import evaluate, feed, tally
from ltjax.distributed import platforms, sharding
from ltjax.stage import Stage

_COMPILED = {}  # {(topology, name, program before it is compiled): Program}; the stages of a run are evaluated alike


class Program(NamedTuple):
  """A compiled program; all numbers are of one device.

  Args:
    name: of it.
    memory: bytes by kind: arguments, results (without the memory they take over), temporaries, code.
    flops: operations.
    traffic: bytes read and written in its main memory, see `traffic.moved`.
    collectives: by kind.
    loops: how many loops; operations, traffic and collectives count the body of each once.
    seconds: of compiling.
    excess: why it does not fit into the device's memory, in the compiler's words; empty where it does.
    accessed: bytes as the compiler adds them up, with those that stay on the chip.
    sources: where the traffic comes from, the most first.
  """

  name: str
  memory: dict[str, int]
  flops: float
  traffic: float
  collectives: list[hlo.Collective]
  loops: int
  seconds: float
  excess: str = ""
  accessed: float = 0.0
  sources: tuple[traffic.Source, ...] = ()

  @property
  def bytes(self) -> int:
    """Memory of all kinds."""
    return sum(self.memory.values())


def train(stage: Stage, topology: Topology, count: int = 1) -> Program:
  """A call of `count` training steps, with all transforms that ever run at once."""
  return _once("train step", lowered_train(stage, topology, count), topology)


def evaluation(stage: Stage, topology: Topology) -> Program:
  """One evaluation step."""
  return _once("evaluation step", lowered_evaluation(stage, topology), topology)


def lowered_train(stage: Stage, topology: Topology, count: int = 1):
  """The training step before it is compiled, or `count` of them in one call, as many as the stage takes."""
  with platforms.planned(topology.platform):
    clock = max((stage.order.clock(epoch * stage.order.steps_per_epoch) for epoch in range(stage.order.epochs)),
                key=lambda clock: sum(stage.active(clock)))
    data, scalars = _everywhere(stage.constants, topology), stage.scalars(clock)
    lead = (count,) if count > 1 else ()
    scalars = jax.tree.map(lambda value: jax.ShapeDtypeStruct((*lead, *np.shape(value)), value.dtype), scalars)
    batch = _with(_batch(stage, lead), sharding.split(topology.mesh, axis=len(lead)))
    return stage.train_steps[count].lower(stage.like, data, batch, _everywhere(scalars, topology))


def lowered_evaluation(stage: Stage, topology: Topology):
  """The evaluation step before it is compiled."""
  with platforms.planned(topology.platform):
    dataset, size = stage.dataset, evaluation_batch(stage)
    step = evaluate.compiled_step(stage.model, stage.augmentation, topology.mesh, streamed=stage.streamed)
    data = feed.statistics(dataset) if stage.streamed else feed.arrays(dataset, "test")
    batch, valid = _split((_examples(stage, (size,)), jax.ShapeDtypeStruct((size,), bool)), topology)
    variables, data, counts = (_everywhere(tree, topology) for tree in (
        stage.shapes, data, tally.zeros(len(stage.class_counts))))
    return step.lower(variables, data, batch, valid, counts)


def evaluation_batch(stage: Stage) -> int:
  """The images of an evaluation step."""
  return evaluate.shared_batch(min(stage.settings.eval_batch_size, len(stage.dataset.test[1])), stage.mesh)


def _batch(stage: Stage, lead: tuple[int, ...]):
  streams = len(stage.spec.draws)
  return _examples(stage, (*lead, stage.order.batch_size, *((streams,) if streams > 1 else ())))


def _examples(stage: Stage, lead: tuple[int, ...]):
  """A batch of the feed as shapes."""
  if not stage.streamed:
    return jax.ShapeDtypeStruct(lead, np.int32)
  images = stage.dataset.train[0]
  shape = images.shape[1:] if isinstance(images, np.ndarray) else stage.image_shape[1:]
  return dict(images=jax.ShapeDtypeStruct((*lead, *shape), np.uint8), labels=jax.ShapeDtypeStruct(lead, np.int32))


def _with(tree, where):
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), tree)


def _everywhere(tree, topology: Topology):
  return _with(tree, sharding.replicated(topology.mesh))


def _split(tree, topology: Topology):
  return _with(tree, sharding.split(topology.mesh))


def _once(name: str, lowered, topology: Topology) -> Program:
  key = (topology.name, name, lowered.as_text())
  if key not in _COMPILED:
    _COMPILED[key] = _compiled(name, lowered)
  return _COMPILED[key]


def _compiled(name: str, lowered) -> Program:
  began = time.perf_counter()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    used = re.search(r"Used ([\d.]+)([KMG]) of ([\d.]+)([KMG])", str(error))
    size = int(float(used[1]) * dict(K=2**10, M=2**20, G=GiB)[used[2]]) if used else 0
    why = used[0].lower() if used else " ".join(str(error).split())[:200]
    return Program(name, dict(all=size), 0.0, 0.0, [], 0, time.perf_counter() - began, why)
  seconds = time.perf_counter() - began
  sizes, costs, text = compiled.memory_analysis(), compiled.cost_analysis() or {}, compiled.as_text()
  memory = dict(arguments=sizes.argument_size_in_bytes,
                results=sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
                temporaries=sizes.temp_size_in_bytes, code=sizes.generated_code_size_in_bytes)
  sources = traffic.by_source(traffic.moved(text))
  return Program(name, memory, costs.get("flops", 0.0), sum(source.bytes for source in sources), hlo.collectives(text),
                 hlo.loops(text), seconds, accessed=costs.get("bytes accessed", 0.0), sources=sources)
