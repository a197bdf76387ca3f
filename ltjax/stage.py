"""The stages of a run as objects, built once from the config: everything below the loop starts from these."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ltjax import config as configs
from ltjax import optim
from ltjax import step as steps
from ltjax.augment import compose
from ltjax.config import bind, check
from ltjax.config.spec import RunSpec, StageSpec
from ltjax.data import feed, prng, samplers
from ltjax.data.evaluate import Evaluator, Extractor
from ltjax.data.order import Order
from ltjax.distributed import platforms, sharding
from ltjax.errors import ConfigError
from ltjax.schedules import Clock
from ltjax.step import TrainState


class Stage:
  """A stage made ready to run; nothing is compiled, drawn or read before it is used.

  Attributes:
    name: of the stage, its block and its folder.
    spec: its blocks, bound.
    settings: the numbers of the run.
    dataset: what it trains and is tested on.
    mesh: the devices.
    model: backbone and head.
    order: which example is at which index of which batch.
    optimizer: with the parameters it trains.
    augmentation: of its images.
    objective: what it minimises.
    posthoc: the methods that change its model after training.
  """

  def __init__(self, spec: StageSpec, run: RunSpec, dataset, mesh: jax.sharding.Mesh):
    self.name, self.spec, self.settings, self.dataset, self.mesh = spec.name, spec, run.settings, dataset, mesh
    self.streamed, self.class_counts, self.objective = run.streamed, dataset.class_counts, spec.objective
    self.posthoc = tuple(block for block in run.posthoc if block.stage == spec.name)
    self.model, self.augmentation = spec.model(self.class_counts), augmentation(spec, dataset)
    self.order = Order(dataset.train[1], len(self.class_counts), batch_size=spec.batch_size, epochs=spec.epochs,
                       seed=run.settings.seed, stage=spec.name,
                       samplers=[sampler(call, spec.name, self.class_counts) for call in spec.samplers])
    self.optimizer = optim.make(spec.optimizer, check.check_trained(spec, self.shapes["params"]), **spec.around)
    self._class_weights = None

  # -- parameters -----------------------------------------------------------------------------------------------------

  @property
  def image_shape(self) -> tuple[int, int, int, int]:
    """[1 h w c]: what the network is initialised with."""
    images, size = self.dataset.train[0], self.augmentation.size
    if not isinstance(images, np.ndarray):
      return 1, size, size, 3
    return (1, size, size, images.shape[-1]) if size else (1, *images.shape[1:])

  @functools.cached_property
  def shapes(self) -> dict:
    """{"params", "batch_stats"} as shapes and types."""
    return check.parameter_shapes(self.spec, self.model, self.image_shape)

  @property
  def like(self) -> TrainState:
    """Shapes, types and shardings of a state."""
    return self.on_devices(jax.eval_shape(lambda: self.wrap(self.init())))

  def on_devices(self, shapes):
    """`shapes` with the sharding of a state."""
    everywhere = sharding.replicated(self.mesh)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), shapes)

  def init(self) -> dict:
    """Draws {"params", "batch_stats"}.

    It is not compiled as a whole: XLA takes longer over one program that draws every kernel than the draws take.
    """
    key = prng.stream(self.settings.seed, self.name, "init")
    variables = self.model.init(key, jnp.zeros(self.image_shape), train=False)
    return dict(params=variables["params"], batch_stats=variables.get("batch_stats", {}))

  def wrap(self, variables: dict) -> TrainState:
    """Such variables as a state at step 0."""
    return TrainState(
        step=jnp.zeros((), jnp.int32), opt_state=self.optimizer.init(variables["params"]),
        loss_state=self.objective.init_state(len(self.class_counts)),
        ema=self.optimizer.init_average(**variables), window=steps.init_window(), **variables)

  def make_state(self, variables: dict) -> TrainState:
    """`wrap`, on the devices."""
    return sharding.replicate(self.wrap(variables), self.mesh)

  def with_new_window(self, state: TrainState) -> TrainState:
    """`state` after its window was logged."""
    return state.replace(window=sharding.replicate(steps.init_window(), self.mesh))

  # -- training -------------------------------------------------------------------------------------------------------

  @functools.cached_property
  def batch(self) -> Callable[[int], Any]:
    """The training examples: step -> this process's rows of its batch, on the host."""
    return feed.make(self.dataset, self.order, self.augmentation, self.mesh, streamed=self.streamed,
                     seed=self.settings.seed, stage=self.name)

  @property
  def constants(self) -> dict:
    """The constant arrays of the step, on the host, and the stage's random key."""
    return feed.constants(self.dataset, self.streamed) | dict(
        class_counts=self.class_counts.astype(np.float32), key=prng.stream(self.settings.seed, self.name))

  @functools.cached_property
  def data(self) -> dict:
    """`constants`, on the devices."""
    return sharding.replicate(self.constants, self.mesh)

  @functools.cached_property
  def parts(self) -> steps.Parts:
    """What the step is made of."""
    transform = feed.make_transform(feed.reader(self.streamed), self.augmentation, self.spec.transforms, self.spec.join)
    return steps.Parts(self.model, self.optimizer, self.objective, transform, self.spec.batch_norm,
                       self.settings.on_nonfinite)

  @functools.cached_property
  def chunk(self) -> int:
    """The larger number of steps a call."""
    # Fifty batches of images would fill a large part of a device's memory, and one such step is long enough.
    return self.settings.steps_per_call or (1 if platforms.target() == "cpu" or self.streamed else 50)

  @functools.cached_property
  def train_steps(self) -> dict[int, Callable]:
    """{steps a call: the compiled function}."""
    step, on_cpu = steps.make_train_step(self.parts), platforms.target() == "cpu"
    whole = sharding.replicated(self.mesh)
    return {count: jax.jit(function, donate_argnums=0, out_shardings=whole) for count, function in (
        (self.chunk, steps.repeat(step, self.chunk, unroll=on_cpu)), (1, step))}

  def active(self, clock: Clock) -> tuple[bool, ...]:
    """Which transforms run at `clock`; each combination is a compiled program of its own."""
    return tuple(_value(call, getattr(call.function, "off_at_zero", ""), clock) != 0
                 for call in self.spec.transforms)

  def scalars(self, clock: Clock) -> dict:
    """Every scheduled value at `clock`, as the float32 arrays that enter the compiled step."""
    objective = self.objective
    values = dict(
        lr=self.spec.lr(clock), loss=objective.loss.at(clock), adjust=objective.adjust.at(clock) if objective.adjust
        else {}, transforms=tuple(call.at(clock) if active else None for call, active in zip(
            self.spec.transforms, self.active(clock), strict=True)))
    if self.spec.class_weights:
      values["class_weights"] = self._weights(self.spec.class_weights.at(clock))
    return jax.tree.map(np.float32, values) | dict(step=np.int32(clock.step))

  def _weights(self, scheduled: dict) -> np.ndarray:
    """The class weights [c], computed on the host once for each value of their schedules."""
    if self._class_weights is None or self._class_weights[0] != scheduled:
      with jax.transfer_guard("allow"):
        self._class_weights = scheduled, np.asarray(self.spec.class_weights(self.class_counts, **scheduled))
    return self._class_weights[1]

  def count(self, first: int, boundary: int) -> int:
    """How many steps from `first` go into one call: a chunk of one and the same program, or else 1."""
    if boundary - first < self.chunk:
      return 1
    programs = {self.active(self.order.clock(step)) for step in range(first, first + self.chunk)}
    return self.chunk if len(programs) == 1 else 1

  def batches(self, first: int, count: int):
    """Batches and scheduled values of `count` steps from `first`, on the devices: [b] for one step, else [count b].

    A batch is indices, or images and labels; with several streams, each has one more axis behind b.
    """
    batches = [self.batch(step) for step in range(first, first + count)]
    scalars = [self.scalars(self.order.clock(step)) for step in range(first, first + count)]
    if count == 1:
      batches, scalars = batches[0], scalars[0]
    else:
      batches, scalars = (jax.tree.map(lambda *values: np.stack(values), *part) for part in (batches, scalars))
    return sharding.place(batches, self.mesh, axis=int(count > 1)), sharding.replicate(scalars, self.mesh)

  # -- evaluation -----------------------------------------------------------------------------------------------------

  @functools.cached_property
  def evaluators(self) -> dict[str, Evaluator]:
    """What counts predictions on "test" and, where images are held out, on "held_out"."""
    return {split: Evaluator(self.model, self.dataset, split, self.augmentation, mesh=self.mesh,
                             batch_size=self.settings.eval_batch_size, streamed=self.streamed)
            for split in ("test", "held_out") if getattr(self.dataset, split)}

  def extractor(self, variables: dict, batch_size: int = 0) -> Extractor:
    """Features and logits of images by this stage's model with `variables`."""
    return Extractor(self.model, variables, self.augmentation, mean=self.dataset.mean, std=self.dataset.std,
                     batch_size=batch_size or self.settings.eval_batch_size, mesh=self.mesh)


