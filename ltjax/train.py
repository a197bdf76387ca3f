"""One stage of training: the loop, read top to bottom. It names no method."""

import collections
import functools
import json
import pathlib
import re
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ltjax import metrics, optim, pretrained, prototypes
from ltjax import step as steps
from ltjax.config import bind as build
from ltjax.data import feed, prng, resident
from ltjax.data.order import Order
from ltjax.distributed import processes, sharding
from ltjax.errors import ConfigError, TrainingError, writing
from ltjax.evaluate import Evaluator
from ltjax.workdir.checkpoint import Checkpoints
from ltjax.workdir.log import Events, Journal

EVENTS, NOT_FINITE = "events.jsonl", "not_finite.json"  # in the work folder


class Interrupted(Exception):
  """The run was asked to stop and has saved its state; running the same command again continues it."""


class StageResult(NamedTuple):
  """What a stage leaves: its state, its number of parameters, its confusion matrix on the test set.

  `dropped` are the examples that no batch had room for, summed over its epochs.
  """

  state: steps.TrainState
  parameters: int
  confusion: np.ndarray
  dropped: int


class Stage(NamedTuple):
  """A stage made ready to run: order, arrays on the devices, compiled functions."""

  order: Order
  batch: Callable[[int], Any]  # step -> this process's part of its batch, on the host, as `load` takes it
  objective: build.Objective
  load: Callable  # what the step makes of a batch, inside jit
  class_counts: np.ndarray
  mesh: jax.sharding.Mesh
  data: dict  # constant arrays of the training set, and the stage's random key
  init: Callable[[], dict]  # draws {"params", "batch_stats"}
  make_state: Callable[[dict], steps.TrainState]  # such variables at step 0, on the devices
  like: steps.TrainState  # shapes, types and shardings of a state
  train_steps: dict[int, Callable]  # steps a call: the compiled function
  chunk: int  # the larger number of steps a call
  evaluator: Evaluator
  held_out: Evaluator | None  # on the images that the training set was relieved of, if any

  def count(self, first: int, boundary: int) -> int:
    """How many steps from `first` go into one call: a chunk of one and the same program, or else 1."""
    if boundary - first < self.chunk:
      return 1
    programs = {self.objective.generates(self.order.clock(step)) for step in range(first, first + self.chunk)}
    return self.chunk if len(programs) == 1 else 1

  def batches(self, first: int, count: int):
    """Batches and scheduled values of `count` steps from `first`, on the devices: [b] for one step, else [count b].

    A batch is indices, or images and labels; with branches, each has one more axis, of 2, behind b.
    """
    batches = [self.batch(step) for step in range(first, first + count)]
    clocks = [self.order.clock(step) for step in range(first, first + count)]
    scalars = [self.objective.scalars(clock, self.class_counts) | dict(step=np.int32(step))
               for step, clock in enumerate(clocks, first)]
    if count == 1:
      batches, scalars = batches[0], scalars[0]
    else:
      batches, scalars = (jax.tree.map(lambda *values: np.stack(values), *part) for part in (batches, scalars))
    return sharding.place(batches, self.mesh, axis=int(count > 1)), sharding.replicate(scalars, self.mesh)


