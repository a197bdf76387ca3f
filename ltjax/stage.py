"""The stages of a run as objects, built once from the config; the loop and the commands start from them."""

import copy
import functools
import pathlib
import re
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
from ltjax.data import extract, feed, prng, samplers, sources
from ltjax.data.evaluate import Evaluator, Extractor
from ltjax.data.order import Order
from ltjax.distributed import platforms, processes, sharding
from ltjax.errors import ConfigError
from ltjax.models import preprocess
from ltjax.report.progress import Progress
from ltjax.schedules import Clock
from ltjax.step import TrainState

RESIDENT = 2**30  # bytes of features that a device is asked to hold


class Stage:
  """A stage, ready to run; it compiles, draws and reads nothing before that is used.

  Attributes:
    name: the name of the stage, its config block and its folder.
    spec: its bound blocks.
    settings: the run's numbers.
    dataset: the images for training and testing.
    mesh: the devices.
    model: backbone and head.
    order: which example is at which index of which batch.
    optimizer: the optimiser, which knows the parameters to train.
    augmentation: the augmentation of the images.
    objective: the loss that it minimises.
    posthoc: the methods that change its model after training.
  """

  def __init__(self, spec: StageSpec, run: RunSpec, dataset, mesh: jax.sharding.Mesh):
    self.name, self.spec, self.settings, self.dataset, self.mesh = spec.name, spec, run.settings, dataset, mesh
    self.streamed, self.class_counts, self.objective = run.streamed, dataset.class_counts, spec.objective
    self.pretrained, self._upto = run.pretrained, run.stages[:[each.name for each in run.stages].index(spec.name) + 1]
    self.posthoc = tuple(block for block in run.posthoc if block.stage == spec.name)
    self.model = spec.model(self.class_counts)
    self.augmentation = augmentation(spec, dataset, run.interpolation or "bilinear", run.test_crops)
    self.order = self._order(dataset)
    self.optimizer = optim.make(spec.optimizer, check.check_trained(spec, self.shapes["params"]), **spec.around)
    self._class_weights = None

  def _order(self, dataset) -> Order:
    spec, counts = self.spec, dataset.class_counts
    second = dataset.held_out_counts if spec.draws_held_out else counts
    samplers = [sampler(call, spec.name, own) for call, own in zip(spec.samplers, (counts, second), strict=False)]
    return Order(dataset.train[1], len(counts), batch_size=spec.batch_size, epochs=spec.epochs,
                 seed=self.settings.seed, stage=spec.name, samplers=samplers, draws=spec.draws,
                 others=dataset.held_out[1] if spec.draws_held_out else None)

  @functools.cached_property
  def drawn(self):
    """The data set whose training images are what the indices of a batch mean."""
    if not self.spec.draws_held_out:
      return self.dataset
    return self.dataset._replace(train=tuple(
        np.concatenate(parts) for parts in zip(self.dataset.train, self.dataset.held_out, strict=True)))

  # -- parameters -----------------------------------------------------------------------------------------------------

  @property
  def image_shape(self) -> tuple[int, int, int, int]:
    """[1 h w c], or [1 d] of features: the shape that initialises the network."""
    images, size = self.dataset.train[0], self.augmentation.size
    if self.dataset.holds_features:
      return 1, *images.shape[2:]
    if self.dataset.holds_files:
      return 1, size, size, 3
    return (1, size, size, images.shape[-1]) if size else (1, *images.shape[1:])

  @functools.cached_property
  def shapes(self) -> dict:
    """{"params", "batch_stats"} as shapes and types."""
    return check.parameter_shapes(self.spec, self.model, self.image_shape)

  @functools.cached_property
  def frozen(self) -> tuple[str, ...]:
    """The paths of the backbone's parameters that neither this stage nor one before it changes."""
    patterns = [pattern for spec in self._upto for pattern in (*spec.train, *spec.reset)]
    return tuple(path for path in optim.flat(self.shapes["params"]) if path.startswith("backbone/") and not any(
        re.fullmatch(pattern, path) for pattern in patterns))

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

    Not compiled: XLA takes longer to compile one program that draws every kernel than the draws take.
    """
    key = prng.stream(self.settings.seed, self.name, "init")
    return check.both(self.model.init(key, jnp.zeros(self.image_shape), train=False))

  def wrap(self, variables: dict) -> TrainState:
    """`variables`, as `init` returns them, as a state at step 0."""
    return TrainState(
        step=jnp.zeros((), jnp.int32), opt_state=self.optimizer.init(variables["params"]),
        loss_state=(self.objective.init_state(len(self.class_counts)) or {}) | self._weigher() or None,
        ema=self.optimizer.init_average(**variables), window=steps.init_window(), **variables)

  def _weigher(self) -> dict:
    """{"weigher": the first state} of a transform that learns weights with one; else nothing."""
    init = getattr(self.spec.join and self.spec.join.function, "init", None)
    if init is None:
      return {}
    given = {name: value for name, value in self.spec.join.constants.items() if name in bind.signature(init)}
    return dict(weigher=init(prng.stream(self.settings.seed, self.name, "weigher"), **given))

  def make_state(self, variables: dict) -> TrainState:
    """`wrap`, on the devices."""
    return sharding.replicate(self.wrap(variables), self.mesh)

  def with_new_window(self, state: TrainState) -> TrainState:
    """`state` with an empty window, after the log has reported it."""
    return state.replace(window=sharding.replicate(steps.init_window(), self.mesh))

  # -- training -------------------------------------------------------------------------------------------------------

  @functools.cached_property
  def batch(self) -> Callable[[int], Any]:
    """The training examples: step -> this process's rows of its batch, on the host."""
    return feed.make(self.drawn, self.order, self.augmentation, self.mesh, streamed=self.streamed,
                     seed=self.settings.seed, stage=self.name)

  @property
  def constants(self) -> dict:
    """The constant arrays of the step, on the host, and the stage's random key."""
    return feed.constants(self.drawn, self.streamed) | dict(
        class_counts=self.class_counts.astype(np.float32), key=prng.stream(self.settings.seed, self.name))

  @functools.cached_property
  def data(self) -> dict:
    """`constants`, on the devices."""
    return sharding.replicate(self.constants, self.mesh)

  @functools.cached_property
  def parts(self) -> steps.Parts:
    """The parts of the training step."""
    transform = feed.make_transform(feed.reader(self.streamed), self.augmentation, self.spec.transforms,
                                    self.spec.join, self.order.steps)
    return steps.Parts(self.model, self.optimizer, self.objective, transform, self.spec.batch_norm,
                       self.settings.on_nonfinite)

  @functools.cached_property
  def chunk(self) -> int:
    """The larger number of steps per call; the other is 1."""
    # Many steps per call hide the host's overhead. Streamed images take one: fifty batches of them would fill a large
    # part of a device's memory, and one such step is long enough.
    images = not self.dataset.holds_features
    return self.settings.steps_per_call or (
        1 if self.streamed or images and platforms.target() == "cpu" else 50)

  @functools.cached_property
  def train_steps(self) -> dict[int, Callable]:
    """{steps per call: the compiled function}."""
    step = steps.make_train_step(self.parts)
    on_cpu = platforms.target() == "cpu" and not self.dataset.holds_features
    jit = functools.partial(jax.jit, donate_argnums=0, out_shardings=sharding.replicated(self.mesh),
                            compiler_options=platforms.compiler_options())
    return {self.chunk: jit(steps.repeat(step, self.chunk, unroll=on_cpu)), 1: jit(step)}

  def active(self, clock: Clock) -> tuple[bool, ...]:
    """Which transforms run at `clock`; each combination compiles its own program."""
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
    """The number of steps from `first` in the next call: a chunk if all its steps run the same program, else 1."""
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

  def progress(self, done: int) -> Progress:
    """What shows how far this stage is, which begins or goes on at step `done`."""
    return Progress(self.name, steps=self.order.steps, done=done, epochs=self.order.epochs,
                    batch_size=self.order.batch_size, shown=processes.is_first())

  # -- features that are computed once --------------------------------------------------------------------------------

  @property
  def frozen_backbone(self) -> bool:
    """Whether no parameter of the backbone is trained."""
    factors = jax.tree.leaves(self.optimizer.factors["backbone"], is_leaf=lambda factor: factor is None)
    return all(factor is None for factor in factors)

  @property
  def has_constant_features(self) -> bool:
    """Whether an image has the same features in every step, so that it suffices to compute them once.

    That is so where nothing in the backbone is trained or moves, nothing is augmented, and the head takes features.
    """
    return (self.settings.cache_features == "auto" and not self.dataset.holds_features
            and self.frozen_backbone and self.spec.batch_norm == "eval"
            and not self.spec.transforms and self.augmentation.crops != "five"  # their logits are averaged
            and not getattr(self.model.head, "takes_maps", False)
            and not any(getattr(call.function, "augments", True) for call in self.spec.augment))

  def on_features(self, variables: dict, folder: pathlib.Path, stops: Callable[[jax.Array], bool]) -> "Stage | None":
    """This stage with the features of its images in their place: the same state, examples, order and head.

    Args:
      variables: {"params", "batch_stats"} of the backbone that computes them.
      folder: where they are kept.
      stops: whether to stop; then the result is None, and the next call goes on.
    """
    dataset = extract.cached(self, variables, folder, stops)
    if dataset is None:
      return None
    return self._with(dataset=dataset, augmentation=feed.of_features(), model=self.model.on_features(),
                      streamed=dataset.train[0].nbytes > RESIDENT)

  def _with(self, **parts) -> "Stage":
    found = copy.copy(self)
    for name in ("drawn", "batch", "data", "parts", "chunk", "train_steps", "evaluators"):
      found.__dict__.pop(name, None)
    found.__dict__.update(parts)
    return found

  # -- the learning rate ----------------------------------------------------------------------------------------------

  def with_rate(self, base: float) -> "Stage":
    """This stage with one of its candidates for the learning rate; what is compiled stays."""
    found = copy.copy(self)
    found.spec = self.spec._replace(lr=self.spec.rates[base])
    return found

  def on_part(self, fraction: float) -> "Stage | None":
    """This stage on features of which a part is held out; None where there are too few for that.

    Images that the data set holds out already are that part. The others must fill a batch.
    """
    dataset = self.dataset
    if dataset.held_out is None:
      if dataset.class_counts.max() < 2:  # there is no image to spare
        return None
      kept, held = sources.hold_out(dataset.train[1], fraction, self.settings.seed)
      train, held_out = (tuple(array[places] for array in dataset.train) for places in (kept, held))
      dataset = dataset._replace(train=train, held_out=held_out, selected=dataset.selected[kept])
    if len(dataset.train[1]) < self.spec.batch_size:
      return None
    return self._with(dataset=dataset, class_counts=dataset.class_counts, order=self._order(dataset))

  # -- evaluation -----------------------------------------------------------------------------------------------------

  @functools.cached_property
  def evaluators(self) -> dict[str, Evaluator]:
    """The evaluators of "test" and, if images are held out, "held_out"."""
    return {split: Evaluator(self.model, self.dataset, split, self.augmentation, mesh=self.mesh,
                             batch_size=self.settings.eval_batch_size, streamed=self.streamed)
            for split in ("test", "held_out") if getattr(self.dataset, split)}

  def extractor(self, variables: dict, batch_size: int = 0, *, one_view: bool = False) -> Extractor:
    """Computes features and logits of images with this stage's model and `variables`.

    With `one_view`, one crop takes the place of five.
    """
    augmentation = self.augmentation.one_view if one_view else self.augmentation
    return Extractor(self.model, variables, augmentation, mean=self.dataset.mean, std=self.dataset.std,
                     batch_size=batch_size or self.settings.eval_batch_size, mesh=self.mesh)


