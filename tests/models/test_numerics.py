"""The arithmetic that layers share."""

import jax
import numpy as np
import pytest

from ltjax.distributed import platforms
from ltjax.models import numerics

LAYOUT = dict(dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=6)


@pytest.mark.parametrize(("side", "size", "stride", "padding"), [
    (7, 3, 1, "SAME"), (8, 3, 2, "SAME"), (8, 5, 2, "SAME"), (7, 5, 1, "VALID"), (8, 3, 2, ((1, 1), (0, 2)))])
def test_a_depthwise_convolution_on_a_cpu_is_the_general_one(side, size, stride, padding):
  images = jax.random.normal(jax.random.key(0), (2, side, side + 1, 6))
  kernel = jax.random.normal(jax.random.key(1), (size, size, 1, 6))

  def run(images, kernel):
    return numerics.depthwise(images, kernel, (stride, stride), padding, **LAYOUT)

  assert platforms.target() == "cpu"
  found, pull = jax.vjp(run, images, kernel)
  with platforms.planned("tpu"):  # the general convolution, which CPUs can do too
    wanted, pull_general = jax.vjp(run, images, kernel)
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
  for mine, general in zip(pull(wanted), pull_general(wanted), strict=True):
    np.testing.assert_allclose(mine, general, rtol=1e-4, atol=1e-4)
