"""Replays one step of a run and lists its tensors in the order of computation, with the infinite and NaN ones marked.

python -m ltjax debug_step WORKDIR                          the step that stopped the run
python -m ltjax debug_step WORKDIR --stage NAME --step N    any step, from the newest checkpoint before it
"""

import argparse
import json
import pathlib
import sys
from typing import NamedTuple

import jax
import numpy as np

from ltjax import bridge, optim, train
from ltjax import step as steps
from ltjax.config import parse
from ltjax.config.load import EXIT_BAD_INPUT
from ltjax.distributed import platforms
from ltjax.errors import ConfigError, LtjaxError
from ltjax.models import batch_norm
from ltjax.stage import Stage, build
from ltjax.workdir import folder
from ltjax.workdir.checkpoint import Checkpoints


class Tensor(NamedTuple):
  """A tensor of the step: its name, and its values on the host."""

  name: str
  values: np.ndarray

  @property
  def bad(self) -> int:
    """The number of its values that are infinite or NaN."""
    return int((~np.isfinite(self.values)).sum())

  def __str__(self) -> str:
    finite = self.values[np.isfinite(self.values)]
    span = f"{finite.min():11.4g} to {finite.max():11.4g}" if finite.size else " " * 26
    return f"{span}  {f'NOT FINITE: {self.bad} of {self.values.size}' if self.bad else '':32}  {self.name}"


def replay(workdir: pathlib.Path, name: str | None = None, step: int | None = None) -> tuple[list[str], list[Tensor]]:
  """(facts about the step, its tensors in the order of computation); leaves the work folder as it is.

  Args:
    workdir: the run's work folder.
    name: the stage; by default, the one that stopped the run.
    step: the step; by default, the one that stopped the run.

  Raises:
    LtjaxError: there is no such run, stage, step or checkpoint.
  """
  spec = parse(folder.load(workdir))
  if name is None or step is None:
    record = workdir / train.NOT_FINITE
    if not record.is_file():
      raise ConfigError(f"{record}: no step of this run was found to be not finite; give --stage and --step")
    stopped = json.loads(record.read_text())
    name, step = stopped["stage"], stopped["step"]
  dataset, _ = spec.read()
  stages = {each.name: each for each in build(spec, dataset)}
  if name not in stages:
    raise ConfigError(f"--stage: there is no stage {name!r}; there are {', '.join(stages)}")
  stage = stages[name]
  if not 0 <= step < stage.order.steps:
    raise ConfigError(f"--step: expected 0 to {stage.order.steps - 1}, got {step}")
  checkpoints = Checkpoints(workdir / name / "checkpoints", read_only=True, trunk=bridge.trunk(stage))
  state = checkpoints.restore(stage.like, upto=step)
  start = int(state.step)
  for before in range(start, step):
    state, _ = stage.train_steps[1](state, stage.data, *stage.batches(before, 1))
  examples, (batch, scalars) = stage.order.batch(step).ravel(), stage.batches(step, 1)
  known = [f"{name}, step {step} (epoch {step / stage.order.steps_per_epoch:.4g}), from the checkpoint of step {start}",
           "scheduled: " + ", ".join(f"{name} {_text(value)}" for name, value in _leaves(scalars)),
           f"examples: {', '.join(map(str, examples))}",
           f"their classes: {', '.join(dataset.class_names[label] for label in stage.drawn.train[1][examples])}"]
  return known, list(_tensors(stage, state, batch, scalars))


def _text(value) -> str:
  values = np.asarray(value)
  return f"{values:.6g}" if values.ndim == 0 else f"{values.min():.6g} to {values.max():.6g}"


def _tensors(stage: Stage, state, batch, scalars):
  model, optimizer = stage.model, stage.optimizer
  gradients = jax.jit(steps.make_gradients(stage.parts), compiler_options=platforms.compiler_options())(
      state, stage.data, batch, scalars)
  trained, _ = optim.split(state.params, optimizer.factors)
  after, opt_state = jax.jit(optimizer.update)(gradients.grads, state.opt_state, trained, lr=scalars["lr"])

  order = []  # paths of the modules, as their calls end

  def outputs(variables, images):
    def note(module, method):
      if method == "__call__":
        order.append("/".join(module.path))
      return method == "__call__"

    train, layers = batch_norm.mode(stage.spec.batch_norm)
    with layers:
      _, seen = model.apply(variables, images, train=train, capture_intermediates=note,
                            mutable=["batch_stats", "intermediates"], rngs=dict(dropout=jax.random.key(0)))
    return seen["intermediates"]

  variables = dict(params=state.params, batch_stats=state.batch_stats)
  yield from _of("state", variables)
  yield from _of("images", gradients.batch.inputs)
  tensors = list(_of("output of", jax.jit(outputs)(variables, gradients.batch.inputs)))
  yield from sorted(tensors, key=lambda tensor: _position(tensor, order))
  yield from _of("logits", gradients.logits)
  yield from _of("loss", gradients.loss)
  # From the last module to the first, as the backward pass computes them.
  yield from sorted(_of("gradient of", gradients.grads), key=lambda tensor: -_position(tensor, order))
  yield from _of("statistics", gradients.batch_stats)
  yield from _of("parameter after the step", after)
  yield from _of("optimiser after the step", opt_state)


def _of(what: str, tree):
  for name, leaf in _leaves(tree):
    if np.issubdtype(leaf.dtype, np.inexact) or leaf.dtype.name == "bfloat16":
      yield Tensor(f"{what} {name}".rstrip(), np.asarray(leaf, np.float32))


def _position(tensor: Tensor, order: list[str]) -> int:
  """The index in `order` of the module that `tensor` belongs to; the model itself, with an empty path, is last."""
  path = tensor.name.split("of ", 1)[1].split("/")
  return next(order.index(name) for length in range(len(path), -1, -1) if (name := "/".join(path[:length])) in order)


def _leaves(tree) -> list[tuple[str, np.ndarray]]:
  return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
          for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(tree))]


def main(arguments=None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(prog="ltjax debug_step", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("workdir", type=pathlib.Path)
  parser.add_argument("--stage")
  parser.add_argument("--step", type=int)
  args = parser.parse_args(arguments)
  try:
    known, tensors = replay(args.workdir, args.stage, args.step)
  except LtjaxError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)
  bad = [tensor for tensor in tensors if tensor.bad]
  print("\n".join((*known, "", *map(str, tensors), "",
                   f"the first that is not finite: {bad[0].name}" if bad else "all numbers of this step are finite")))


if __name__ == "__main__":
  main(sys.argv[1:])
