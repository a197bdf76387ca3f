"""F13 and F19 in complete runs; tests/test_nonfinite.py and tests/test_lock.py test the details."""

import numpy as np

from tests.faults import others


def test_a_number_that_becomes_infinite(tmp_path, cache):
  others.number(tmp_path / "run", cache, np.random.default_rng(0))


def test_a_second_run(tmp_path, cache):
  others.second_run(tmp_path / "run", cache)
