"""Any with any: each adjustment, loss, sampler and head trains with all the others, or is refused by name.

Every combination is checked as a config and its train step traced; a few, in which everything occurs, really run.
"""

import inspect
import itertools
import re

import jax
import numpy as np
import pytest

from ltjax import bridge, losses, recipes
from ltjax.config import bind, check, outside, parse, spec
from ltjax.data import samplers
from ltjax.errors import ConfigError
from ltjax.losses.objective import OFFERED
from ltjax.models import heads
from ltjax.schedules import Clock
from tests import tiny

# Parameters without a default.
REQUIRED = dict(q=0.5, progress=dict(name="linear"), alpha=1.0, head=0.3, tail=0.1, beta=0.9, scale=16.0,
                threshold=100)


def blocks(choices, given=()) -> dict[str, dict]:
  """A block with a value for each hyper-parameter that needs one, for every function of `choices`."""
  return {name: dict(name=name) | {
      key: REQUIRED[key] for key, parameter in bind.hyper_parameters(function).items()
      if parameter.default is inspect.Parameter.empty and key not in given} for name, function in choices.items()}


ADJUSTMENTS = {"none": None} | blocks(bind.public(losses, outside.returns("b c")), (*OFFERED, "seen_counts"))
# Without losses that belong to one transform or head, and heads whose projections they take: see test_contrastive.py
# and models/test_oltr.py.
LOSSES = blocks({name: function for name, function in bind.public(losses, outside.returns("b")).items()
                 if not hasattr(function, "rows_of") and not hasattr(function, "takes")}, (*OFFERED, "seen_counts"))
SAMPLERS = blocks(bind.public(samplers))
HEADS = blocks({name: head for name, head in bind.public(heads).items() if not hasattr(head, "projects")},
               ("num_classes",))
HEADS |= {f"{name}.cosine": dict(HEADS[name], cosine=True) for name in ("DisAlign", "LearnableScale")}
HEADS["CAMC.crops"] = dict(HEADS["CAMC"], crops=2)
HEADS["NormalizedLinear.features"] = dict(HEADS["NormalizedLinear"], normalize_features=True)
GIVE_COSINES = {"Cosine", "DisAlign.cosine", "LearnableScale.cosine"}
ON_THE_ANGLE = {"arcface", "gcl_angular", "kps_angular"}  # only of cosines that no scale follows
TAKE_THE_NORM_OUT = GIVE_COSINES | {"CAMC", "CAMC.crops", "TDE", "NormalizedLinear.features"}
DOWN_THE_COLUMNS = {"lade", "prior_lade"}
NEED_A_STAGE_BEFORE = {"CAMC", "CAMC.crops"}
MIXUP = dict(without=0.0, mixed=1.0)


def refusal(adjust: str, head: str, loss: str = "cross_entropy") -> str | None:
  """The message for a senseless combination; None for any other."""
  if adjust == "softmax_equalization" and loss in DOWN_THE_COLUMNS:
    return f"classifier.loss: {loss} reads down the columns of the logits"
  arguments = bind.signature(getattr(losses, adjust)) if adjust != "none" else ()
  first = next(iter(inspect.signature(getattr(losses, adjust)).parameters)) if adjust != "none" else ""
  name = head.split(".")[0]
  if first == "cosines" and head not in GIVE_COSINES:
    return f"classifier.adjust: {adjust} takes cosines, but the head '{name}' does not return any"
  if adjust in ON_THE_ANGLE and head != "Cosine":
    return (f"classifier.adjust: {adjust} works on the angle and needs cosines in [-1, 1], which the head '{name}' "
            "scales beyond; write head=dict(name='Cosine')")
  if "features" in arguments and head in TAKE_THE_NORM_OUT:
    return f"classifier.adjust: {adjust} works on the norm of the features, which the head '{name}' removes"
  return None


def config(adjust: str, loss: str, sampler: str, head: str, mixup: str, *, stages: int = 1):
  """One stage, called classifier, or one of plain cross entropy on mixed images before it."""
  common = dict(epochs=1, batch_size=128, lr=0.01, optimizer=recipes.sgd(1e-4))
  first = recipes.stage(**common, loss=dict(name="cross_entropy"), mixup=1.0)
  last = recipes.stage(**common, adjust=ADJUSTMENTS[adjust], loss=LOSSES[loss], sampler=SAMPLERS[sampler],
                       mixup=MIXUP[mixup], head=HEADS[head], train=(".*",) if stages == 1 else ("head/.*",))
  found = tiny.config("ce_digits", backbone=tiny.ONE_CONV, steps_per_call=1, log_every_steps=1, classifier=last,
                      stages=("representation", "classifier")[-stages:], representation=first)
  with found.unlocked():
    if stages == 1:
      del found.representation
  return found


@pytest.fixture(scope="module")
def dataset():
  return tiny.dataset(config("none", "cross_entropy", "instance", "Linear", "without"))


def trace(found, dataset) -> None:
  """Traces a step of every stage, whose parameters are those that the checks of the config have seen."""
  def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)

  for stage in tiny.stages(found, dataset).values():
    after, _ = jax.eval_shape(stage.train_steps[1], stage.like, stage.data, *stage.batches(0, 1))
    assert shapes(after) == shapes(stage.like)
    assert shapes(stage.shapes) == shapes(dict(params=after.params, batch_stats=after.batch_stats))


