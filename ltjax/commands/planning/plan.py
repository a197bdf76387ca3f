"""A plan: what the stages of a config need on a topology, as JSON."""

import copy
from collections.abc import Callable

from ml_collections import ConfigDict

from ltjax import stage as stages
from ltjax.commands.planning import estimate, nominal, programs
from ltjax.commands.planning.topologies import PEAKS, Topology
from ltjax.config import load, parse
from ltjax.config.spec import RunSpec
from ltjax.data.sources import Dataset
from ltjax.errors import ConfigError, nearest


def make(config: ConfigDict, topology: Topology, names: tuple[str, ...] = (), *,
         say: Callable[[str], None] = lambda text: None) -> dict:
  """Compiles the programs of all stages, or of those called `names`, and estimates their times.

  Raises:
    LtjaxError: anything in the config that could not run on these devices.
  """
  spec = parse(config)
  dataset, source = nominal.dataset(spec)
  found = {}
  for stage in chosen(spec, dataset, topology, names):
    say(f"compiling {stage.name} for {topology.name}; ResNet-50 takes minutes")
    found[stage.name] = _stage(stage, spec, topology)
  chip = topology.chip
  return dict(
      topology=dict(name=topology.name, platform=topology.platform, kind=topology.mesh.devices.flat[0].device_kind,
                    devices=topology.mesh.devices.size, chips=topology.chips, hosts=topology.hosts,
                    device_peaks=chip and {key: getattr(chip, key) for key in PEAKS}),
      data=dict(name=spec.dataset.name, source=source, classes=len(dataset.class_names),
                train_images=len(dataset.train[1]), test_images=len(dataset.test[1]), streamed=spec.streamed),
      precision=spec.config.precision, stages=found)


def chosen(spec: RunSpec, dataset: Dataset, topology: Topology, names: tuple[str, ...]) -> list[stages.Stage]:
  """The stages to plan."""
  known = tuple(stage.name for stage in spec.stages)
  for name in names:
    if name not in known:
      raise ConfigError(f"--stage: there is no stage {name!r}{nearest(name, known)}; there are {', '.join(known)}")
  spec = spec._replace(pretrained="", reset_head=False)  # shapes are enough: weights need not be here
  return [stage for stage in stages.build(spec, dataset, topology.mesh) if not names or stage.name in names]


def changed(config: ConfigDict, **values: str) -> ConfigDict:
  """A copy of `config` with values as the command line gives them, __ for the dot."""
  config = copy.deepcopy(config)
  for key, text in values.items():
    load.override(config, key.replace("__", "."), text)
  return config


def _stage(stage: stages.Stage, spec: RunSpec, topology: Topology) -> dict:
  train, evaluation = programs.train(stage, topology), programs.evaluation(stage, topology)
  pieces, float32 = stage.spec.around["accumulate"], spec.config.precision == "float32"
  bounds = [estimate.bound(train, topology, float32=float32, repeats=pieces),
            estimate.bound(evaluation, topology, float32=float32)]
  times = None
  if bounds[0] and not train.excess:
    times = estimate.times(stage, bounds[0], bounds[1], topology)._asdict()
  return dict(
      batch_size=stage.order.batch_size, steps=stage.order.steps, epochs=stage.order.epochs,
      evaluation_batch_size=programs.evaluation_batch(stage), accumulate=pieces,
      train=_program(train, bounds[0], topology), evaluation=_program(evaluation, bounds[1], topology),
      estimated=times)


def _program(program: programs.Program, bound: estimate.Bound | None, topology: Topology) -> dict:
  margin = topology.chip and topology.chip.memory - program.bytes
  fits = not program.excess and (margin is None or margin >= 0)
  estimated = None
  if bound and not program.excess:
    estimated = dict(bound._asdict(), seconds=bound.seconds, bound_by=bound.by)
  return dict(
      fits=fits, excess=program.excess, bytes=program.bytes, margin=margin, memory=program.memory,
      flops=program.flops, traffic=program.traffic, accessed=program.accessed,
      intensity=program.flops / program.traffic if program.traffic else None,
      collectives=[each._asdict() for each in program.collectives], loops=program.loops,
      compile_seconds=program.seconds, estimated=estimated)


def fit_batch(config: ConfigDict, topology: Topology, name: str, *, most: int = 4096,
              say: Callable[[str], None] = lambda text: None) -> int:
  """The largest batch of a stage whose training step fits, found by bisection; 0 where none does.

  Args:
    config: of the run.
    topology: of the devices.
    name: of the stage.
    most: images a device that are not exceeded.
    say: told of each trial.
  """
  devices, spec = topology.mesh.devices.size, parse(config)
  dataset, _ = nominal.dataset(spec)
  unit = devices * spec.stage(name).around["accumulate"]

  def fits(count: int) -> bool:
    given = changed(config, **{f"{name}__batch_size": str(count * unit)})
    (stage,) = chosen(parse(given), dataset, topology, (name,))
    program = programs.train(stage, topology)
    found = not program.excess and (topology.chip is None or program.bytes <= topology.chip.memory)
    say(f"{name}: a batch of {count * unit} {'fits' if found else 'does not fit'}")
    return found

  low, high = 0, max(1, spec.stage(name).batch_size // unit)
  most = min(most * devices, len(dataset.train[1])) // unit
  while high <= most and fits(high):
    low, high = high, 2 * high
  high = min(high, most + 1)
  while high - low > max(1, low // 8):
    middle = (low + high) // 2
    low, high = (middle, high) if fits(middle) else (low, middle)
  return low * unit


def variants(config: ConfigDict, topology: Topology) -> dict[str, ConfigDict]:
  """{what changes: config} of the choices that change speed or memory."""
  other = "bf16" if config.precision == "float32" else "float32"
  found = {f"precision={other}": changed(config, precision=other)}
  devices, backbone = topology.mesh.devices.size, parse(config).stages[0].backbone
  if "bn_groups" in backbone.arguments and backbone.constants.get("bn_groups", 1) != devices:
    found[f"bn_groups={devices}"] = changed(config, backbone__bn_groups=str(devices))
  if "remat" in backbone.arguments:
    remat = str(not backbone.constants.get("remat", False))
    found[f"remat={remat}"] = changed(config, backbone__remat=remat)
  pieces = {name: str(2 * config[name].optimizer.get("accumulate", 1)) for name in config.stages}
  found["accumulate doubled"] = changed(
      config, **{f"{name}__optimizer__accumulate": count for name, count in pieces.items()})
  return found
