"""Every test image is counted exactly once, whatever the size of the batches."""

import jax
import numpy as np
import pytest

from ltjax import evaluate, metrics, models
from ltjax.config import bind as build
from ltjax.data import resident
from ltjax.distributed import sharding
from ltjax.evaluate import Evaluator
from ltjax.models import heads
from tests import tiny


@pytest.fixture(scope="module")
def whole_set():
  """(model, state, test arrays, confusion matrix): a random network, and NumPy's argmax over one forward pass."""
  config = tiny.config("ce_digits")
  parts = tiny.parts(config, "representation", tiny.one_conv)
  images, labels = build.dataset(config)().test
  # An unbalanced set, so that a transposed matrix or a repeated image shows.
  keep = np.random.default_rng(0).permutation(len(labels))[:393]
  dataset = build.dataset(config)()._replace(test=(images[keep], labels[keep]))
  state, data = parts.state(), resident.arrays(dataset, "test")
  pixels = (dataset.test[0] / np.float32(255) - data["mean"]) / data["std"]
  variables = dict(params=state.params, batch_stats=state.batch_stats)
  logits = np.asarray(parts.model.apply(variables, pixels, train=False)[0])
  expected = metrics.confusion_matrix(dataset.test[1], logits.argmax(axis=1), 10)
  return parts.model, state, data, expected


@pytest.mark.parametrize("batch_size", [1, 7, 64, 393, 400, 1000])
def test_every_image_counts_once(whole_set, batch_size):
  model, state, data, expected = whole_set
  mesh = sharding.data_mesh()
  evaluator = Evaluator(model, jax.device_put(data, sharding.replicated(mesh)), 10, batch_size=batch_size, mesh=mesh)
  state = jax.device_put(state, sharding.replicated(mesh))
  confusion = evaluator(state)
  assert confusion.dtype == np.int64
  np.testing.assert_array_equal(confusion, expected)
  np.testing.assert_array_equal(evaluator(state), expected)  # the second call starts from zero
  assert evaluator._step._cache_size() == 1


def test_rows_are_true_classes(whole_set):
  _, _, data, expected = whole_set
  true = np.bincount(data["labels"], minlength=10)
  assert len(set(true)) > 1
  np.testing.assert_array_equal(expected.sum(axis=1), true)
  assert (expected.sum(axis=0) != true).any() and np.count_nonzero(expected.sum(axis=0)) > 1


def test_the_state_is_left_alone(whole_set):
  model, state, data, _ = whole_set
  mesh = sharding.data_mesh()
  state = jax.device_put(state, sharding.replicated(mesh))
  before = jax.device_get(state)
  data = jax.device_put(data, sharding.replicated(mesh))
  Evaluator(model, data, 10, batch_size=200, mesh=mesh)(state)
  tiny.assert_trees_equal(jax.device_get(state), before)


# -- features and logits -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def linear():
  """(model, variables, features, logits) of a random network with a Linear head, and images to extract from."""
  dataset = build.dataset(tiny.config("ce_digits"))()
  images = dataset.test[0][:150]
  model = models.Classifier(backbone=tiny.OneConv(), head=heads.Linear(num_classes=10))
  pixels = (images / np.float32(255) - np.float32(dataset.mean)) / np.float32(dataset.std)
  variables = model.init(jax.random.key(0), pixels[:1], train=False)
  logits, features = model.apply(variables, pixels, train=False)
  return model, variables, dataset, images, dict(features=features, logits=logits)


@pytest.mark.parametrize("batch_size", [1, 7, 150, 1000])
def test_every_image_is_extracted_once_and_in_order(linear, batch_size):
  model, variables, dataset, images, expected = linear
  extract = evaluate.Extractor(model, variables, mean=dataset.mean, std=dataset.std, batch_size=batch_size,
                               mesh=sharding.data_mesh())
  found = extract(images, "features", "logits")
  for key, value in found.items():
    assert isinstance(value, np.ndarray) and value.dtype == np.float32
    np.testing.assert_allclose(value, expected[key], rtol=1e-4, atol=1e-5)
  assert set(extract(images[:20], "features")) == {"features"}
  assert extract._forward.func._cache_size() == 1  # sets of all sizes share it
