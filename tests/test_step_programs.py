"""The compiled train steps: how often they compile, what they cost, and that several in one call change nothing."""

import functools
import logging
import pathlib
import re
from typing import NamedTuple

import jax
import numpy as np
import pytest

from ltjax import step as steps
from ltjax.data.evaluate import Evaluator
from ltjax.distributed import platforms
from ltjax.stage import Stage
from ltjax.train import Interrupted
from tests import tiny
from tests.test_step import make, start

pytestmark = pytest.mark.usefixtures("no_pictures")

# -- compilation and cost --------------------------------------------------------------------------------------------


class Run(NamedTuple):
  """A run of two stages, and its recorded calls."""

  config: object
  workdir: pathlib.Path
  compiled: list[str]  # the names of the compiled functions
  evaluated: list[dict]


@pytest.fixture(scope="module")
def two_stages(tmp_path_factory):
  workdir, compiled, evaluated, call = tmp_path_factory.mktemp("run"), [], [], Evaluator.measure
  config = tiny.config(
      "gcl_digits", backbone=tiny.ONE_CONV, epochs=3, steps_per_call=1, checkpoint_every_epochs=100,
      representation__lr=dict(name="multi_step", base=0.1, at=(1, 2), factors=(0.1, 0.01)), representation__mixup=0.0,
      representation__adjust=dict(name="gcl", scale=dict(name="linear", start=10.0, end=30.0)))

  class Listener(logging.Handler):
    def emit(self, record):
      if match := re.match(r"Compiling jit\((\w+)\)", record.getMessage()):
        compiled.append(match[1])

  def measure(self, variables, stops):
    evaluated.append(variables)
    return call(self, variables, stops)

  listener = Listener()
  logging.getLogger("jax").addHandler(listener)
  try:
    with pytest.MonkeyPatch.context() as patch, jax.log_compiles():
      patch.setattr(Evaluator, "measure", measure)
      tiny.run(config, workdir)
  finally:
    logging.getLogger("jax").removeHandler(listener)
  return Run(config, workdir, compiled, evaluated)


def test_a_run_compiles_each_step_once(two_stages):
  rates = [line["lr"] for line in tiny.log(two_stages.workdir, "representation") if "lr" in line]
  assert len(set(rates)) == 3, "nothing was scheduled"
  found = two_stages.compiled
  assert {name: found.count(name) for name in ("train_step", "train_steps", "eval_step")} == dict(
      train_step=2, train_steps=0, eval_step=2)  # once in each of the two stages


def test_the_state_is_donated(two_stages):
  assert len(two_stages.evaluated) == 6

  def gone(variables):
    return [leaf.is_deleted() for leaf in jax.tree.leaves(variables)]

  # The CPU does not donate an array that is being saved: of these states only the last of each stage is.
  assert [all(gone(state)) for state in two_stages.evaluated] == [True, True, False] * 2
  assert not any(gone(two_stages.evaluated[2]) + gone(two_stages.evaluated[5]))


def test_a_stage_with_a_frozen_backbone_changes_none_of_its_bits(two_stages):
  first, second = (tiny.saved(made, two_stages.workdir) for made in tiny.stages(two_stages.config).values())
  tiny.assert_trees_equal(first.params["backbone"], second.params["backbone"])
  tiny.assert_trees_equal(first.batch_stats, second.batch_stats)
  assert (first.params["head"]["kernel"] != second.params["head"]["kernel"]).all()


def flops(made: Stage) -> float:
  """Checks the traced step, before XLA could drop unused operations."""
  return made.train_steps[1].lower(made.like, made.data, *made.batches(0, 1)).cost_analysis()["flops"]


def test_a_frozen_backbone_costs_no_backward_pass():
  whole, head = (flops(make(backbone=None, representation__train=train)) for train in ((".*",), ("head/.*",)))
  assert 0.2 * whole < head < 0.6 * whole


