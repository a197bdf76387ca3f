"""One stage of training: the loop, read top to bottom. It names no method."""

import collections
import functools
import json
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from ltjax import bridge, metrics, posthoc
from ltjax.distributed import processes
from ltjax.errors import TrainingError, writing
from ltjax.stage import Progress, Stage, TrainState
from ltjax.workdir.checkpoint import Checkpoints
from ltjax.workdir.log import Events, Journal, write_durably

EVENTS, NOT_FINITE = "events.jsonl", "not_finite.json"  # in the work folder
RATE, HELD_OUT = "learning_rate.json", 0.2  # the chosen learning rate, in a stage's folder; what it is chosen on
AHEAD = 5.0  # seconds that the calls take at most which the devices have before they need them


class Interrupted(Exception):
  """The run was asked to stop and has saved its state; running the same command again continues it."""


class StageResult(NamedTuple):
  """The result of a stage.

  `variables` holds its {"params", "batch_stats"}, `averaged` their moving average if the optimiser has one; `confusion`
  is the matrix on the test set, or its `Tally` where there are too many classes, `averaged_confusion` that of the
  average; `posthoc` holds the results of the methods that change this stage's model. `dropped` counts the examples left
  out of the batches, over all epochs; `learning_rate` is what `chosen_rate` found, if there were several.
  """

  variables: dict
  averaged: dict | None
  parameters: int
  confusion: np.ndarray | metrics.Tally
  averaged_confusion: np.ndarray | metrics.Tally | None
  posthoc: list[dict]
  dropped: int
  learning_rate: dict | None = None


def run_stage(stage: Stage, workdir: pathlib.Path, *, before: Stage | None = None, reset_head: bool = False,
              stop: Callable[[], bool] = lambda: False, strict: bool = False,
              run: str = "", track: Callable = lambda name, steps, lines: lambda entries: None) -> StageResult:
  """Trains `stage` to its end: from its newest checkpoint, from the model of `before`, or from the start.

  Args:
    stage: the stage.
    workdir: the run's folder; the stage writes to `workdir/name`.
    before: the stage whose model this one continues.
    reset_head: draws the head of a first stage that starts from another run.
    stop: whether this process has been asked to stop.
    strict: raises if the newest checkpoint is damaged, instead of falling back to the one before it.
    run: the run's random name, which its checkpoints hold.
    track: (stage, steps, lines of its log so far) -> what is told each new line; see `report.trackers`.

  Raises:
    Interrupted: `stop()` became true; the state is saved.
    TrainingError: a loss, a gradient or a parameter is not finite; the state before that step is saved.
  """
  stops = processes.Agreement(stop, stage.mesh)
  stage, state, rate, checkpoints = _begin(stage, workdir, before, stops, strict=strict, run=run, reset_head=reset_head)
  order, done = stage.order, int(jax.device_get(state.step))
  journal, timing, norms = logs = _logs(workdir, stage.name, done, checkpoints)
  journal.follow(functools.partial(track, stage.name, order.steps))

  # -- the loop: {log, evaluate, checkpoint, step}. A resumed run repeats nothing that the log already shows -----------
  confusion, stopping, start, began, rhythm = None, False, done, time.perf_counter(), Rhythm.of(stage)
  data, flight, progress = stage.data, Flight(stage, workdir, journal), stage.progress(done)
  measure = Measuring(stage, journal, norms, progress, stops)
  with checkpoints, progress, jax.transfer_guard("disallow"):
    while True:
      processes.report_progress(f"{stage.name} step {done}")
      last, log, evaluate, save = done == order.steps, *rhythm.due(done, order.steps)
      if log or evaluate or save or stopping:
        flight.collect(state, checkpoints)
      if log:
        state = measure.training(done, state)
      if (evaluate or save) and not stopping:
        confusion, stopping = measure.evaluation(("test",) * evaluate + ("held_out",) * save, done, state)
      if (save or stopping) and done > start:
        timing.write(step=done, start=start, seconds=time.perf_counter() - began)
        checkpoints.save(state, scores=journal.values("held_out"), logs=logs, wait=last or stopping)
        start, began = done, time.perf_counter()
      if stopping:
        raise Interrupted
      if last:
        break
      progress.waited()
      count = stage.count(done, rhythm.next(done, order.steps))
      state, finite = stage.train_steps[count](state, data, *stage.batches(done, count))
      flight.start(done, finite)
      flight.collect(state, checkpoints, but=flight.ahead)
      checkpoints.check()
      done += count
      progress.advance(count)
      stopping = stops(finite)
  for each in logs:
    each.flush()
  return result(stage, state, confusion)._replace(learning_rate=rate)


