"""OLTR (Liu et al.): modulated attention, a memory of class centroids, a classifier of features that it enriches."""

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ltjax.errors import ConfigError
from ltjax.losses.arguments import check_fields
from ltjax.models.initializers import kaiming_normal, kaiming_uniform, symmetric_uniform
from ltjax.models.numerics import full_precision, length, matmul, normalize

__all__ = ["OLTR", "meta_embedding", "modulated_attention", "squared_distances", "squashed_cosines"]


def modulated_attention(maps: Float[Array, "b h w d"], attention: dict, spatial: tuple) -> Float[Array, "b h w d"]:
  """Adds self-attention to maps, weighted by a second attention over the positions.

  f + s * (W_m softmax(theta(f) phi(f)^T) g(f)), s = softmax over positions of W_s flatten(f) + b_s

  Args:
    maps: f, [b h w d].
    attention: "theta", "phi" and "g", each (kernel [d e], bias [e]), and "mask", a kernel [e d].
    spatial: (W_s [h w d h w], b_s [h w]).

  References:
    Liu et al., `Large-Scale Long-Tailed Recognition in an Open World <https://arxiv.org/abs/1904.05160>`_, 2019,
    equation 6; `ModulatedAttLayer` of zhmiao/OpenLongTailRecognition-OLTR, which does not divide by sqrt(e).
  """
  x = full_precision(maps)
  b, h, w, d = x.shape
  rows = x.reshape(b, h * w, d)
  theta, phi, g = (matmul(rows, kernel) + bias for kernel, bias in (attention[name] for name in ("theta", "phi", "g")))
  similarity = jax.nn.softmax(jnp.einsum("bpe,bqe->bpq", theta, phi, precision=jax.lax.Precision.HIGHEST), axis=-1)
  attended = matmul(matmul(similarity, g), attention["mask"])
  kernel, bias = spatial
  where = jax.nn.softmax(matmul(rows.reshape(b, -1), kernel.reshape(-1, h * w)) + bias, axis=-1)
  return (rows + where[..., None] * attended).reshape(maps.shape)


def squared_distances(features: Float[Array, "b d"], centroids: Float[Array, "d c"]) -> Float[Array, "b c"]:
  """|x - m_c|^2 for centroids m in columns, without an array [b c d]."""
  lengths = jnp.sum(features**2, axis=-1, keepdims=True) + jnp.sum(centroids**2, axis=0)
  return jnp.maximum(lengths - 2 * matmul(features, centroids), 0)


def meta_embedding(features: Float[Array, "b d"], centroids: Float[Array, "d c"], memory: Float[Array, "b c"],
                   selector: Float[Array, "b d"]) -> Float[Array, "b d"]:
  """Enriches features with what the memory holds: more, the nearer a centroid is.

  (10 / min_c |x - m_c|) (x + tanh(e) * sum_c softmax(o)_c m_c)

  Args:
    features: x, [b d].
    centroids: m in the columns, [d c]; no gradient flows into them.
    memory: o, [b c].
    selector: e, [b d].

  References:
    Liu et al. (above), equations 2 to 4; `MetaEmbedding_Classifier` of the released code, the source of 10.
  """
  centroids = jax.lax.stop_gradient(centroids)
  nearest = jnp.sqrt(jnp.maximum(jnp.min(squared_distances(features, centroids), axis=-1, keepdims=True), 1e-12))
  recalled = matmul(jax.nn.softmax(memory, axis=-1), centroids.T)
  return 10 / nearest * (features + jnp.tanh(selector) * recalled)


def squashed_cosines(features: Float[Array, "b d"], kernel: Float[Array, "d c"], *,
                     scale: Annotated[float, "(0, inf)"] = 16.0) -> Float[Array, "b c"]:
  """s |x| / (1 + |x|) <x/|x|, w_c/|w_c|>: cosines that short features make smaller.

  References:
    Liu et al. (above), equation 8; `CosNorm_Classifier` of the released code, scale 16.
  """
  return scale * matmul(features / (1 + length(features, axis=-1)), normalize(kernel, axis=0))