def inside_loops(hlo: str) -> set[str]:
  """The lines of all computations that a `while` of an HLO text calls, directly or not."""
  computation = re.compile(r"^(?:ENTRY )?%?([\w.\-]+)[^\n]*\{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
  bodies = {match[1]: match[2] for match in computation.finditer(hlo)}

  def called(text):
    return set(re.findall(r"(?:body|condition|to_apply|calls)=%?([\w.\-]+)", text)) & set(bodies)

  left = {name for text in bodies.values() for name in re.findall(r"while\(.*body=%?([\w.\-]+)", text)}
  reached = set()
  while left:
    name = left.pop()
    reached.add(name)
    left |= called(bodies[name]) - reached
  return {line for name in reached for line in bodies[name].splitlines()}


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other backends have no such barriers")
def test_a_step_on_a_cpu_computes_a_block_once_with_the_same_numbers():
  made = make(backbone=dict(name="ResNetCIFAR", depth=8, widths=(4, 4, 8)))
  barriers, params = [], []
  for options in (platforms.compiler_options(), None):
    step = jax.jit(steps.make_train_step(made.parts), compiler_options=options).lower(
        made.like, made.data, *made.batches(0, 1)).compile()
    barriers.append(step.as_text().count("backbone/optimization_barrier"))
    params.append(jax.device_get(step(start(made), made.data, *made.batches(0, 1))[0].params))
  # The stem and three blocks, forward and backward.
  assert barriers == [8, 0]
  for one, other in zip(*map(jax.tree.leaves, params), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("unroll", [True, False])
def test_on_a_cpu_convolutions_stay_outside_loops(unroll):
  # The second case shows that the first can fail.
  made = make(config="gcl_digits")
  lowered = jax.jit(steps.repeat(steps.make_train_step(made.parts), 3, unroll=unroll)).lower(
      made.like, made.data, *made.batches(0, 3))
  hlo = lowered.as_text(dialect="hlo")
  assert "convolution(" in hlo and "while(" in hlo  # JAX's random numbers loop, too
  assert any("convolution(" in line for line in inside_loops(hlo)) == (not unroll)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other backends loop on purpose")
def test_the_compiled_steps_of_a_cpu_are_unrolled():
  made = make(steps_per_call=2)
  assert made.chunk == 2
  lowered = made.train_steps[2].lower(made.like, made.data, *made.batches(0, 2))
  hlo = lowered.as_text(dialect="hlo")
  assert "convolution(" in hlo and not any("convolution(" in line for line in inside_loops(hlo))


# -- steps per call --------------------------------------------------------------------------------------------------


def _chunked(workdir, steps_per_call: int, stop_after: int | None = None):
  """(log, last state) of a run with boundaries at steps 5, 7 and 10, which calls of 2 and 3 steps do not all meet."""
  config = tiny.config("ce_digits", backbone=tiny.ONE_CONV, log_every_steps=7, steps_per_call=steps_per_call,
                       representation__lr=dict(name="constant", value=0.01))
  if stop_after:
    with pytest.raises(Interrupted):
      tiny.run(config, workdir, stop_after=stop_after)
  tiny.run(config, workdir)
  return tiny.log(workdir, "representation"), tiny.saved(tiny.stages(config)["representation"], workdir)


@pytest.fixture(scope="module")
def chunked(tmp_path_factory):
  """steps a call -> (log, last state) of a run, trained once."""
  return functools.cache(lambda steps_per_call: _chunked(tmp_path_factory.mktemp("run"), steps_per_call))


@pytest.mark.parametrize("steps_per_call", [2, 3])
def test_steps_per_call_changes_nothing(chunked, steps_per_call):
  (log, state), (chunked_log, chunked_state) = chunked(1), chunked(steps_per_call)
  assert [(line["step"], line.get("test"), line.get("lr")) for line in chunked_log] == [
      (line["step"], line.get("test"), line.get("lr")) for line in log]
  # Not bit for bit: XLA fuses across the steps of one call.
  for (path, leaf), other in zip(
      jax.tree_util.tree_leaves_with_path(chunked_state), jax.tree.leaves(state), strict=True):
    np.testing.assert_allclose(leaf, other, rtol=1e-3, atol=1e-4, err_msg=jax.tree_util.keystr(path))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="bits are compared")
def test_a_run_stopped_between_calls_of_several_steps_is_the_straight_run(chunked, tmp_path):
  (log, state), (stopped_log, stopped) = chunked(2), _chunked(tmp_path, 2, stop_after=3)
  assert stopped_log == log
  tiny.assert_trees_equal(stopped, state)