@pytest.mark.parametrize("head", HEADS)
def test_every_adjustment_on_every_head_trains_or_is_refused_by_name(head, dataset):
  others = itertools.cycle(itertools.product(LOSSES, SAMPLERS, MIXUP, (1, 2)))
  for adjust in ADJUSTMENTS:
    loss, sampler, mixup, stages = next(itertools.islice(others, 7, None))
    stages = 2 if head in NEED_A_STAGE_BEFORE else stages
    found = config(adjust, loss, sampler, head, mixup, stages=stages)
    if message := refusal(adjust, head, loss):
      with pytest.raises(ConfigError) as info:
        parse(found)
      assert message in str(info.value) and "\n" not in str(info.value)
    else:
      trace(found, dataset)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_adjustment_with_every_loss(loss):
  """The head decides only the adjustment's input; the test above traces the network."""
  for adjust in ADJUSTMENTS:
    head = next(head for head in HEADS if head not in NEED_A_STAGE_BEFORE and not refusal(adjust, head))
    found = config(adjust, loss, "instance", head, "mixed", stages=1)
    if message := refusal(adjust, head, loss):
      with pytest.raises(ConfigError, match=re.escape(message)):
        parse(found)
    else:
      parse(found)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_gives_the_stage_a_distribution(sampler, dataset):
  stage = tiny.stages(config("none", "cross_entropy", sampler, "Linear", "mixed"), dataset)["classifier"]
  for step in range(2):
    assert stage.order.batch(step).min() >= 0 and stage.order.batch(step).max() < len(dataset.train[1])
  check.check_data(parse(config("none", "cross_entropy", sampler, "Linear", "mixed")), dataset, devices=1)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_adjustment_with_every_loss_is_finite_and_has_a_finite_gradient(loss):
  rng = np.random.default_rng(0)
  cosines, labels = np.float32(rng.uniform(-1, 1, (6, 10))), np.array([0, 0, 3, 9, 5, 0])
  counts, seen = np.float32(np.geomspace(500, 5, 10)), np.float32([3, 0, 0, 1, 0, 1, 0, 0, 0, 1])
  features = np.float32(rng.normal(size=(6, 4)))
  for adjust in ADJUSTMENTS:
    if adjust == "softmax_equalization" and loss in DOWN_THE_COLUMNS:
      continue  # is refused
    block = config(adjust, loss, "instance", "Linear", "without").classifier
    objective, clock = spec._objective(block, "classifier")[0], Clock(0, 5, 1)
    scalars = dict(loss=objective.loss.at(clock), adjust=objective.adjust.at(clock) if objective.adjust else {})

    def value(logits, objective=objective, scalars=scalars):
      return objective(logits, labels, features=features, key=jax.random.key(0), scalars=scalars,
                       class_counts=counts, state=dict.fromkeys(objective.states, seen))

    found, gradient = jax.value_and_grad(value)(cosines)  # uncompiled: the operations are shared
    assert np.isfinite(found) and np.isfinite(gradient).all(), adjust
    assert np.asarray(gradient).any(), adjust


def covering() -> list[tuple]:
  """Combinations in which everything occurs, as few as the longest list, each with a head that makes sense."""
  found, heads_left = [], list(HEADS)
  rows = max(map(len, (ADJUSTMENTS, LOSSES, SAMPLERS, HEADS)))
  for row, (adjust, loss, sampler, mixup) in enumerate(zip(
      *(itertools.islice(itertools.cycle(names), rows) for names in (ADJUSTMENTS, LOSSES, SAMPLERS, MIXUP)),
      strict=True)):
    if adjust == "softmax_equalization" and loss in DOWN_THE_COLUMNS:
      loss = "cross_entropy"
    good = [head for head in HEADS if not refusal(adjust, head)]
    head = next((head for head in heads_left if head in good), good[0])
    heads_left = [name for name in heads_left if name != head]
    found.append((adjust, loss, sampler, head, mixup, 2 if head in NEED_A_STAGE_BEFORE else 1 + row // 2 % 2))
  return found + [("none", "cross_entropy", "class_aware", head, "mixed", 2) for head in heads_left]


def test_the_covering_covers():
  columns = list(zip(*covering(), strict=True))
  for column, names in zip(columns, (ADJUSTMENTS, LOSSES, SAMPLERS, HEADS, MIXUP, (1, 2)), strict=True):
    assert set(column) == set(names)
  assert set(zip(columns[4], columns[5], strict=True)) == set(itertools.product(MIXUP, (1, 2)))


def two_steps(found, name, dataset, before=None) -> dict:
  """The variables after two steps of stage `name`, on the host; `before` are those of the stage before."""
  stage = tiny.stages(found, dataset)[name]
  state = stage.make_state(bridge.take_over(before, stage.init, ()) if before else stage.init())
  start = jax.device_get(state.params["head"]["kernel"])
  for step in range(2):
    state, finite = stage.train_steps[1](state, stage.data, *stage.batches(step, 1))
    assert finite
  assert state.step == 2 and (state.params["head"]["kernel"] != start).any()
  return jax.device_get(dict(params=state.params, batch_stats=state.batch_stats))


@pytest.fixture(scope="module")
def first_stage(dataset):
  """The first stage that every second stage here starts from."""
  return two_steps(config("none", "cross_entropy", "instance", "Linear", "without", stages=2), "representation",
                   dataset)


@pytest.mark.parametrize(("adjust", "loss", "sampler", "head", "mixup", "stages"), covering())
def test_it_runs(adjust, loss, sampler, head, mixup, stages, dataset, first_stage):
  two_steps(config(adjust, loss, sampler, head, mixup, stages=stages), "classifier", dataset,
            first_stage if stages == 2 else None)
