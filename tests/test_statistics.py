"""Calibration, ranking and intervals, against scikit-learn and against what must hold."""

import numpy as np
import pytest
from sklearn import metrics as reference

from ltjax import metrics
from ltjax.report import statistics

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 5, 200)
SCORES = RNG.normal(size=(200, 5)).round(1) + np.eye(5)[LABELS]  # rounded: there are ties
PREDICTED = SCORES.argmax(axis=1)


def test_auc_is_that_of_scikit_learn():
  everything = np.arange(200)
  found = statistics.one_vs_rest_auc(LABELS, SCORES[everything, LABELS], SCORES, everything)
  expected = [reference.roc_auc_score(c == LABELS, SCORES[:, c]) for c in range(5)]
  np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_auc_of_a_sample_is_near_and_a_class_without_examples_has_none():
  scores = np.concatenate([SCORES, RNG.normal(size=(200, 1))], axis=1)
  sample = np.sort(RNG.permutation(200)[:100])
  found = statistics.one_vs_rest_auc(LABELS, scores[np.arange(200), LABELS], scores[sample], sample)
  expected = [reference.roc_auc_score(c == LABELS, SCORES[:, c]) for c in range(5)]
  assert np.isnan(found[5]) and np.abs(found[:5] - expected).max() < 0.1


def test_means_of_accuracies_are_those_of_scikit_learn():
  confusion = metrics.confusion_matrix(LABELS, PREDICTED, 5)
  recall = reference.recall_score(LABELS, PREDICTED, average=None)
  assert metrics.macro_f1(confusion) == pytest.approx(reference.f1_score(LABELS, PREDICTED, average="macro"))
  assert metrics.geometric_mean(confusion) == pytest.approx(np.prod(recall) ** (1 / 5))
  assert metrics.harmonic_mean(confusion) == pytest.approx(5 / np.sum(1 / recall))
  assert metrics.harmonic_mean(confusion) <= metrics.geometric_mean(confusion) <= metrics.balanced_accuracy(confusion)


def test_a_class_that_is_never_right_makes_the_means_zero_and_one_without_images_does_not():
  never = np.array([[3, 0, 1], [2, 0, 0], [0, 0, 0]])
  assert metrics.geometric_mean(never) == metrics.harmonic_mean(never) == 0
  assert metrics.geometric_mean(np.array([[3, 1], [0, 0]])) == pytest.approx(0.75)


def test_a_model_that_is_as_often_right_as_it_says_has_no_calibration_error():
  confidence = RNG.uniform(0.2, 1, 20000)
  assert statistics.reliability(confidence, RNG.uniform(size=20000) < confidence).error < 0.02
  sure = statistics.reliability(np.ones(10), np.arange(10) < 4)
  assert sure.error == pytest.approx(0.6) and sure.counts[-1] == 10 and np.isnan(sure.accuracy[0])


def test_intervals_hold_the_accuracies_and_shrink_with_more_images():
  counts = np.array([500, 50, 5, 5])
  few = statistics.intervals(np.array([9, 5, 3, 0]), np.array([10, 10, 10, 0]), counts)
  many = statistics.intervals(np.array([900, 500, 300, 0]), np.array([1000, 1000, 1000, 0]), counts)
  for name, value in dict(overall=17 / 30, balanced=17 / 30, many=0.9, medium=0.5, few=0.3).items():
    for low, high in (few[name], many[name]):
      assert low <= value <= high
    assert many[name][1] - many[name][0] < few[name][1] - few[name][0]
  deviation = np.sqrt(0.5 * 0.5 / 1000)
  assert many["medium"][1] - many["medium"][0] == pytest.approx(2 * 1.96 * deviation, rel=0.1)
