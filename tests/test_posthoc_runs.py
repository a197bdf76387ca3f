"""Post-hoc methods of a run: their hyper-parameters are chosen on held-out images, never on the test set.

The network here passes its images through: their channels are the features and the logits.
"""

import types

import jax
import jax.numpy as jnp
import numpy as np

from ltjax import posthoc
from ltjax.config import parse
from ltjax.data import sources
from ltjax.models import heads
from tests import tiny


class Echo:
  """The outputs of `Stage.extractor` for a network that returns its images."""

  def __call__(self, images, *wanted):
    return {key: images[:, 0, 0].astype(np.float32) for key in wanted}


def split(*examples):
  """(images, labels) of (channels, label, times) triples."""
  images = np.concatenate([np.repeat(np.uint8([[[image]]]), times, axis=0) for image, _, times in examples])
  return images, np.concatenate([np.full(times, label) for _, label, times in examples])


def small(**changes):
  """Two classes of 90 and 10 training images; tau=1 is right on those held out, tau=0 on the test set."""
  found = dict(
      train=split(((9, 0), 0, 90), ((0, 9), 1, 10)), held_out=split(((3, 0), 0, 4), ((2, 1), 1, 2)),
      test=split(((1, 0), 0, 5), ((0, 1), 1, 5))) | changes
  return sources.Dataset(selected=np.arange(100), class_names=("a", "b"), mean=(0, 0), std=(1, 1), **found)


def run(dataset, *blocks, name="ce_digits", kernels=None):
  """The results of the posthoc `blocks` of all stages, with `kernels`, by default the identity."""
  spec = parse(tiny.config(name, dataset__holdout=0.2, posthoc=blocks))
  found = []
  for each in spec.stages:
    stage = types.SimpleNamespace(dataset=dataset, class_counts=dataset.class_counts,
                                  extractor=lambda variables: Echo())
    kernel = (kernels or {}).get(each.name, jnp.eye(2))
    found += posthoc.run([block for block in spec.posthoc if block.stage == each.name], stage,
                         dict(params=dict(head=dict(kernel=kernel))))
  return found


TAUS = dict(name="logit_adjustment", tau=(0.0, 1.0))


def test_the_best_candidate_on_held_out_images_is_chosen():
  (found,) = run(small(), TAUS)
  assert found["hyper_parameters"] == dict(tau=1.0, epsilon=1e-12)
  assert found["selection"] == dict(
      chosen_on="held-out training images", images=6, classes=2,
      candidates=[dict(tau=0.0, balanced_accuracy=0.5), dict(tau=1.0, balanced_accuracy=1.0)])
  assert (found["test"]["overall"], found["per_class"]) == (0.5, [0.0, 1.0])
  (fixed,) = run(small(), TAUS | dict(tau=0.0))
  assert fixed["test"]["overall"] == 1.0 and fixed["selection"] is None


def test_test_labels_do_not_change_the_choice():
  images, labels = small().test
  (found,), (other,) = (run(small(test=(images, given)), TAUS) for given in (labels, 0 * labels))
  assert found["selection"] == other["selection"] and found["hyper_parameters"] == other["hyper_parameters"]
  assert found["per_class"] != other["per_class"]


def test_the_test_set_is_read_after_the_choice(monkeypatch):
  log, choose = [], posthoc._choose

  class Watched(sources.Dataset):
    def __getattribute__(self, name):
      if name in ("held_out", "test"):
        log.append(name)
      return super().__getattribute__(name)

  def watched(*args):
    found = choose(*args)
    log.append("chosen")
    return found

  monkeypatch.setattr(posthoc, "_choose", watched)
  run(Watched(*small()), TAUS)
  assert set(log) == {"held_out", "chosen", "test"}
  assert "test" not in log[:log.index("chosen")] and "held_out" not in log[log.index("chosen"):]


def test_classes_count_equally_and_only_those_with_held_out_images():
  # 9 of 10 images are right for tau=0, but only half the classes; the first of equals is taken.
  held_out = split(((1, 0), 0, 9), ((2, 1), 1, 1))
  (found,) = run(small(held_out=held_out), TAUS | dict(tau=[0.0, 1.0, 0.4, 0.5]))
  scores = [candidate["balanced_accuracy"] for candidate in found["selection"]["candidates"]]
  assert scores == [0.5, 0.5, 0.5, 0.5] and found["hyper_parameters"]["tau"] == 0.0
  (found,) = run(small(held_out=split(((3, 0), 0, 4))), TAUS)
  assert [candidate["balanced_accuracy"] for candidate in found["selection"]["candidates"]] == [1.0, 1.0]
  assert (found["selection"]["images"], found["selection"]["classes"]) == (4, 1)


def test_class_means_classify_separable_features():
  dataset = small(train=split(((9, 1), 0, 90), ((200, 40), 0, 9), ((50, 120), 1, 10)),
                  test=split(((90, 10), 0, 5), ((7, 9), 1, 5), ((60, 70), 1, 1)))
  blocks = [dict(name="nearest_class_mean"), dict(name="nearest_class_mean", metric=("euclidean", "cosine"))]
  first, second = run(dataset, *blocks)
  assert first["hyper_parameters"] == dict(metric="cosine", unit=False)
  assert first["per_class"] == [1.0, 1.0]
  assert [candidate["metric"] for candidate in second["selection"]["candidates"]] == ["euclidean", "cosine"]


def test_tau_is_applied_to_the_kernel_of_the_named_stage():
  kernels = dict(representation=jnp.diag(jnp.array([1.0, 4.0])), classifier=jnp.diag(jnp.array([4.0, 1.0])))
  dataset = small(test=split(((5, 4), 0, 2), ((4, 5), 1, 2)))
  blocks = [dict(name="tau_normalize", tau=tau, stage=stage)
            for tau in (0.0, 1.0) for stage in ("representation", "classifier")]
  found = run(dataset, *blocks, name="gcl_digits", kernels=kernels)
  assert [entry["stage"] for entry in found] == 2 * ["representation"] + 2 * ["classifier"]
  assert [entry["per_class"] for entry in found] == [[0, 1], [1, 1], [1, 0], [1, 1]]


def test_several_hyper_parameters_are_chosen_together():
  (found,) = run(small(), TAUS | dict(epsilon=(0.0, 1e-12)))
  assert [(c["tau"], c["epsilon"]) for c in found["selection"]["candidates"]] == [
      (0.0, 0.0), (0.0, 1e-12), (1.0, 0.0), (1.0, 1e-12)]
  assert found["hyper_parameters"] == dict(tau=1.0, epsilon=0.0)


def test_tau_zero_is_the_kernel_without_the_bias():
  features = jax.random.normal(jax.random.key(0), (5, 4))
  logits, variables = heads.Linear(num_classes=10).init_with_output(jax.random.key(1), features)
  head = variables["params"]
  found = posthoc.method_logits("tau_normalize", dict(tau=0.0), lambda of, key: features, head["kernel"], None, None)
  np.testing.assert_allclose(found, features @ head["kernel"], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(found + head["bias"], logits, rtol=1e-4, atol=1e-5)
  assert np.abs(head["bias"]).max() > 0.1