class OLTR(nn.Module):
  """The second stage of OLTR as a head on maps: attention, mean over positions, memory, classifier.

  `modulated_attention`, `meta_embedding`, then `squashed_cosines`. `kernel` [d c] and `bias` give o, which reads the
  memory, and continue the linear classifier of the stage before, as in the released code. `centroids` [d c] start with
  the class means if the stage has head_init=dict(name="class_mean"); they learn by the loss alone,
  `discriminative_centroids`, which takes the squared distances [b c] that the head returns in training. The attention's
  last layer starts at 0, so the maps pass unchanged at first. Its shapes tie the head to one size of maps.

  Args:
    num_classes: c.
    scale: of the cosines; 16 in the released code.
    reduction: d / e of the attention; 2 in the released code.

  References:
    Liu et al., `Large-Scale Long-Tailed Recognition in an Open World <https://arxiv.org/abs/1904.05160>`_, 2019.
  """
  num_classes: int
  scale: Annotated[float, "(0, inf)"] = 16.0
  reduction: Annotated[int, "[1, inf)"] = 2

  takes_maps = True
  projects = "distances"
  class_vectors = "centroids"

  def __post_init__(self):
    check_fields(self)
    super().__post_init__()

  @nn.compact
  def __call__(self, maps: Float[Array, "b h w d"], *, train: bool = False) -> Float[Array, "b c"] | tuple[
      Float[Array, "b c"], Float[Array, "b c"]]:
    """Returns the logits [b c] of feature maps [b h w d], in float32 (float64 for float64); in training also distances.

    Raises:
      ConfigError: maps of another size than the head was built for, or features without positions.
    """
    if maps.ndim != 4:
      raise ConfigError(f"OLTR attends to the positions of feature maps, got features of shape {maps.shape[1:]}")
    maps, (_, h, w, d) = full_precision(maps), maps.shape
    inner, classes, zeros = max(1, d // self.reduction), self.num_classes, nn.initializers.zeros
    if self.has_variable("params", "attention_spatial") and (
        built := self.get_variable("params", "attention_spatial").shape[:2]) != (h, w):
      raise ConfigError(f"OLTR was built for maps of {built[0]} x {built[1]}, got {h} x {w}; its matrices fit one "
                        "size, so train and evaluate with images of equal size")
    attention = {name: (self.param(f"attention_{name}", kaiming_normal, (d, inner), jnp.float32),
                        self.param(f"attention_{name}_bias", zeros, (inner,), jnp.float32))
                 for name in ("theta", "phi", "g")}
    attention["mask"] = self.param("attention_mask", zeros, (inner, d), jnp.float32)
    bound = (h * w * d) ** -0.5
    spatial = (self.param("attention_spatial", symmetric_uniform(bound), (h, w, d, h * w), jnp.float32),
               self.param("attention_spatial_bias", symmetric_uniform(bound), (h * w,), jnp.float32))
    x = jnp.mean(modulated_attention(maps, attention, spatial), axis=(1, 2))
    reading = (self.param("kernel", kaiming_normal, (d, classes), jnp.float32),
               self.param("bias", symmetric_uniform(d**-0.5), (classes,), jnp.float32))
    selecting = (self.param("selector_kernel", kaiming_uniform, (d, d), jnp.float32),
                 self.param("selector_bias", symmetric_uniform(d**-0.5), (d,), jnp.float32))
    centroids = self.param("centroids", nn.initializers.normal(1.0), (d, classes), jnp.float32)
    vectors = self.param("class_kernel", kaiming_uniform, (d, classes), jnp.float32)
    memory, selector = (matmul(x, kernel) + bias for kernel, bias in (reading, selecting))
    logits = squashed_cosines(meta_embedding(x, centroids, memory, selector), vectors, scale=self.scale)
    return (logits, squared_distances(x, centroids)) if train else logits
