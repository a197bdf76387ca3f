"""Every test image is counted exactly once, whatever the size of the batches."""

import jax
import numpy as np
import pytest

from ltjax import metrics
from ltjax.data import evaluate, feed, tally
from ltjax.distributed import sharding
from tests import tiny

BATCH_SIZES = [1, 7, 64, 393, 400, 1000]


@pytest.fixture(scope="module")
def stage():
  """A stage whose test set is unbalanced, so that a transposed matrix or a repeated image shows."""
  config = tiny.config("ce_digits", backbone=tiny.ONE_CONV)
  dataset = tiny.dataset(config)
  images, labels = dataset.test
  kept = np.random.default_rng(0).permutation(len(labels))[:393]
  (made,) = tiny.stages(config, dataset._replace(test=(images[kept], labels[kept]))).values()
  return made


@pytest.fixture(scope="module")
def variables(stage):
  """Random variables."""
  return stage.init()


@pytest.fixture(scope="module")
def outputs(stage, variables):
  """Logits and features of the test images, in one forward pass."""
  mean, std = np.float32(stage.dataset.mean), np.float32(stage.dataset.std)
  logits, features = stage.model.apply(variables, (stage.dataset.test[0] / np.float32(255) - mean) / std, train=False)
  return dict(logits=np.asarray(logits), features=np.asarray(features))


@pytest.fixture(scope="module")
def expected(stage, outputs):
  """NumPy's confusion matrix."""
  return metrics.confusion_matrix(stage.dataset.test[1], outputs["logits"].argmax(axis=1), 10)


def evaluator(stage, batch_size):
  return evaluate.Evaluator(stage.model, stage.dataset, "test", stage.augmentation, batch_size=batch_size,
                            mesh=stage.mesh, streamed=False)


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_every_image_counts_once(stage, variables, expected, batch_size):
  evaluate = evaluator(stage, batch_size)
  given = sharding.replicate(variables, stage.mesh)
  confusion = evaluate(given)
  assert np.issubdtype(confusion.dtype, np.integer)
  np.testing.assert_array_equal(confusion, expected)
  np.testing.assert_array_equal(evaluate(given), expected)  # the second call starts from zero
  assert evaluate._step._cache_size() == 1


@pytest.mark.parametrize(("batch_size", "largest_matrix"), [(100, 10), (400, 5)])
def test_the_feature_norms_of_a_class_are_means_over_its_images(stage, variables, outputs, expected, batch_size,
                                                                largest_matrix, monkeypatch):
  monkeypatch.setattr(tally, "LARGEST_MATRIX", largest_matrix)
  found = evaluator(stage, batch_size).measure(sharding.replicate(variables, stage.mesh), lambda counted: False)
  assert isinstance(found.counts, tally.Tally) == (largest_matrix < 10)
  np.testing.assert_array_equal(tally.by_class(found.counts).right, np.diagonal(expected))
  labels, norms = stage.dataset.test[1], np.sqrt((outputs["features"].astype(np.float64) ** 2).sum(axis=1))
  means = [norms[labels == c].mean() for c in range(10)]
  np.testing.assert_allclose(found.feature_norms, means, rtol=1e-5)
  assert np.ptp(means) > 0.01


def test_rows_are_true_classes(stage, expected):
  true = np.bincount(stage.dataset.test[1], minlength=10)
  assert len(set(true)) > 1
  np.testing.assert_array_equal(expected.sum(axis=1), true)
  assert (expected.sum(axis=0) != true).any() and np.count_nonzero(expected.sum(axis=0)) > 1


def test_the_variables_stay_as_they_are(stage, variables):
  given = sharding.replicate(variables, stage.mesh)
  before = jax.device_get(given)
  evaluator(stage, 200)(given)
  tiny.assert_trees_equal(jax.device_get(given), before)


def test_an_evaluation_may_be_stopped_between_batches(stage, variables):
  asked = []
  given = sharding.replicate(variables, stage.mesh)
  assert evaluator(stage, 100)(given, lambda counted: asked.append(int(counted.sum())) or len(asked) == 2) is None
  assert asked == [100, 200]


# -- features and logits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, 393, 1000])
def test_every_image_is_extracted_once_and_in_order(stage, variables, outputs, batch_size):
  extract = stage.extractor(variables, batch_size)
  images = stage.dataset.test[0]
  for key, value in extract(images, "features", "logits").items():
    assert isinstance(value, np.ndarray) and value.dtype == np.float32
    np.testing.assert_allclose(value, outputs[key], rtol=1e-4, atol=1e-5)
  assert set(extract(images[:20], "features")) == {"features"}
  assert extract._forward.func._cache_size() == 1  # for sets of all sizes


def test_some_images_are_extracted_by_their_indices(stage, variables, outputs):
  places = np.array([5, 392, 0, 5])
  found = stage.extractor(variables, 3)(stage.dataset.test[0], "logits", places=places)
  np.testing.assert_allclose(found["logits"], outputs["logits"][places], rtol=1e-4, atol=1e-5)


def test_the_arrays_of_a_split_are_what_an_evaluator_counts(stage):
  np.testing.assert_array_equal(feed.arrays(stage.dataset, "test")["labels"], stage.dataset.test[1])
