import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltjax import metrics
from ltjax.data import tally
from ltjax.errors import DataError
from tests import goldens


def test_docstring_examples():
  assert doctest.testmod(metrics).failed == doctest.testmod(tally).failed == 0


@goldens.parametrize("shot_acc")
def test_golden(case, hyper, inputs, outputs):
  confusion = metrics.confusion_matrix(inputs["labels"], inputs["preds"], len(inputs["counts"]))
  scores = metrics.group_accuracy(confusion, inputs["counts"])
  for name in ("overall", "many", "medium", "few"):
    np.testing.assert_allclose(scores[name], outputs[name], rtol=1e-12)
  np.testing.assert_allclose(metrics.per_class_accuracy(confusion), outputs["per_class_acc"], rtol=1e-12)


def test_confusion_counts_every_example_once_and_adds_up():
  rng = np.random.RandomState(0)
  labels, predictions = rng.randint(0, 7, 500), rng.randint(0, 7, 500)
  confusion = metrics.confusion_matrix(labels, predictions, 7)
  assert confusion.dtype == np.int64
  np.testing.assert_array_equal(confusion.sum(axis=1), np.bincount(labels, minlength=7))
  np.testing.assert_array_equal(confusion.sum(axis=0), np.bincount(predictions, minlength=7))
  pieces = (slice(0, 3), slice(3, 77), slice(77, 500))
  parts = sum(metrics.confusion_matrix(labels[piece], predictions[piece], 7) for piece in pieces)
  np.testing.assert_array_equal(parts, confusion)
  assert metrics.overall_accuracy(confusion) == (labels == predictions).mean()


def test_a_tally_has_the_accuracies_of_its_matrix():
  rng, counts = np.random.RandomState(0), np.array([500, 400, 50, 30, 5, 4, 3])
  labels, predictions = rng.randint(0, 6, 500), rng.randint(0, 7, 500)  # class 6 has no test example
  confusion, found = metrics.confusion_matrix(labels, predictions, 7), tally.count(labels, predictions, 7)
  for part, other in zip(found, tally.by_class(confusion), strict=True):
    np.testing.assert_array_equal(part, other)
  assert metrics.scores(found, counts) == metrics.scores(confusion, counts)
  assert metrics.measured(found) == metrics.measured(confusion) and metrics.measured(found)[6] is None
  assert metrics.balanced_accuracy(found) == metrics.balanced_accuracy(confusion)
  with pytest.raises(DataError, match="3 classes"):
    metrics.scores(found, counts[:3])


def test_batches_of_thousands_of_classes_are_counted_without_a_matrix():
  rng, classes = np.random.RandomState(0), tally.LARGEST_MATRIX + 1
  labels, predictions, valid = rng.randint(0, classes, 900), rng.randint(0, classes, 900), rng.rand(900) < 0.9
  predictions[::3] = labels[::3]
  counts = jax.tree.map(jnp.asarray, tally.zeros(classes))
  for rows in np.split(np.arange(900), 3):
    counts = jax.jit(tally.add)(counts, labels[rows], predictions[rows], valid[rows])
  for part, other in zip(counts, tally.count(labels[valid], predictions[valid], classes), strict=True):
    np.testing.assert_array_equal(part, other)
  assert isinstance(tally.zeros(classes - 1), np.ndarray)


def test_narrow_integers_do_not_overflow():
  labels = np.full(3, 199, np.uint8)
  assert metrics.confusion_matrix(labels, labels, 200)[199, 199] == 3


def test_groups_follow_the_training_counts_in_any_order():
  confusion = np.diag([4, 3, 2, 1]) + np.array([[0, 0, 0, 0], [1, 0, 0, 0], [2, 0, 0, 0], [3, 0, 0, 0]])
  scores = metrics.group_accuracy(confusion, np.array([5, 1000, 50, 101]))
  assert scores == {"overall": 10 / 16, "many": 0.5, "medium": 0.5, "few": 1.0}


def test_a_class_without_test_examples_is_left_out_of_the_mean_of_its_group():
  confusion = np.array([[2, 0, 0], [0, 0, 0], [1, 0, 1]])
  np.testing.assert_array_equal(metrics.per_class_accuracy(confusion), [1, 0, 0.5])
  assert metrics.group_accuracy(confusion, np.array([500, 400, 5])) == {
    "overall": 0.75, "many": 1.0, "medium": 0.0, "few": 0.5}


@pytest.mark.parametrize(("function", "arguments", "message"), [
    (metrics.confusion_matrix, ([0, 1], [0, 2], 2), r"predictions\[1\] is 2"),
    (metrics.confusion_matrix, ([-1], [0], 2), r"labels\[0\] is -1"),
    (metrics.confusion_matrix, ([0, 1], [0], 2), "one length"),
    (metrics.overall_accuracy, (np.zeros((2, 2), int),), "no test example"),
    (metrics.group_accuracy, (np.eye(2, dtype=int), [1, 2, 3]), "3 classes")])
def test_wrong_input_gets_an_error_that_names_it(function, arguments, message):
  with pytest.raises(DataError, match=message):
    function(*arguments)


def test_measured_has_none_for_a_class_without_test_examples():
  confusion = np.array([[2, 0, 0], [0, 0, 0], [1, 0, 1]])
  assert metrics.measured(confusion) == [1.0, None, 0.5]
  found = metrics.scores(confusion, np.array([500, 50, 5]))
  assert found == dict(overall=0.75, many=1.0, medium=None, few=0.5)
  assert metrics.balanced_accuracy(confusion) == 0.75
