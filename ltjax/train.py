"""One stage of training: the loop, read top to bottom. It names no method."""

import pathlib
import re
import time
from typing import NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ltjax import build, metrics, optim, prng, sharding
from ltjax import step as steps
from ltjax.checkpoint import Checkpoints
from ltjax.data import resident
from ltjax.data.order import Order
from ltjax.errors import ConfigError, TrainingError
from ltjax.evaluate import Evaluator
from ltjax.journal import Journal


class Interrupted(Exception):
  """The run was asked to stop and has saved its state; running the same command again continues it."""


class StageResult(NamedTuple):
  """What a stage leaves: its state, its number of parameters, its confusion matrix on the test set."""

  state: steps.TrainState
  parameters: int
  confusion: np.ndarray


def run_stage(config, name: str, dataset, workdir: pathlib.Path, *, before: str | None, stop) -> StageResult:
  """Trains stage `name` to its end, from its newest checkpoint, from stage `before`'s model, or from scratch.

  Args:
    config: the whole config.
    name: the stage.
    dataset: a `sources.Dataset`.
    workdir: the run's folder; the stage writes to `workdir/name`.
    before: the stage whose model this one continues.
    stop: a function that says whether the run has been asked to stop.

  Raises:
    Interrupted: after `stop()`, with the state saved.
    TrainingError: a loss that is not finite.
  """
  # -- order, model, arrays on the devices ---------------------------------------------------------------------------
  block, counts, folder = config[name], dataset.class_counts, workdir / name
  mesh = sharding.data_mesh()
  whole = sharding.replicated(mesh)
  model, objective = build.model(config, len(counts)), build.Objective(block, name)
  order = Order(dataset.train[1], len(counts), batch_size=block.batch_size, epochs=block.epochs, seed=config.seed,
                stage=name, probabilities=build.sampler(block.sampler, f"{name}.sampler", counts))
  data = jax.device_put(resident.arrays(dataset, "train") | dict(
      class_counts=counts.astype(np.float32), key=prng.stream(config.seed, name)), whole)
  evaluator = Evaluator(model, jax.device_put(resident.arrays(dataset, "test"), whole), len(counts),
                        batch_size=config.eval_batch_size, mesh=mesh)

  # -- state: restore, or bridge from the stage before, or initialise --------------------------------------------------
  state, tx, factors = init_state(config, name, model, dataset.train[0][:1].shape, whole)
  checkpoints = Checkpoints(folder / "checkpoints")
  if checkpoints.latest() is not None:
    state = checkpoints.restore(state)
  elif before:
    with Checkpoints(workdir / before / "checkpoints") as earlier:
      state = bridge(state, earlier.restore_model(state), block.reset, where=f"{name}.reset")
  done = start = int(jax.device_get(state.step))
  journal, timing = Journal(folder / "metrics.jsonl", upto=done), Journal(folder / "timing.jsonl", upto=done)

  # -- compiled steps --------------------------------------------------------------------------------------------------
  on_cpu = jax.default_backend() == "cpu"
  chunk = config.steps_per_call or (1 if on_cpu else 50)
  load = resident.make_load(**config.augment, mixup=block.mixup)
  train_step = steps.make_train_step(model, tx, factors, objective, load, batch_norm=block.batch_norm)
  compiled = {count: jax.jit(step, donate_argnums=0, out_shardings=whole) for count, step in (
      (chunk, steps.repeat(train_step, chunk, unroll=on_cpu)), (1, train_step))}

  # -- the loop: {step, log, evaluate, checkpoint}, in this order, on which resuming relies ----------------------------
  confusion, log_every, epoch, began = None, config.log_every_steps, order.steps_per_epoch, time.perf_counter()
  evaluate_every, save_every = config.eval_every_epochs * epoch, config.checkpoint_every_epochs * epoch
  bar = tqdm(total=order.steps * block.batch_size, initial=done * block.batch_size, unit="img", unit_scale=True,
             desc=name, dynamic_ncols=True)
  with checkpoints, bar, jax.transfer_guard("disallow"):
    while done < order.steps:
      boundary = min(order.steps, *((done // every + 1) * every for every in (log_every, evaluate_every, save_every)))
      count = chunk if boundary - done >= chunk else 1
      state = compiled[count](state, data, *_batches(order, objective, counts, done, count, mesh))
      done += count
      bar.update(count * block.batch_size)
      last, stopping, now = done == order.steps, stop(), dict(step=done, epoch=done / epoch)

      if done % log_every == 0 or last:
        loss, accuracy = _window(state, name, done)
        journal.write(**now, loss=loss, accuracy=accuracy, lr=float(objective.lr(order.clock(done - 1))))
        bar.set_postfix(loss=f"{loss:.3f}", acc=f"{accuracy:.1%}")
        state = state.replace(window=jax.device_put(steps.init_window(), whole))
      if done % evaluate_every == 0 or last:
        confusion = evaluator(state)
        journal.write(**now, test=metrics.group_accuracy(confusion, counts))
      if done % save_every == 0 or last or stopping:
        _window(state, name, done)
        timing.write(step=done, start=start, seconds=time.perf_counter() - began)
        checkpoints.save(state, wait=last or stopping)
        start, began = done, time.perf_counter()
        if stopping and not last:
          raise Interrupted
  parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  return StageResult(state, parameters, evaluator(state) if confusion is None else confusion)


def init_state(config, name: str, model, image_shape: tuple, sharding_):
  """A fresh state of stage `name`, its optimiser, and the learning-rate factors that say what is trained."""
  block = config[name]

  def init(key):
    variables = model.init(key, jnp.zeros(image_shape), train=False)
    return variables["params"], variables.get("batch_stats", {})

  key = prng.stream(config.seed, name, "init")
  factors = optim.learning_rate_factors(jax.eval_shape(init, key)[0], block.train, block.lr_factors, where=f"{name}.train")
  if block.batch_norm == "shift" and any("bn" in path[-2].lower() for path, factor in
                                         flax.traverse_util.flatten_dict(factors).items() if factor is not None):
    raise ConfigError(f"{name}.batch_norm: 'shift' moves the statistics of a frozen backbone, but {name}.train trains "
                      "BatchNorm's parameters; use 'train', or freeze them")
  tx = optim.sgd(momentum=block.momentum, weight_decay=block.weight_decay, factors=factors)

  def fresh(key):
    params, batch_stats = init(key)
    return steps.TrainState(step=jnp.zeros((), jnp.int32), params=params, batch_stats=batch_stats,
                            opt_state=tx.init(optim.split(params, factors)[0]), window=steps.init_window())

  return jax.jit(fresh, out_shardings=sharding_)(key), tx, factors


def bridge(state: steps.TrainState, model: dict, reset: tuple, *, where: str) -> steps.TrainState:
  """`state` with the model of the stage before, but for the parameters that `reset` names."""
  fresh, earlier = (flax.traverse_util.flatten_dict(params, sep="/") for params in (state.params, model["params"]))
  for pattern in reset:
    if not any(re.fullmatch(pattern, path) for path in fresh):
      raise ConfigError(f"{where}: {pattern!r} matches no parameter; there are {', '.join(sorted(fresh)[-3:])} ...")
  params = {path: fresh[path] if any(re.fullmatch(pattern, path) for pattern in reset) else earlier[path]
            for path in fresh}
  return state.replace(params=flax.traverse_util.unflatten_dict(params, sep="/"), batch_stats=model["batch_stats"])


def _batches(order: Order, objective: build.Objective, counts: np.ndarray, first: int, count: int, mesh):
  """Indices and scheduled values of `count` steps from `first`, on the devices: [b] for one step, [count b] for more."""
  indices = [order.batch(step) for step in range(first, first + count)]
  scalars = [objective.scalars(order.clock(step), counts) for step in range(first, first + count)]
  if count == 1:
    return jax.device_put((indices[0], scalars[0]), (sharding.split(mesh), sharding.replicated(mesh)))
  stacked = jax.tree.map(lambda *values: np.stack(values), *scalars)
  return jax.device_put((np.stack(indices), stacked), (sharding.split(mesh, axis=1), sharding.replicated(mesh)))


def _window(state: steps.TrainState, name: str, done: int) -> tuple[float, float]:
  """Mean loss and accuracy since the last line of the log; raises where the loss is not finite."""
  window = jax.device_get(state.window)
  loss, accuracy = (float(window[key] / max(window["examples"], 1)) for key in ("loss", "correct"))
  if not np.isfinite(loss):
    raise TrainingError(f"{name}: the loss became {loss} at most {int(window['examples'])} images before step {done}; "
                        "lower the learning rate or scale; the last good state is kept in the work folder")
  return loss, accuracy
