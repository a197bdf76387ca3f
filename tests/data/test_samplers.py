import doctest
import inspect

import numpy as np
import pytest

from ltjax.data import samplers
from ltjax.errors import ConfigError, DataError
from tests import goldens

UNSORTED = np.array([30, 5000, 2, 700, 1])
EVERY = [
  (name, {"q": 0.7} if name == "power" else {"progress": 0.3} if name == "progressive" else {})
  for name in samplers.__all__
]
PROBABILITIES = [(name, arguments) for name, arguments in EVERY if name != "class_aware"]
# Every stored case by its last name: ours, and how closely. The GCL code computes CBEN's beta in float32.
GOLDEN = {
  "class_balanced": (samplers.class_balanced, {}, 1e-9),
  "square_root": (samplers.square_root, {}, 1e-9),
  "effective_number0.9999": (samplers.effective_number, {"beta": 0.9999}, 1e-9),
  "cben_fbl_repo": (samplers.cben, {}, 1e-9),
  "cben_gcl_repo": (samplers.cben, {"a": 0.9999, "b": 1e-5}, 1e-4),
}


def test_docstring_examples():
  assert doctest.testmod(samplers).failed == 0


@goldens.parametrize("samplers")
def test_golden(case, hyper, inputs, outputs):
  name = case.split(".", 2)[2]
  if name.startswith("progressive"):
    sampler, arguments, rtol = samplers.progressive, {"progress": hyper["lam"]}, 1e-9
  else:
    sampler, arguments, rtol = GOLDEN[name]
  probabilities = sampler(inputs["counts"], **arguments)
  np.testing.assert_allclose(probabilities, outputs["class_prob"], rtol=rtol)
  if "sample_weight_per_class" in outputs:
    mass = outputs["sample_weight_per_class"] * inputs["counts"]
    np.testing.assert_allclose(probabilities, mass / mass.sum(), rtol=rtol)


@goldens.parametrize("paper_gcl_cben")
def test_cben_of_the_thesis(case, hyper, inputs, outputs):
  if "class_prob" not in outputs:
    pytest.skip("a loss: tests/losses/test_golden.py")
  np.testing.assert_allclose(samplers.cben(inputs["counts"], **hyper), outputs["class_prob"], rtol=1e-9)


@pytest.mark.parametrize(("name", "arguments"), PROBABILITIES)
def test_every_sampler_gives_probabilities_in_any_order_of_the_classes(name, arguments):
  sampler = getattr(samplers, name)
  for counts in (UNSORTED, np.array([1]), np.array([1, 10**6]), np.geomspace(1, 1e6, 8142).astype(int)):
    probabilities = sampler(counts, **arguments)
    assert probabilities.shape == counts.shape
    assert probabilities.dtype == np.float64
    assert (probabilities > 0).all()
    np.testing.assert_allclose(probabilities.sum(), 1, rtol=1e-12)
    np.testing.assert_allclose(sampler(counts[::-1], **arguments), probabilities[::-1], rtol=1e-12)
  np.testing.assert_allclose(sampler(np.full(4, 7), **arguments), 0.25, rtol=1e-12)


@pytest.mark.parametrize(("name", "arguments"), EVERY)
@pytest.mark.parametrize(("counts", "message"), [
  ([3, 0, 2, 0], r"class 1 has 0, class 3 has 0 \(2 such classes of 4\)"),
  ([3, -1], "class 1 has -1"),
  ([np.nan, 1], "class 0 has nan"),
  ([], "shape"),
  ([[1, 2]], "shape"),
])
def test_every_sampler_names_the_classes_it_cannot_draw_from(name, arguments, counts, message):
  with pytest.raises(DataError, match=message):
    getattr(samplers, name)(np.array(counts), **arguments)


def test_the_family_meets_at_its_ends():
  pi = UNSORTED / UNSORTED.sum()
  exact = {"rtol": 1e-12}
  np.testing.assert_allclose(samplers.instance(UNSORTED), pi, **exact)
  np.testing.assert_allclose(samplers.class_balanced(UNSORTED), 1 / 5, **exact)
  np.testing.assert_allclose(samplers.power(UNSORTED, q=0.5), samplers.square_root(UNSORTED), **exact)
  np.testing.assert_allclose(samplers.reverse(UNSORTED), (1 / UNSORTED) / (1 / UNSORTED).sum(), **exact)
  np.testing.assert_allclose(samplers.progressive(UNSORTED, progress=0.0), pi, **exact)
  np.testing.assert_allclose(samplers.progressive(UNSORTED, progress=1.0), 1 / 5, **exact)
  np.testing.assert_allclose(samplers.effective_number(UNSORTED, beta=0.0), pi, **exact)
  np.testing.assert_allclose(samplers.effective_number(UNSORTED, beta=1 - 1e-12), 1 / 5, rtol=1e-8)
  np.testing.assert_allclose(samplers.cben(UNSORTED, a=0.99, b=0.0),
                             samplers.effective_number(UNSORTED, beta=0.99), **exact)
  np.testing.assert_allclose(samplers.cben(UNSORTED, a=0.0, b=0.0), pi, **exact)


def test_effective_number_does_not_cancel_near_beta_one():
  np.testing.assert_allclose(samplers.effective_number(np.array([1, 2, 3]), beta=1 - 1e-15), 1 / 3, rtol=1e-12)


def test_the_largest_beta_of_cben_stays_below_one():
  with pytest.raises(ConfigError, match=r"cben: a \+ b must be below 1, got a=0.9999 and b=0.0001"):
    samplers.cben(UNSORTED, a=0.9999, b=0.0001)


def test_all_lists_every_public_sampler():
  public = [name for name, value in vars(samplers).items()
            if inspect.isfunction(value) and value.__module__ == samplers.__name__ and not name.startswith("_")]
  assert sorted(public) == samplers.__all__


def test_a_cycle_draws_permutations_only_for_existing_classes():
  asked = []

  def permutation(name, counter, size):
    asked.append((name, counter, size))
    return np.arange(size)

  classes, within = samplers.class_aware(UNSORTED, samples_per_class=2).at(np.arange(20, 24), permutation)
  assert (classes.tolist(), within.tolist()) == ([0, 0, 1, 1], [4, 5, 4, 5])  # the third round
  assert asked == [("classes", 2, 5), ("class0", 0, 30), ("class1", 0, 5000)]
