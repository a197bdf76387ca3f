"""Post-hoc methods: nothing is chosen on the test set. Images here are their own features and logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ltjax import evaluate, selection
from ltjax.config import load as configs
from ltjax.data import sources
from ltjax.errors import ConfigError
from ltjax.models import heads
from tests import tiny


class Echo:
  """Stands in for `Extractor`: an image's channels are its features and its logits."""

  def __init__(self, model, variables, **kwargs):
    self._factor = variables["factor"]

  def __call__(self, images, *wanted):
    return {key: self._factor * images[:, 0, 0].astype(np.float32) for key in wanted}


@pytest.fixture
def echo(monkeypatch):
  monkeypatch.setattr(evaluate, "Extractor", Echo)


def split(*examples):
  """(images, labels) of (image, label, times) triples; an image is its channels."""
  images = np.concatenate([np.repeat(np.uint8([[[image]]]), times, axis=0) for image, _, times in examples])
  return images, np.concatenate([np.full(times, label) for _, label, times in examples])


def small(**changes):
  """Two classes of 90 and 10 training images; on those held out tau=1 is right, on the test set tau=0."""
  found = dict(
      train=split(((9, 0), 0, 90), ((0, 9), 1, 10)), held_out=split(((3, 0), 0, 4), ((2, 1), 1, 2)),
      test=split(((1, 0), 0, 5), ((0, 1), 1, 5))) | changes
  return sources.Dataset(selected=np.arange(100), class_names=("a", "b"), mean=(0, 0), std=(1, 1), **found)


def run(dataset, *blocks, name="ce_digits", **variables):
  kernel = dict(params=dict(head=dict(kernel=jnp.eye(2))), factor=1)
  return selection.run(tiny.config(name, dataset__holdout=0.2, posthoc=blocks), dataset,
                              variables or dict(representation=kernel))


TAUS = dict(name="logit_adjustment", tau=(0.0, 1.0))


def test_the_choice_is_the_best_on_what_is_held_out_not_on_the_test_set(echo):
  (found,) = run(small(), TAUS)
  assert found["hyper_parameters"] == dict(tau=1.0, epsilon=1e-12)
  assert found["selection"] == dict(
      chosen_on="held-out training images", images=6, classes=2,
      candidates=[dict(tau=0.0, balanced_accuracy=0.5), dict(tau=1.0, balanced_accuracy=1.0)])
  assert (found["test"]["overall"], found["per_class"]) == (0.5, [0.0, 1.0])
  (fixed,) = run(small(), TAUS | dict(tau=0.0))
  assert fixed["test"]["overall"] == 1.0 and fixed["selection"] is None


def test_test_labels_do_not_move_the_choice(echo):
  images, labels = small().test
  (found,), (other,) = (run(small(test=(images, given)), TAUS) for given in (labels, 0 * labels))
  assert found["selection"] == other["selection"] and found["hyper_parameters"] == other["hyper_parameters"]
  assert found["per_class"] != other["per_class"]


def test_the_test_set_is_read_after_the_choice(echo, monkeypatch):
  log, choose = [], selection._choose

  class Watched(sources.Dataset):
    def __getattribute__(self, name):
      if name in ("held_out", "test"):
        log.append(name)
      return super().__getattribute__(name)

  def watched(*args):
    found = choose(*args)
    log.append("chosen")
    return found

  monkeypatch.setattr(selection, "_choose", watched)
  run(Watched(*small()), TAUS)
  assert set(log) == {"held_out", "chosen", "test"}
  assert "test" not in log[:log.index("chosen")] and "held_out" not in log[log.index("chosen"):]


def test_classes_weigh_the_same_and_those_without_held_out_images_nothing(echo):
  # 9 of 10 images are right for tau=0, but only half the classes; the first of equals is taken.
  held_out = split(((1, 0), 0, 9), ((2, 1), 1, 1))
  (found,) = run(small(held_out=held_out), TAUS | dict(tau=[0.0, 1.0, 0.4, 0.5]))
  scores = [candidate["balanced_accuracy"] for candidate in found["selection"]["candidates"]]
  assert scores == [0.5, 0.5, 0.5, 0.5] and found["hyper_parameters"]["tau"] == 0.0
  (found,) = run(small(held_out=split(((3, 0), 0, 4))), TAUS)
  assert [candidate["balanced_accuracy"] for candidate in found["selection"]["candidates"]] == [1.0, 1.0]
  assert (found["selection"]["images"], found["selection"]["classes"]) == (4, 1)