def build(config: ConfigDict | RunSpec, dataset, mesh: jax.sharding.Mesh | None = None) -> tuple[Stage, ...]:
  """All stages of a config as objects.

  Args:
    config: a config, or the result of `config.parse`.
    dataset: a `data.sources.Dataset`.
    mesh: the devices; all that there are by default.

  Raises:
    ConfigError: something in the config cannot run, or not on this data set.
  """
  spec = config if isinstance(config, RunSpec) else configs.parse(config)
  mesh = mesh or sharding.data_mesh()
  check.check_data(spec, dataset, mesh.devices.size)
  spec, dataset = preprocess.resolve(spec, dataset)
  stages = tuple(Stage(stage, spec, dataset, mesh) for stage in spec.stages)
  for stage in stages:
    if len(stage.spec.rates) > 1 and not (stage.has_constant_features or dataset.holds_features):
      raise ConfigError(f"{stage.name}.lr: one of several learning rates is chosen where all that is trained is a head "
                        "on features that are computed once, and this stage trains or augments more; give one")
  return stages


def augmentation(spec: StageSpec, dataset, interpolation: str = "bilinear", crops: str = "") -> feed.Augmentation:
  """The augmentation of a stage for the data set's images; files are cropped on the host."""
  calls, boxes = [_interpolated(call, interpolation) for call in spec.augment], None
  operations = [(call.name, call.function, call) for call in calls]
  if dataset.holds_features:
    return feed.of_features(operations)
  arrays = not dataset.holds_files
  if not arrays:
    cut, *operations = calls[0], *operations[1:]
    options = {key: value for key, value in cut.constants.items() if key not in ("size", "interpolation")}
    interpolation = cut.constants.get("interpolation", interpolation)
    boxes = cut.function.boxes and functools.partial(cut.function.boxes, **options)
  resized = spec.size if arrays else 0
  return feed.Augmentation(spec.size, boxes, compose.compose(operations),
                           feed.evaluation(resized, crops, interpolation), interpolation, crops, resized)


