"""One stage of training: the loop, read top to bottom. It names no method."""

import collections
import functools
import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from ltjax import bridge, metrics, posthoc
from ltjax.distributed import processes
from ltjax.errors import TrainingError, writing
from ltjax.stage import Stage, TrainState
from ltjax.workdir.checkpoint import Checkpoints
from ltjax.workdir.log import Events, Journal

EVENTS, NOT_FINITE = "events.jsonl", "not_finite.json"  # in the work folder


class Interrupted(Exception):
  """The run was asked to stop and has saved its state; running the same command again continues it."""


class StageResult(NamedTuple):
  """What a stage leaves.

  `variables` are its {"params", "batch_stats"}, `averaged` their moving average if the optimiser has one;
  `confusion` is the matrix on the test set, or its `Tally` where there are too many classes, `averaged_confusion` that
  of the average; `posthoc` are the results of the methods that change this stage's model. `dropped` are the examples
  that no batch had room for, summed over its epochs.
  """

  variables: dict
  averaged: dict | None
  parameters: int
  confusion: np.ndarray | metrics.Tally
  averaged_confusion: np.ndarray | metrics.Tally | None
  posthoc: list[dict]
  dropped: int


def run_stage(stage: Stage, workdir: pathlib.Path, *, before: Stage | None = None, pretrained: str = "",
              reset_head: bool = False, stop: Callable[[], bool] = lambda: False, strict: bool = False,
              run: str = "") -> StageResult:
  """Trains `stage` to its end: from its newest checkpoint, from the model of `before`, or from the start.

  Args:
    stage: the stage.
    workdir: the run's folder; the stage writes to `workdir/name`.
    before: the stage whose model this one continues.
    pretrained: weights that a first stage starts from, see `bridge.pretrained`.
    reset_head: leaves those of the head out.
    stop: whether this process has been asked to stop.
    strict: a damaged checkpoint is an error, instead of a loud return to the one before it.
    run: the identity of the run, to which its checkpoints are bound.

  Raises:
    Interrupted: after `stop()`, with the state saved.
    TrainingError: a loss or a gradient that is not finite, with the state before it saved.
  """
  settings, order, folder = stage.settings, stage.order, workdir / stage.name
  processes.report_progress(f"start of {stage.name}")
  stops = processes.Agreement(stop, stage.mesh)

  # -- state: restore, or bridge from the stage before, or initialise --------------------------------------------------
  events = Events(workdir / EVENTS)
  opened = functools.partial(Checkpoints, keep=settings.keep_checkpoints, strict=strict, run=run,
                             on_fallback=functools.partial(events.write, "checkpoint_fallbacks"))
  checkpoints = opened(folder / "checkpoints")
  if checkpoints.latest() is not None:
    state = checkpoints.restore(stage.like)
  elif before:
    state = stage.make_state(bridge.from_stage(stage, before, workdir, opened))
  else:
    drawn = stage.init()
    if pretrained:
      drawn = bridge.pretrained(drawn, pretrained, stage.dataset.class_names, reset_head=reset_head)
    state = stage.make_state(drawn)
  done = start = int(jax.device_get(state.step))
  journal, timing = (Journal(folder / name, upto=done, logs=checkpoints.logs, on_loss=functools.partial(
      events.write, "log_losses")) for name in ("metrics.jsonl", "timing.jsonl"))

  # -- the loop: {log, evaluate, checkpoint, step}. What the log shows as done at this step is not done again ----------
  confusion, stopping, epoch, began = None, False, order.steps_per_epoch, time.perf_counter()
  log_every, evaluate_every, save_every = (
      settings.log_every_steps, settings.eval_every_epochs * epoch, settings.checkpoint_every_epochs * epoch)
  evaluators, data, flight = stage.evaluators, stage.data, Flight(stage, workdir, journal)
  bar = tqdm(total=order.steps * order.batch_size, initial=done * order.batch_size, unit="img", unit_scale=True,
             desc=stage.name, dynamic_ncols=True, disable=not processes.is_first())
  with checkpoints, bar, jax.transfer_guard("disallow"):
    while True:
      processes.report_progress(f"{stage.name} step {done}")
      last, now = done == order.steps, dict(step=done, epoch=done / epoch)
      log, evaluate, save = (bool(done) and (done % every == 0 or last)
                             for every in (log_every, evaluate_every, save_every))
      if log or evaluate or save or stopping:
        flight.collect(state, checkpoints)
      if log and not journal.has(done, "loss") and (means := mean_since_log(state)):
        loss, accuracy = means
        journal.write(**now, loss=loss, accuracy=accuracy, lr=float(stage.spec.lr(order.clock(done - 1))))
        bar.set_postfix(loss=f"{loss:.3f}", acc=f"{accuracy:.1%}")
        state = stage.with_new_window(state)
      if evaluate and not stopping and not journal.has(done, "test"):
        confusion = evaluators["test"](variables_of(state), stops)
        stopping = confusion is None
        if not stopping:
          journal.write(**now, test=metrics.scores(confusion, stage.class_counts))
      if save and "held_out" in evaluators and not stopping and not journal.has(done, "held_out"):
        held_out = evaluators["held_out"](variables_of(state), stops)
        stopping = held_out is None
        if not stopping:
          journal.write(**now, held_out=metrics.balanced_accuracy(held_out))
      if (save or stopping) and done > start:
        timing.write(step=done, start=start, seconds=time.perf_counter() - began)
        checkpoints.save(state, scores=journal.values("held_out"), logs=(journal, timing),
                         wait=last or stopping)
        start, began = done, time.perf_counter()
      if last and (confusion is not None or journal.has(done, "test")):
        break
      if stopping:
        raise Interrupted
      boundary = min(order.steps, *((done // every + 1) * every for every in (log_every, evaluate_every, save_every)))
      count = stage.count(done, boundary)
      state, finite = stage.train_steps[count](state, data, *stage.batches(done, count))
      flight.start(done, finite)
      flight.collect(state, checkpoints, but=2)
      checkpoints.check()
      done += count
      bar.update(count * order.batch_size)
      stopping = stops(finite)
  journal.flush()
  return result(stage, state, confusion)


def result(stage: Stage, state: TrainState, confusion: np.ndarray | metrics.Tally | None) -> StageResult:
  """What the stage leaves, after its last step."""
  variables, evaluate = variables_of(state), stage.evaluators["test"]
  averaged = None if state.ema is None else stage.optimizer.averaged(state.ema, state.params)
  return StageResult(variables, averaged, sum(leaf.size for leaf in jax.tree.leaves(state.params)),
                     evaluate(variables) if confusion is None else confusion,
                     averaged and evaluate(averaged), posthoc.run(stage.posthoc, stage, variables),
                     stage.order.dropped * stage.order.epochs)


def variables_of(state: TrainState) -> dict:
  """{"params", "batch_stats"} of a state."""
  return dict(params=state.params, batch_stats=state.batch_stats)


def check_start(stage: Stage, pretrained: str, reset_head: bool) -> None:
  """Raises where `pretrained` does not fit a first stage; warns where it freezes layers that nothing has trained."""
  if pretrained:
    bridge.pretrained(stage.shapes, pretrained, stage.dataset.class_names, reset_head=reset_head)
  elif None in jax.tree.leaves(stage.optimizer.factors["backbone"], is_leaf=lambda factor: factor is None):
    print(f"{stage.name}: frozen layers of the backbone keep their random start; give trained weights with "
          "--config.pretrained=FILE", file=sys.stderr)


class Flight:
  """The calls that the devices have not answered yet: whether their numbers are finite is read when they have."""

  def __init__(self, stage: Stage, workdir: pathlib.Path, journal: Journal):
    self._stage, self._workdir, self._journal, self._calls = stage, workdir, journal, collections.deque()

  def start(self, first: int, finite: jax.Array) -> None:
    """Remembers a call that began with step `first`; `finite` is its answer, one a step."""
    self._calls.append((first, finite))

  def collect(self, state: TrainState, checkpoints: Checkpoints, but: int = 0) -> None:
    """Waits for all calls but the newest few; reports, and stops the run or goes on, where a step was not finite."""
    while len(self._calls) > but:
      first, finite = self._calls.popleft()
      for index in np.flatnonzero(~np.atleast_1d(jax.device_get(finite))):
        self._not_finite(first + int(index), state, checkpoints)

  def _not_finite(self, step: int, state: TrainState, checkpoints: Checkpoints) -> None:
    stage, order = self._stage, self._stage.order
    examples, epoch = order.batch(step).ravel().tolist(), step / order.steps_per_epoch
    lr = float(stage.spec.lr(order.clock(step)))
    what = (f"{stage.name}: the loss, a gradient or a parameter became infinite or NaN in step {step} (epoch "
            f"{epoch:.4g}, learning rate {lr:.4g}); the step was undone")
    if stage.settings.on_nonfinite == "skip":
      self._journal.write(step=step + 1, epoch=(step + 1) / order.steps_per_epoch, skipped=examples, skipped_lr=lr)
      skipped = self._journal.count("skipped")
      print(f"WARNING: {what} and skipped, {skipped} by now", file=sys.stderr)
      if skipped > stage.settings.skip_limit:
        raise TrainingError(f"{what}; that is more than the {stage.settings.skip_limit} steps that skip_limit allows; "
                            "lower the learning rate or scale")
      return
    checkpoints.save(state, wait=True)  # it has stayed as it was before that step
    if processes.is_first():
      with writing(self._workdir):
        (self._workdir / NOT_FINITE).write_text(json.dumps(dict(
            stage=stage.name, step=step, lr=lr, examples=examples), indent=1) + "\n")
    raise TrainingError(f"{what}; the state before it is saved, its images are in {self._workdir / NOT_FINITE}, and "
                        f"`python -m ltjax debug_step {self._workdir}` replays it; lower the learning rate or scale, "
                        "or give --config.on_nonfinite=skip and a new --workdir")


def mean_since_log(state: TrainState) -> tuple[float, float] | None:
  """Mean loss and accuracy since the last line of the log; None where all steps since then were skipped."""
  window = jax.device_get(state.window)
  return tuple(float(window[key] / window["examples"]) for key in ("loss", "correct")) if window["examples"] else None