def build(config: ConfigDict | RunSpec, dataset, mesh: jax.sharding.Mesh | None = None) -> tuple[Stage, ...]:
  """All stages of a config as objects.

  Args:
    config: a config, or what `config.parse` made of it.
    dataset: a `data.sources.Dataset`.
    mesh: the devices; all that there are by default.

  Raises:
    ConfigError: anything in the config that could not run, on this data set.
  """
  spec = config if isinstance(config, RunSpec) else configs.parse(config)
  mesh = mesh or sharding.data_mesh()
  check.check_data(spec, dataset, mesh.devices.size)
  return tuple(Stage(stage, spec, dataset, mesh) for stage in spec.stages)


def augmentation(spec: StageSpec, dataset) -> feed.Augmentation:
  """The augmentation of a stage, for images such as the data set's: files are cut on the host."""
  operations, boxes = [(call.name, call.function, call) for call in spec.augment], None
  if not isinstance(dataset.train[0], np.ndarray):
    cut = spec.augment[0]
    options = {key: value for key, value in cut.constants.items() if key != "size"}
    boxes, operations = functools.partial(cut.function.boxes, **options), operations[1:]
  evaluate = feed.plain
  if spec.size and boxes is None:
    evaluate = functools.partial(feed.resized, size=spec.size)
  return feed.Augmentation(spec.size, boxes, compose.compose(operations), evaluate)


def sampler(call, where: str, class_counts: np.ndarray) -> samplers.Cycle | Callable[[Clock], np.ndarray] | None:
  """What `Order` draws from: Clock -> class probabilities [c], a cycle over the classes, or None for a permutation."""
  if getattr(call.function, "permutes", False):
    return None
  if getattr(call.function, "cycles", False):
    return bind.at_path(f"{where}.sampler", call, class_counts)
  return lambda clock: _probabilities(call, where, class_counts, clock)


def _probabilities(call, where: str, class_counts: np.ndarray, clock: Clock) -> np.ndarray:
  found = np.asarray(call(class_counts, **call.at(clock)), np.float64)
  if found.shape != class_counts.shape or not (found >= 0).all() or not np.isclose(found.sum(), 1):
    raise ConfigError(f"{where}.sampler: {call.name} gives {found[:5]} ..., expected {len(class_counts)} probabilities "
                      "that sum to 1")
  return found


def _value(call, key: str, clock: Clock) -> Any:
  """The value of a hyper-parameter at `clock`; None where the call has none of this name."""
  return call.at(clock).get(key, call.constants.get(key))