def test_class_means_of_separable_features_are_always_right(echo):
  dataset = small(train=split(((9, 1), 0, 90), ((200, 40), 0, 9), ((50, 120), 1, 10)),
                  test=split(((90, 10), 0, 5), ((7, 9), 1, 5), ((60, 70), 1, 1)))
  blocks = [dict(name="nearest_class_mean"), dict(name="nearest_class_mean", metric=("euclidean", "cosine"))]
  first, second = run(dataset, *blocks)
  assert first["hyper_parameters"] == dict(metric="cosine", unit=False)
  assert first["per_class"] == [1.0, 1.0]
  assert [candidate["metric"] for candidate in second["selection"]["candidates"]] == ["euclidean", "cosine"]


def test_tau_is_applied_to_the_kernel_of_the_named_stage(echo):
  sizes = dict(representation=(1.0, 4.0), classifier=(4.0, 1.0))
  variables = {stage: dict(params=dict(head=dict(kernel=jnp.diag(jnp.array(size)))), factor=1)
               for stage, size in sizes.items()}
  dataset = small(test=split(((5, 4), 0, 2), ((4, 5), 1, 2)))
  blocks = [dict(name="tau_normalize", tau=tau, **stage)
            for tau in (0.0, 1.0) for stage in ({}, dict(stage="representation"))]
  found = run(dataset, *blocks, name="gcl_digits", **variables)
  assert [entry["stage"] for entry in found] == 2 * ["classifier", "representation"]
  assert [entry["per_class"] for entry in found] == [[1, 0], [0, 1], [1, 1], [1, 1]]


def test_several_hyper_parameters_are_chosen_together(echo):
  (found,) = run(small(), TAUS | dict(epsilon=(0.0, 1e-12)))
  assert [(c["tau"], c["epsilon"]) for c in found["selection"]["candidates"]] == [
      (0.0, 0.0), (0.0, 1e-12), (1.0, 0.0), (1.0, 1e-12)]
  assert found["hyper_parameters"] == dict(tau=1.0, epsilon=0.0)


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
]


@pytest.mark.parametrize(("blocks", "parts"), WRONG)
def test_bad_blocks_are_named_before_anything_runs(blocks, parts):
  config = tiny.config(dataset__holdout=0.1)
  config.posthoc = blocks
  with pytest.raises(ConfigError) as caught:
    configs.check(config)
  for part in parts.split(" | "):
    assert part in str(caught.value)


def test_what_is_no_tuple_of_blocks_is_named():
  tree = tiny.config().to_dict()
  for wrong in ("tau_normalize", None, dict(name="tau_normalize", tau=1.0)):
    with pytest.raises(ConfigError, match="posthoc: expected a tuple of dict"):
      configs.check(ConfigDict(tree | dict(posthoc=wrong)))


def test_candidates_need_held_out_images():
  with pytest.raises(ConfigError, match=r"posthoc\[0\]\.tau: .*dataset.holdout is 0; set --config.dataset.holdout=0.1"):
    configs.check(tiny.config(posthoc=(TAUS,)))
  configs.check(tiny.config(posthoc=(TAUS,), dataset__holdout=0.1))
  configs.check(tiny.config(posthoc=(dict(name="logit_adjustment"),)))


@pytest.mark.parametrize("head", ["LearnableScale", "DisAlign", "TDE", "WeightNorm"])
def test_tau_is_refused_where_the_kernel_is_not_the_whole_head(head):
  config = tiny.config("ce_digits", head=dict(name=head), posthoc=(dict(name="tau_normalize", tau=0.5),))
  with pytest.raises(ConfigError, match=rf"posthoc\[0\]: tau_normalize needs a head .*'{head}' has .*kernel"):
    configs.check(config)


def test_tau_zero_is_the_kernel_without_the_bias():
  features = jax.random.normal(jax.random.key(0), (5, 4))
  logits, variables = heads.Linear(num_classes=10).init_with_output(jax.random.key(1), features)
  head = variables["params"]
  found = selection._logits("tau_normalize", dict(tau=0.0), lambda _, key: features, head["kernel"], None, None)
  np.testing.assert_allclose(found, features @ head["kernel"], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(found + head["bias"], logits, rtol=1e-4, atol=1e-5)
  assert np.abs(head["bias"]).max() > 0.1