def prepare(config, name: str, dataset) -> Stage:
  """Everything that stage `name` runs with; compiles nothing yet."""
  block, counts, mesh = config[name], dataset.class_counts, sharding.data_mesh()
  whole, on_cpu = sharding.replicated(mesh), jax.default_backend() == "cpu"
  model, objective = build.model(config, counts, name), build.Objective(block, name)
  samplers = [build.sampler(block.sampler, f"{name}.sampler", counts)]
  if objective.branches:
    samplers.append(build.sampler(objective.branches.sampler, f"{name}.branches.sampler", counts))
  order = Order(dataset.train[1], len(counts), batch_size=block.batch_size, epochs=block.epochs, seed=config.seed,
                stage=name, samplers=samplers)
  images = feed.make(config, name, dataset, order, mesh)
  data = sharding.replicate(images.train | dict(
      class_counts=counts.astype(np.float32), key=prng.stream(config.seed, name)), mesh)
  evaluator, held_out = (getattr(dataset, split) and feed.evaluator(config, model, dataset, split, mesh)
                         for split in ("test", "held_out"))
  make_state, init, tx, factors = state_makers(config, name, counts, feed.image_shape(config, dataset))
  like = abstract(lambda: make_state(init()), whole)
  on_device = {key: value for key, value in config.augment.items() if key not in ("crop", "size")}
  load = resident.make_load(**on_device, mixup=block.mixup, branches=objective.branches is not None, read=images.read)
  train_step = steps.make_train_step(model, tx, factors, objective, load, batch_norm=block.batch_norm,
                                     on_nonfinite=config.on_nonfinite)
  # Fifty batches of photographs would be a large part of a device's memory, and a step of them is long enough.
  chunk = config.steps_per_call or (1 if on_cpu or feed.streamed(config) else 50)
  train_steps = {count: jax.jit(step, donate_argnums=0, out_shardings=whole) for count, step in (
      (chunk, steps.repeat(train_step, chunk, unroll=on_cpu)), (1, train_step))}

  def place(variables):
    return sharding.replicate(make_state(variables), mesh)

  return Stage(order, images.batch, objective, load, counts, mesh, data, init, place, like, train_steps, chunk,
               evaluator, held_out)


