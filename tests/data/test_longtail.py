import doctest
import hashlib

import numpy as np
import pytest

from ltjax.data import longtail
from ltjax.errors import ConfigError, DataError
from tests import goldens

PROFILES = (longtail.exponential_counts, longtail.step_counts, longtail.pareto_counts)
# sha256 of the little-endian int64 indices that NumPy's global generator, seeded with 0, selects on the real labels.
SELECTED = {
  ("cifar10", 100): "4bf45bff8878d2786e47dccd702f96ff33b2b11d8c7da3b5015f10937290f866",
  ("cifar10", 50): "d7edcfaf02772bee1e2310a33be8b6c46232f043641158348b9de3ec731e26ac",
  ("cifar100", 100): "e0d58a4d2700c46062da852554e5d185bbee74d3c612b052ea2a839bdadf939e",
  ("cifar100", 50): "561fa940cc7d3551d441643e310c7e439bf84f86b7863a3f7364963522d2984a",
}


def test_docstring_examples():
  assert doctest.testmod(longtail).failed == 0


@goldens.parametrize("cifar_lt")
def test_cifar_counts(case, hyper, inputs, outputs):
  _, kind, rho = case.split(".")
  profile = {"exp": longtail.exponential_counts, "step": longtail.step_counts}[kind]
  counts = profile(10, 5000, int(rho.removeprefix("rho")))
  assert counts.dtype == np.int64
  np.testing.assert_array_equal(counts, outputs["counts"])
  assert counts.sum() == outputs["total"]


@pytest.mark.parametrize(("imbalance", "total", "tail", "groups"), [
  (10, 19573, 50, (69, 31, 0)),
  (20, 15907, 25, (53, 47, 0)),
  (50, 12608, 10, (41, 41, 18)),
  (100, 10847, 5, (35, 35, 30)),
  (200, 9502, 2, (30, 31, 39)),
])
def test_cifar100_counts_and_groups(imbalance, total, tail, groups):
  counts = longtail.exponential_counts(100, 500, imbalance)
  assert (counts.sum(), counts[0], counts[-1]) == (total, 500, tail)
  assert tuple(len(classes) for classes in longtail.shot_groups(counts).values()) == groups


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_fall_from_the_largest_to_the_smallest_count(profile):
  for classes, largest, imbalance in ((2, 100, 4), (7, 1000, 10), (1000, 1280, 256), (365, 4980, 996)):
    counts = profile(classes, largest, imbalance)
    assert (len(counts), counts[0], counts[-1]) == (classes, largest, int(largest * (1 / imbalance)))
    assert (np.diff(counts) <= 0).all()
  assert profile(1, 17, 10).tolist() == [17]
  assert profile(3, 17, 1).tolist() == [17, 17, 17]


def test_step_with_an_odd_number_of_classes_keeps_them_all():
  assert longtail.step_counts(5, 100, 10).tolist() == [100, 100, 10, 10, 10]


def test_pareto_is_close_to_the_lists_of_imagenet_lt():
  counts = longtail.pareto_counts(1000, 1280, 256)
  assert counts.sum() == 121449
  assert [len(classes) for classes in longtail.shot_groups(counts).values()] == [404, 456, 140]
  assert longtail.pareto_counts(1000, 1280, 256, alpha=3.0).sum() < counts.sum()


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(("arguments", "message"), [
  ((0, 100, 10), "num_classes"),
  ((2.5, 100, 10), "num_classes"),
  ((10, 0, 10), "max_count"),
  ((10, float("nan"), 10), "max_count"),
  ((10, 100, 0.5), "imbalance"),
  ((10, 100, float("inf")), "imbalance"),
  ((10, 100, float("nan")), "imbalance"),
  ((10, 50, 100), r"class \d+ would have 0 images .*max_count=50"),
])
def test_impossible_profiles_are_explained(profile, arguments, message):
  with pytest.raises(ConfigError, match=message):
    profile(*arguments)


def test_pareto_needs_a_positive_power():
  with pytest.raises(ConfigError, match="alpha"):
    longtail.pareto_counts(10, 100, 10, alpha=0)


@pytest.mark.parametrize(("dataset", "imbalance"), SELECTED)
def test_the_selected_cifar_images_are_the_field_s(dataset, imbalance):
  with np.load(goldens.FOLDER / "cifar_labels.npz") as stored:
    labels = stored[dataset]
  classes = int(labels.max()) + 1
  counts = longtail.exponential_counts(classes, 50000 // classes, imbalance)
  chosen = longtail.long_tailed_subset(labels, counts)
  assert chosen.dtype == np.int64
  np.testing.assert_array_equal(labels[chosen], np.repeat(np.arange(classes), counts))
  assert hashlib.sha256(chosen.astype("<i8").tobytes()).hexdigest() == SELECTED[dataset, imbalance]


def test_the_subset_depends_on_its_seed_and_not_on_the_global_generator():
  labels, counts = np.tile(np.arange(3), 50), np.array([5, 40, 1])
  first = longtail.long_tailed_subset(labels, counts)
  np.random.seed(7)
  np.testing.assert_array_equal(longtail.long_tailed_subset(labels.astype(np.uint8), counts, seed=0), first)
  assert (longtail.long_tailed_subset(labels, counts, seed=666) != first).any()
  np.testing.assert_array_equal(labels[first], np.repeat(np.arange(3), counts))
  assert len(np.unique(first)) == counts.sum()


@pytest.mark.parametrize(("labels", "counts", "message"), [
  ([0, 1, 1], [1, 3], "class 1: 3 images requested, 1 to 2 possible"),
  ([0, 1, 1], [0, 2], "class 0: 0 images requested"),
  ([0, 1, 2], [1, 1], "label 2 of image 2"),
  ([0, -1, 1], [1, 1], "label -1 of image 1"),
  ([0.0, 1.0], [1, 1], "float64"),
  ([[0, 1]], [1, 1], "shape"),
])
def test_impossible_subsets_are_explained(labels, counts, message):
  with pytest.raises(DataError, match=message):
    longtail.long_tailed_subset(np.array(labels), np.array(counts))


def test_shot_groups_at_their_bounds_and_in_any_order():
  groups = longtail.shot_groups(np.array([19, 101, 20, 100, 1, 5000]))
  assert {name: classes.tolist() for name, classes in groups.items()} == {
    "many": [1, 5], "medium": [2, 3], "few": [0, 4]}
  assert longtail.shot_groups(np.array([1000, 200]), many=500, few=300)["few"].tolist() == [1]
  with pytest.raises(ConfigError, match="few=20 and many=10"):
    longtail.shot_groups(np.array([1]), many=10)
