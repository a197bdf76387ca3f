"""Initializers that several modules use."""

import flax.linen as nn
import jax

# PyTorch's kaiming_normal_; the initializer that jax calls kaiming_normal draws from a truncated normal.
kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
kaiming_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# PyTorch's default for linear layers, kaiming_uniform_(a=sqrt(5)).
kaiming_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def symmetric_uniform(bound: float):
  """U(-bound, bound)."""
  return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)