def run_stage(config, name: str, dataset, workdir: pathlib.Path, *, before: str | None, stop: Callable[[], bool],
              strict: bool = False) -> StageResult:
  """Trains stage `name` to its end, from its newest checkpoint, from stage `before`'s model, or from scratch.

  Args:
    config: the whole config.
    name: the stage.
    dataset: a `sources.Dataset`.
    workdir: the run's folder; the stage writes to `workdir/name`.
    before: the stage whose model this one continues.
    stop: a function that says whether this process has been asked to stop.
    strict: a damaged checkpoint is an error, instead of a loud return to the one before it.

  Raises:
    Interrupted: after `stop()`, with the state saved.
    TrainingError: a loss or a gradient that is not finite, with the state before it saved.
  """
  block, counts, folder = config[name], dataset.class_counts, workdir / name
  processes.at(f"start of {name}")
  stage = prepare(config, name, dataset)
  order, objective, whole = stage.order, stage.objective, sharding.replicated(stage.mesh)
  stops = processes.Agreement(stop, stage.mesh)

  # -- state: restore, or bridge from the stage before, or initialise --------------------------------------------------
  opened = functools.partial(Checkpoints, keep=config.keep_checkpoints, strict=strict, on_fallback=functools.partial(
      Events(workdir / EVENTS).write, "checkpoint_fallbacks"))
  checkpoints = opened(folder / "checkpoints")
  if checkpoints.latest() is not None:
    state = checkpoints.restore(stage.like)
  elif before:
    _, init_before, _, _ = state_makers(config, before, counts, feed.image_shape(config, dataset))
    with opened(workdir / before / "checkpoints") as earlier:
      variables = earlier.restore_model(abstract(init_before, whole))
    taken = take_over(variables, stage.init, block.reset)
    state = stage.make_state(prototypes.fill(config, name, before, dataset, taken, variables, folder))
  else:
    drawn = stage.init()
    state = stage.make_state(pretrained.into(drawn, config) if config.pretrained else drawn)
  done = start = int(jax.device_get(state.step))
  journal, timing = Journal(folder / "metrics.jsonl", upto=done), Journal(folder / "timing.jsonl", upto=done)

  # -- the loop: {log, evaluate, checkpoint, step}. What the log shows as done at this step is not done again ----------
  confusion, stopping, epoch, began = None, False, order.steps_per_epoch, time.perf_counter()
  log_every, evaluate_every, save_every = (
      config.log_every_steps, config.eval_every_epochs * epoch, config.checkpoint_every_epochs * epoch)
  flight = Flight(config, name, order, objective, workdir, journal)
  bar = tqdm(total=order.steps * block.batch_size, initial=done * block.batch_size, unit="img", unit_scale=True,
             desc=name, dynamic_ncols=True, disable=not processes.is_first())
  with checkpoints, bar, jax.transfer_guard("disallow"):
    while True:
      processes.at(f"{name} step {done}")
      last, now = done == order.steps, dict(step=done, epoch=done / epoch)
      log, evaluate, save = (bool(done) and (done % every == 0 or last)
                             for every in (log_every, evaluate_every, save_every))
      if log or evaluate or save or stopping:
        flight.land(state, checkpoints)
      if log and not journal.has(done, "loss") and (means := mean_since_log(state)):
        loss, accuracy = means
        journal.write(**now, loss=loss, accuracy=accuracy, lr=float(objective.lr(order.clock(done - 1))))
        bar.set_postfix(loss=f"{loss:.3f}", acc=f"{accuracy:.1%}")
        state = state.replace(window=sharding.replicate(steps.init_window(), stage.mesh))
      if evaluate and not stopping and not journal.has(done, "test"):
        confusion = stage.evaluator(state, stops)
        stopping = confusion is None
        if not stopping:
          journal.write(**now, test=metrics.group_accuracy(confusion, counts))
      if save and stage.held_out and not stopping and not journal.has(done, "held_out"):
        held_out = stage.held_out(state, stops)
        stopping = held_out is None
        if not stopping:
          journal.write(**now, held_out=balanced_accuracy(held_out))
      if (save or stopping) and done > start:
        timing.write(step=done, start=start, seconds=time.perf_counter() - began)
        checkpoints.save(state, scores=journal.values("held_out"), wait=last or stopping)
        start, began = done, time.perf_counter()
      if last and (confusion is not None or journal.has(done, "test")):
        break
      if stopping:
        raise Interrupted
      boundary = min(order.steps, *((done // every + 1) * every for every in (log_every, evaluate_every, save_every)))
      count = stage.count(done, boundary)
      state, finite = stage.train_steps[count](state, stage.data, *stage.batches(done, count))
      flight.start(done, finite)
      flight.land(state, checkpoints, but=2)
      checkpoints.check()
      done += count
      bar.update(count * block.batch_size)
      stopping = stops(finite)
  parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  return StageResult(state, parameters, stage.evaluator(state) if confusion is None else confusion,
                     order.dropped * order.epochs)


class Flight:
  """The calls that the devices have not answered yet: whether their numbers are finite is read when they have."""

  def __init__(self, config, name: str, order: Order, objective: build.Objective, workdir: pathlib.Path,
               journal: Journal):
    self._config, self._name, self._order, self._objective = config, name, order, objective
    self._workdir, self._journal, self._calls = workdir, journal, collections.deque()

  def start(self, first: int, finite: jax.Array) -> None:
    """Remembers a call that began with step `first`; `finite` is what it returned of each of its steps."""
    self._calls.append((first, finite))

  def land(self, state: steps.TrainState, checkpoints: Checkpoints, but: int = 0) -> None:
    """Waits for all calls but the newest few; says so, and stops the run or goes on, where a step was not finite."""
    while len(self._calls) > but:
      first, finite = self._calls.popleft()
      for place in np.flatnonzero(~np.atleast_1d(jax.device_get(finite))):
        self._not_finite(first + int(place), state, checkpoints)

  def _not_finite(self, step: int, state: steps.TrainState, checkpoints: Checkpoints) -> None:
    examples = self._order.batch(step).ravel().tolist()
    lr, epoch = float(self._objective.lr(self._order.clock(step))), self._order.steps_per_epoch
    what = (f"{self._name}: the loss, a gradient or a parameter became infinite or NaN in step {step} (epoch "
            f"{step / epoch:.4g}, learning rate {lr:.4g}), of which nothing was learned")
    if self._config.on_nonfinite == "skip":
      self._journal.write(step=step + 1, epoch=(step + 1) / epoch, skipped=examples, skipped_lr=lr)
      skipped = self._journal.count("skipped")
      print(f"WARNING: {what}; skipped, {skipped} by now", file=sys.stderr)
      if skipped > self._config.skip_limit:
        raise TrainingError(f"{what}; that is more than the {self._config.skip_limit} steps that skip_limit allows; "
                            "lower the learning rate or scale")
      return
    checkpoints.save(state, wait=True)  # it has stayed as it was before that step
    if processes.is_first():
      with writing(self._workdir):
        (self._workdir / NOT_FINITE).write_text(json.dumps(dict(
            stage=self._name, step=step, lr=lr, examples=examples), indent=1) + "\n")
    raise TrainingError(f"{what}; the state before it is saved, its images are in {self._workdir / NOT_FINITE}, and "
                        f"`python -m ltjax debug_step {self._workdir}` replays it; lower the learning rate or scale, "
                        "or give --config.on_nonfinite=skip and a new --workdir")


def state_makers(config, name: str, class_counts: np.ndarray | None, image_shape: tuple):
  """(make_state, init, tx, factors) of stage `name`.

  `init()` draws {"params", "batch_stats"}; `make_state` wraps such variables in a state at step 0; `factors` say what
  the optimiser `tx` trains. Nothing here is compiled as a whole: XLA takes longer over one program that draws every
  kernel than the draws take one by one.
  """
  block, model = config[name], build.model(config, class_counts, name)
  num_classes = model.head.num_classes

  def init():
    variables = model.init(prng.stream(config.seed, name, "init"), jnp.zeros(image_shape), train=False)
    return dict(params=variables["params"], batch_stats=variables.get("batch_stats", {}))

  shapes = jax.eval_shape(init)["params"]
  for key in ("reset", "no_decay"):
    optim.check_patterns(block[key], shapes, where=f"{name}.{key}")
  factors = optim.learning_rate_factors(shapes, block.train, block.lr_factors, where=f"{name}.train")
  trained = [path for path, factor in flax.traverse_util.flatten_dict(factors).items() if factor is not None]
  if block.batch_norm == "shift" and any("norm" in path[-2] for path in trained):
    raise ConfigError(f"{name}.batch_norm: 'shift' moves the statistics of a frozen backbone, but {name}.train trains "
                      "BatchNorm's parameters; use 'train', or freeze them")
  tx = optim.sgd(momentum=block.momentum, weight_decay=block.weight_decay, factors=factors,
                 no_decay=block.no_decay)

  def make_state(variables):
    opt_state = tx.init(optim.split(variables["params"], factors)[0])
    return steps.TrainState(step=jnp.zeros((), jnp.int32), opt_state=opt_state, seen_counts=jnp.zeros(num_classes),
                            window=steps.init_window(), **variables)

  return make_state, init, tx, factors


def check_start(config, dataset) -> None:
  """Raises where `pretrained` does not fit; says so where the first stage freezes what nothing has trained."""
  name = config.stages[0]
  _, init, _, factors = state_makers(config, name, dataset.class_counts, feed.image_shape(config, dataset))
  if config.pretrained:
    pretrained.into(jax.eval_shape(init), config)
  elif None in flax.traverse_util.flatten_dict(factors["backbone"]).values():
    print(f"{name}: layers of the backbone stay frozen as they are drawn at random; give trained weights with "
          "--config.pretrained=FILE", file=sys.stderr)


def abstract(function: Callable[[], Any], sharding_):
  """Shapes, types and shardings of what `function()` would give."""
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding_),
                      jax.eval_shape(function))


def take_over(variables: dict, init: Callable[[], dict], reset: tuple) -> dict:
  """The variables of this stage: those of the stage before where the path is the same, the others drawn by `init`.

  Args:
    variables: {"params", "batch_stats"} of the stage before.
    init: draws this stage's.
    reset: regular expressions of parameters that are drawn although the stage before has them.
  """
  wanted = jax.eval_shape(init)
  if jax.tree.structure(wanted) == jax.tree.structure(variables) and not reset:
    return variables
  fresh, taken = init(), {}
  for kind, tree in fresh.items():
    earlier, drawn = (flax.traverse_util.flatten_dict(tree, sep="/") for tree in (variables[kind], tree))
    patterns = reset if kind == "params" else ()
    kept = {path for path in drawn if path in earlier and not any(re.fullmatch(pattern, path) for pattern in patterns)}
    taken[kind] = flax.traverse_util.unflatten_dict(
        {path: earlier[path] if path in kept else drawn[path] for path in drawn}, sep="/")
  return taken


def mean_since_log(state: steps.TrainState) -> tuple[float, float] | None:
  """Mean loss and accuracy since the last line of the log; None where all steps since then were skipped."""
  window = jax.device_get(state.window)
  return tuple(float(window[key] / window["examples"]) for key in ("loss", "correct")) if window["examples"] else None


def balanced_accuracy(confusion: np.ndarray) -> float:
  """Mean accuracy of the classes of which there are images."""
  return float(metrics.per_class_accuracy(confusion)[confusion.sum(axis=1) > 0].mean())
