"""A config becomes bound blocks, and their objectives and samplers compute the configured values."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ltjax import losses, recipes, stage
from ltjax.config import bind, parse, spec
from ltjax.data import samplers
from ltjax.errors import ConfigError
from ltjax.schedules import Clock
from tests.config.trees import changed, config, tree

COUNTS = np.array([100, 10, 1])
FIRST, LATER = Clock(step=0, steps_per_epoch=2, epochs=5), Clock(step=9, steps_per_epoch=2, epochs=5)


def test_the_keys_of_a_stage_are_the_arguments_of_its_recipe():
  made = recipes.stage(epochs=1, batch_size=1, lr=0.1, loss=dict(name="cross_entropy"), optimizer=recipes.sgd(0.0))
  assert tuple(made) and set(made) == set(spec.STAGE_KEYS)


# -- the objective ----------------------------------------------------------------------------------------------------


def stage_spec(**blocks) -> spec.StageSpec:
  found = tree("ce_digits")
  found["representation"] |= dict(epochs=5) | blocks
  found["head"] = dict(name="Cosine")
  return parse(config(found)).stages[0]


def value(parsed: spec.StageSpec, clock: Clock = FIRST, key: int = 0):
  logits, labels = batch()
  objective = parsed.objective
  scalars = dict(adjust=objective.adjust.at(clock) if objective.adjust else {}, loss=objective.loss.at(clock))
  if parsed.class_weights:
    scalars["class_weights"] = parsed.class_weights(COUNTS, **parsed.class_weights.at(clock))
  return objective(logits, labels, features=logits, key=jax.random.key(key), scalars=scalars,
                   class_counts=jnp.float32(COUNTS))


def batch():
  return jnp.float32(np.random.RandomState(0).uniform(-1, 1, (4, 3))), jnp.int32([0, 1, 2, 0])


def test_the_objective_is_the_mean_of_the_loss_of_adjusted_logits():
  logits, labels = batch()
  parsed = stage_spec(adjust=dict(name="gcl", margin=0.1), loss=dict(name="focal", gamma=2.0))
  adjusted = losses.gcl(logits, labels, COUNTS, key=jax.random.key(3), margin=0.1)
  np.testing.assert_allclose(value(parsed, key=3), losses.focal(adjusted, labels, gamma=2.0).mean(), rtol=1e-6)
  assert value(parsed, key=3) != value(parsed, key=4)


@pytest.mark.parametrize(("blocks", "expected"), [
    (dict(class_weights=dict(name="inverse_frequency")), lambda each, weights: (each * weights).sum() / weights.sum()),
    (dict(class_weights=dict(name="inverse_frequency"), reduce="mean"), lambda each, weights: (each * weights).mean()),
    (dict(reduce="mean"), lambda each, weights: each.mean())])
def test_class_weights_divide_by_their_sum_or_by_the_batch_size(blocks, expected):
  logits, labels = batch()
  each, weights = losses.cross_entropy(logits, labels), losses.inverse_frequency(COUNTS)[labels]
  np.testing.assert_allclose(value(stage_spec(**blocks)), expected(each, weights), rtol=1e-6)


def test_every_scheduled_value_moves_the_objective():
  parsed = stage_spec(
      lr=dict(name="cosine", base=1.0), adjust=dict(name="gcl", scale=dict(name="linear", start=1.0, end=9.0)),
      loss=dict(name="focal", gamma=dict(name="switch", at=2)),
      class_weights=dict(name="effective_number", beta=dict(name="switch", at=2, after=0.99)))
  adjust, loss, weights = parsed.objective.adjust, parsed.objective.loss, parsed.class_weights
  assert (parsed.lr(FIRST), adjust.at(FIRST), loss.at(FIRST)) == (1.0, dict(scale=1.0), dict(gamma=0.0))
  assert parsed.lr(LATER) < 0.1 and (adjust.at(LATER), loss.at(LATER)) == (dict(scale=9.0), dict(gamma=1.0))
  np.testing.assert_allclose(weights(COUNTS, **weights.at(FIRST)), 1.0)
  wanted = losses.effective_number(COUNTS, beta=0.99)
  np.testing.assert_allclose(weights(COUNTS, **weights.at(LATER)), wanted, rtol=1e-6)
  assert value(parsed, FIRST) != value(parsed, LATER)


# -- samplers ---------------------------------------------------------------------------------------------------------


def drawn(**block):
  return stage.sampler(spec.sampler(block, "here"), "here", COUNTS)


def test_instance_sampling_is_a_permutation():
  assert drawn(name="instance") is None


@pytest.mark.parametrize("name", sorted(bind.public(samplers)))
def test_every_sampler_gives_probabilities_or_a_cycle(name):
  block = {p.name: 0.5 for p in inspect.signature(getattr(samplers, name)).parameters.values()
           if p.kind is p.KEYWORD_ONLY and p.default is p.empty}
  found = drawn(name=name, **block)
  if callable(found):
    assert np.isfinite(found(FIRST)).all() and found(FIRST).sum() == pytest.approx(1)
  else:
    assert name in ("instance", "class_aware")


def test_class_aware_sampling_takes_several_images_of_a_class():
  assert drawn(name="class_aware").samples_per_class == 4


def test_progressive_sampling_moves_with_its_schedule():
  found = drawn(name="progressive", progress=dict(name="linear"))
  np.testing.assert_allclose(found(FIRST), COUNTS / 111)
  np.testing.assert_allclose(found(LATER), 1 / 3)


# -- post-hoc blocks --------------------------------------------------------------------------------------------------

TAUS = dict(name="logit_adjustment", tau=(0.0, 1.0))
WRONG = [  # posthoc, parts of the message
    ((("tau_normalize", 1.0),), "posthoc[0]: expected dict(name="),
    (("tau_normalize",), "posthoc[0]: expected dict(name="),
    ((dict(tau=1.0),), "posthoc[0]: expected dict(name="),
    ((dict(name="tau_norm", tau=1.0),), "posthoc[0].name: there is no 'tau_norm' | did you mean 'tau_normalize'?"),
    ((dict(name="tde_logits"),), "there are logit_adjustment, nearest_class_mean, tau_normalize"),
    ((TAUS, dict(name="tau_normalize", taus=1.0)), "posthoc[1].taus: | did you mean 'tau'? | it takes tau"),
    ((dict(name="tau_normalize"),), "posthoc[0]: tau_normalize needs tau"),
    ((dict(name="tau_normalize", tau="x"),), "posthoc[0].tau: expected a number"),
    ((dict(name="tau_normalize", tau=-1.0),), "posthoc[0].tau: expected a number of at least 0"),
    ((dict(name="tau_normalize", tau=(0.5, -1.0)),), "posthoc[0].tau: expected a number of at least 0"),
    ((dict(name="tau_normalize", tau=(0.5, None)),), "posthoc[0].tau: expected a number"),
    ((dict(name="tau_normalize", tau=()),), "posthoc[0].tau: | got none"),
    ((dict(name="tau_normalize", tau=dict(name="linear", end=1.0)),), "posthoc[0].tau: | not a schedule"),
    ((dict(name="nearest_class_mean", metric="l1"),), "posthoc[0]: metric must be one of cosine, | 'l1'"),
    ((dict(name="nearest_class_mean", center=(1.0,)),), "posthoc[0].center: nearest_class_mean has no such argument"),
    ((dict(name="nearest_class_mean", stage="clasifier"),), "posthoc[0].stage: | 'classifier'? | representation, cl"),
    ((dict(name="nearest_class_mean", stage=3),), "posthoc[0].stage: there is no stage 3"),
    ((dict(name="nearest_class_mean", stag="classifier"),), "posthoc[0].stag: | did you mean 'stage'?"),
    ("tau_normalize", "posthoc: expected a tuple of dict"), (None, "posthoc: expected a tuple of dict"),
    (ConfigDict(dict(name="tau_normalize", tau=1.0)), "posthoc: expected a tuple of dict"),
]


@pytest.mark.parametrize(("blocks", "parts"), WRONG)
def test_wrong_posthoc_blocks_are_named_before_anything_runs(blocks, parts):
  found = changed("dataset.holdout", 0.1)
  found = ConfigDict(found.to_dict() | dict(posthoc=blocks))
  with pytest.raises(ConfigError) as caught:
    parse(found)
  for part in parts.split(" | "):
    assert part in str(caught.value)


def test_candidates_need_held_out_images():
  with pytest.raises(ConfigError, match=r"posthoc\[0\]\.tau: .*dataset.holdout is 0; set --config.dataset.holdout=0.1"):
    parse(changed("posthoc", (TAUS,)))
  parse(changed("posthoc", (dict(name="logit_adjustment"),)))
  held_out = changed("dataset.holdout", 0.1)
  held_out.posthoc = (TAUS | dict(epsilon=(0.0, 1e-12)),)
  (block,) = parse(held_out).posthoc
  assert [(c["tau"], c["epsilon"]) for c in block.candidates] == [(0.0, 0.0), (0.0, 1e-12), (1.0, 0.0), (1.0, 1e-12)]
  assert block.choices == ("tau", "epsilon") and block.stage == "classifier"


@pytest.mark.parametrize("head", ["LearnableScale", "DisAlign", "TDE", "WeightNorm"])
def test_tau_normalization_needs_a_head_that_is_only_a_kernel(head):
  found = changed("head", dict(name=head), name="ce_digits")
  found.posthoc = (dict(name="tau_normalize", tau=0.5),)
  with pytest.raises(ConfigError, match=rf"posthoc\[0\]: tau_normalize needs a head .*{head} has .*kernel"):
    parse(found)