def _interpolated(call, interpolation: str):
  """`call` with the run's interpolation, where it takes one and names none."""
  if "interpolation" not in call.arguments:
    return call
  return call._replace(constants=dict(interpolation=interpolation) | call.constants)


def sampler(call, where: str, class_counts: np.ndarray) -> samplers.Cycle | Callable[[Clock], np.ndarray] | None:
  """A sampler for `Order`: Clock -> class probabilities [c], a cycle over the classes, or None for a permutation."""
  if getattr(call.function, "permutes", False):
    return None
  if getattr(call.function, "cycles", False):
    return bind.at_path(f"{where}.sampler", call, class_counts)
  return lambda clock: _probabilities(call, where, class_counts, clock)


def _probabilities(call, where: str, class_counts: np.ndarray, clock: Clock) -> np.ndarray:
  values = np.asarray(call(class_counts, **call.at(clock)), np.float64)
  if values.shape != class_counts.shape or not (values >= 0).all() or not np.isclose(values.sum(), 1):
    raise ConfigError(f"{where}.sampler: {call.name} gives {values[:5]} ..., expected {len(class_counts)} "
                      "probabilities that sum to 1")
  return values


def _value(call, key: str, clock: Clock) -> Any:
  """The value of a hyper-parameter at `clock`; None if the call has none of this name."""
  return call.at(clock).get(key, call.constants.get(key))