class Rhythm(NamedTuple):
  """After how many steps a stage logs, evaluates and saves; at its end, all three are due."""

  log: int
  evaluate: int
  save: int

  @classmethod
  def of(cls, stage: Stage) -> "Rhythm":
    """The rhythm that the settings of `stage` ask for."""
    settings, epoch = stage.settings, stage.order.steps_per_epoch
    return cls(settings.log_every_steps, settings.eval_every_epochs * epoch, settings.checkpoint_every_epochs * epoch)

  def due(self, done: int, steps: int) -> list[bool]:
    """Whether to log, to evaluate and to save after step `done` of `steps`."""
    return [bool(done) and (done % every == 0 or done == steps) for every in self]

  def next(self, done: int, steps: int) -> int:
    """The first step after `done` at which anything is due."""
    return min(steps, *((done // every + 1) * every for every in self))


class Measuring(NamedTuple):
  """Measures a stage under way: the result goes into its log and to its progress, unless the log has it already."""

  stage: Stage
  journal: Journal
  norms: Journal
  progress: Progress
  stops: Callable[[jax.Array], bool]

  def training(self, done: int, state: TrainState) -> TrainState:
    """Logs the mean loss and accuracy since the last line; returns the state that starts the next mean."""
    stage, means = self.stage, None if self.journal.has(done, "loss") else mean_since_log(state)
    if not means:
      return state
    loss, accuracy = means
    self._write(done, loss=loss, accuracy=accuracy, lr=float(stage.spec.lr(stage.order.clock(done - 1))))
    self.progress.trained(loss, accuracy)
    return stage.with_new_window(state)

  def evaluation(self, splits: Sequence[str], done: int, state: TrainState) -> tuple[
      np.ndarray | metrics.Tally | None, bool]:
    """Evaluates on those `splits` that there are: (the confusion matrix of the test, whether a stop came)."""
    tested, shown, stopped = None, {}, False
    for split in splits:
      if split not in self.stage.evaluators or self.journal.has(done, split):
        continue
      found = self.stage.evaluators[split].measure(variables_of(state), self.stops)
      stopped = found is None
      if stopped:
        break
      if split == "test":
        tested, scores = found.counts, metrics.scores(found.counts, self.stage.class_counts)
        self._write(done, test=scores)
        self._write(done, self.norms, feature_norms=found.group_norms(self.stage.class_counts))
        shown[split] = scores["overall"]
      else:
        shown[split] = metrics.balanced_accuracy(found.counts)
        self._write(done, **{split: shown[split]})
    if shown:
      self.progress.evaluated(**shown)
    return tested, stopped

  def _write(self, done: int, log: Journal | None = None, **entries) -> None:
    (log or self.journal).write(step=done, epoch=done / self.stage.order.steps_per_epoch, **entries)


def _begin(stage: Stage, workdir: pathlib.Path, before: Stage | None, stops: processes.Agreement, *, strict: bool,
           run: str, reset_head: bool) -> tuple[Stage, TrainState, dict | None, Checkpoints]:
  """(the stage, on its features where they are constant; its state; the choice of its learning rate; its checkpoints).

  The state is that of the newest checkpoint. Without one, it begins with the parameters of `bridge.start`.
  """
  processes.report_progress(f"start of {stage.name}")
  opened = functools.partial(Checkpoints, keep=stage.settings.keep_checkpoints, strict=strict, run=run,
                             on_fallback=functools.partial(Events(workdir / EVENTS).write, "checkpoint_fallbacks"))
  checkpoints = opened(workdir / stage.name / "checkpoints", trunk=bridge.trunk(stage))
  state = None if checkpoints.latest() is None else checkpoints.restore(stage.like)
  variables = variables_of(state) if state else bridge.start(stage, before, workdir, opened, reset_head=reset_head)
  if stage.has_constant_features:
    stage = stage.on_features(variables, workdir / "features", stops)
    if stage is None:
      raise Interrupted
  rate = None
  if len(stage.spec.rates) > 1:
    rate = chosen_rate(stage, variables, workdir / stage.name)
    stage = stage.with_rate(rate["chosen"])
  if state is None:
    state = stage.make_state(bridge.start_head(stage, variables))
  return stage, state, rate, checkpoints


def _logs(workdir: pathlib.Path, name: str, done: int, checkpoints: Checkpoints) -> list[Journal]:
  """The logs of a stage up to step `done`: of its measures, of its times, of its feature norms."""
  lost = functools.partial(Events(workdir / EVENTS).write, "log_losses")
  return [Journal(workdir / name / file, upto=done, logs=checkpoints.logs, on_loss=lost)
          for file in ("metrics.jsonl", "timing.jsonl", "feature_norms.jsonl")]


def result(stage: Stage, state: TrainState, confusion: np.ndarray | metrics.Tally | None) -> StageResult:
  """The result of the stage after its last step."""
  variables, evaluate = variables_of(state), stage.evaluators["test"]
  averaged = None if state.ema is None else stage.optimizer.averaged(state.ema, state.params)
  return StageResult(variables, averaged, sum(leaf.size for leaf in jax.tree.leaves(state.params)),
                     evaluate(variables) if confusion is None else confusion,
                     averaged and evaluate(averaged), posthoc.run(stage.posthoc, stage, variables),
                     stage.order.dropped * stage.order.epochs)


def variables_of(state: TrainState) -> dict:
  """{"params", "batch_stats"} of a state."""
  return dict(params=state.params, batch_stats=state.batch_stats)


def check_start(stages: Sequence[Stage], reset_head: bool) -> None:
  """Raises if pretrained weights or a head's file do not fit, prints what fits, warns of untrained frozen layers."""
  stage = stages[0]
  bridge.check_heads(stages)
  if stage.pretrained:
    bridge.check_features(stage.dataset.made_by, stage.pretrained)
    bridge.pretrained(stage.shapes, stage.pretrained, stage.dataset.class_names, reset_head=reset_head)
    if processes.is_first():
      print(bridge.loaded(stage.shapes, stage.pretrained, reset_head=reset_head), file=sys.stderr)
  elif None in jax.tree.leaves(stage.optimizer.factors["backbone"], is_leaf=lambda factor: factor is None):
    print(f"{stage.name}: frozen layers of the backbone stay at their random start; give trained weights with "
          "--config.pretrained=FILE", file=sys.stderr)


def chosen_rate(stage: Stage, variables: dict, folder: pathlib.Path) -> dict:
  """The best of a stage's learning rates, and among which; chosen once, and kept in `folder/learning_rate.json`.

  Each candidate trains the head as the stage does, on four fifths of the training images; the one with the highest
  balanced accuracy on the others is taken, of equals the first. On features that takes seconds.

  Args:
    stage: the stage, on features.
    variables: {"params", "batch_stats"} that it begins with, but for the start of its head.
    folder: of the stage.
  """
  path = folder / RATE
  found = processes.from_first(lambda: json.loads(path.read_text()) if path.is_file() else None)
  if found is None:
    part = stage.on_part(HELD_OUT)
    scores = _tried(part, bridge.start_head(part, variables)) if part else {}
    middle = sorted(stage.spec.rates)[len(stage.spec.rates) // 2]
    found = dict(chosen=max(scores, key=scores.get, default=middle), candidates=[
        dict(base=base, balanced_accuracy=score) for base, score in scores.items()], held_out_images=len(
            part.dataset.held_out[1]) if part else 0)
    if processes.is_first():
      with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(path, json.dumps(found, indent=1) + "\n")
  if processes.is_first():
    tried, held_out = ", ".join(f"{base:g}" for base in stage.spec.rates), found["held_out_images"]
    why = f"best on {held_out} held-out training images" if held_out else "middle, for want of images to choose on"
    print(f"{stage.name}: learning rate {found['chosen']:g} of {tried}: the {why}", file=sys.stderr)
  return found


def _tried(part: Stage, variables: dict) -> dict[float, float]:
  """{candidate: `held_out_accuracy`}; after a minute of silence, a line says how many have been tried."""
  scores, said = {}, time.perf_counter()
  for base in part.spec.rates:
    scores[base] = held_out_accuracy(part.with_rate(base), variables)
    if processes.is_first() and time.perf_counter() - said >= Progress.SILENCE and len(scores) < len(part.spec.rates):
      said = time.perf_counter()
      print(f"{part.name}: {len(scores)} of {len(part.spec.rates)} learning rates tried", file=sys.stderr, flush=True)
  return scores


def held_out_accuracy(stage: Stage, variables: dict) -> float:
  """The balanced accuracy on held-out images after training `stage` from `variables`."""
  return metrics.balanced_accuracy(stage.evaluators["held_out"](in_memory(stage, variables)))


def in_memory(stage: Stage, variables: dict) -> dict:
  """{"params", "batch_stats"} after training `stage` from `variables`, without a folder: nothing is logged or saved."""
  state, step = stage.make_state(jax.tree.map(jax.numpy.copy, variables)), 0  # a step takes its state's memory
  while step < stage.order.steps:
    count = stage.count(step, stage.order.steps)
    state, _ = stage.train_steps[count](state, stage.data, *stage.batches(step, count))
    step += count
  return variables_of(state)


class Flight:
  """The calls under way on the devices. It reads late whether their numbers were finite, so that nothing waits."""

  def __init__(self, stage: Stage, workdir: pathlib.Path, journal: Journal):
    self._stage, self._workdir, self._journal, self._calls = stage, workdir, journal, collections.deque()
    self.ahead = 2  # calls that may be under way while the host prepares the next one

  def start(self, first: int, finite: jax.Array) -> None:
    """Remembers a call that began with step `first`; `finite` is its result, one per step."""
    self._calls.append((first, finite))

  def collect(self, state: TrainState, checkpoints: Checkpoints, but: int = 0) -> None:
    """Waits for all calls but the newest `but`; where a step was not finite, reports it and stops or skips."""
    while len(self._calls) > but:
      (first, finite), began = self._calls.popleft(), time.perf_counter()
      finite = np.atleast_1d(jax.device_get(finite))
      # A stop waits for all calls under way, so slow ones are not given in advance.
      self.ahead = min(2, int(AHEAD / max(time.perf_counter() - began, 1e-3)))
      for index in np.flatnonzero(~finite):
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
    checkpoints.save(state, wait=True)  # the step left the state as it was before
    if processes.is_first():
      with writing(self._workdir):
        (self._workdir / NOT_FINITE).write_text(json.dumps(dict(
            stage=stage.name, step=step, lr=lr, examples=examples), indent=1) + "\n")
    raise TrainingError(f"{what}; the state before it is saved, its images are in {self._workdir / NOT_FINITE}, and "
                        f"`python -m ltjax debug_step {self._workdir}` replays it; lower the learning rate or scale, "
                        "or give --config.on_nonfinite=skip and a new --workdir")


def mean_since_log(state: TrainState) -> tuple[float, float] | None:
  """Mean loss and accuracy since the last line of the log; None if all steps since then were skipped."""
  window = jax.device_get(state.window)
  return tuple(float(window[key] / window["examples"]) for key in ("loss", "correct")) if window["examples"] else None
