"""Margins and clouds on cosine logits: un-scaled cosines in, adjusted and scaled logits out; a loss follows."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Real

from ltjax.errors import ConfigError
from ltjax.losses.arguments import at_least_float32, positive_counts

__all__ = ["gcl"]

# Written so that the most frequent class gets exactly zero in every precision: cos(pi/2) is 6e-17, sin(0) is 0.
_CLOUD_SIZES = {
  "log": lambda n, n_max: jnp.log(n_max / n),
  "cosine": lambda n, n_max: jnp.sin((1 - n / n_max) * (jnp.pi / 2)),
  "power_1_3": lambda n, n_max: n_max ** (1 / 3) - n ** (1 / 3),
  "power_1_4": lambda n, n_max: n_max ** (1 / 4) - n ** (1 / 4),
}


def gcl(
    cosines: Float[Array, "b c"],
    labels: Int[Array, "b"],
    class_counts: Real[Array, "c"],
    *,
    key: jax.Array | None = None,
    noise: Float[Array, "b c"] | None = None,
    scale: float | Float[Array, ""] = 30.0,
    margin: float | Float[Array, ""] = 0.0,
    noise_scale: float | Float[Array, ""] = 0.5,
    cloud_size: str = "log",
) -> Float[Array, "b c"]:
  """Gaussian clouded logits: the rarer a class, the larger the random amount taken from its cosine.

  logit_ij = s (cos_ij - a delta_j |clip(eps_ij, -1, 1)| - m [j = y_i]) with eps ~ N(0, 1/9)
  delta_j = d_j / max_k d_k, with d_j by `cloud_size`:
  log: log n_max - log n_j; cosine: cos(pi n_j / 2 n_max); power_1_q: n_max^(1/q) - n_j^(1/q), q = 3 or 4

  Args:
    cosines: cosines between features and class vectors, in [-1, 1], [b, c].
    labels: class indices in [0, c), [b].
    class_counts: training images n of each class, positive, in any order, [c].
    key: draws eps, fresh for each element. Give `key` or `noise`.
    noise: eps itself, before the clip and the absolute value, [b, c].
    scale: s > 0.
    margin: m >= 0, on the label's cosine.
    noise_scale: a >= 0.
    cloud_size: "log", "cosine", "power_1_3" or "power_1_4".

  Returns:
    Logits for a cross entropy or `focal`, [b, c], float32 or better. Predictions use the raw cosines.

  Raises:
    ConfigError: both or neither of `key` and `noise`, or an unknown `cloud_size`.
    DataError: a class with a count that is not positive.

  References:
    Li et al., `Long-tailed Visual Recognition via Gaussian Clouded Logit Adjustment
    <https://arxiv.org/abs/2305.11733>`_, 2022: the thesis's equations 5.9, 5.11 and 5.12. The factor a = 0.5 is in the
    authors' code only; a = 1 is the paper. Equal counts give no cloud here, where the code divides by zero.

  >>> gcl(jnp.zeros((1, 2)), jnp.array([0]), jnp.array([100, 1]), noise=jnp.ones((1, 2))).round().tolist()
  [[0.0, -15.0]]
  """
  if (key is None) == (noise is None):
    raise ConfigError(f"gcl draws its noise from `key` or takes it as `noise`: give exactly one of them, "
                      f"got {'neither' if key is None else 'both'}.")
  if cloud_size not in _CLOUD_SIZES:
    raise ConfigError(f"gcl: cloud_size must be one of {', '.join(_CLOUD_SIZES)}, got {cloud_size!r}.")
  cosines = at_least_float32(cosines)
  counts = positive_counts(class_counts, cosines.dtype)
  delta = _CLOUD_SIZES[cloud_size](counts, counts.max())
  delta = delta / jnp.where(delta.max() > 0, delta.max(), 1.0)
  if noise is None:
    noise = jax.random.normal(key, cosines.shape, cosines.dtype) / 3
  cloud = noise_scale * delta * jnp.abs(jnp.clip(at_least_float32(noise), -1, 1))
  target = jax.nn.one_hot(labels, cosines.shape[-1], dtype=cosines.dtype)
  return scale * (cosines - cloud - margin * target)
