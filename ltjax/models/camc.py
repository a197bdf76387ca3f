"""Class activation maps and their calibration with prototypes of the tail classes: CAMC and CAMC++ (Zhang et al.)."""

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ltjax.errors import ConfigError
from ltjax.losses.arguments import check_fields
from ltjax.models.numerics import full_precision, inverse_length, matmul, normalize

__all__ = ["CAMC", "calibrated_scores", "class_activation_maps", "crop_boxes", "crop_windows", "reinforcement"]

PICKS = ("random", "first", "kmeans")
_HIGHEST = jax.lax.Precision.HIGHEST
_normal = nn.initializers.variance_scaling(1.0, "fan_in", "normal")  # N(0, 1) / sqrt(d), untruncated


def class_activation_maps(maps: Float[Array, "b h w d"], kernel: Float[Array, "d c"]) -> Float[Array, "b h w c"]:
  """Returns the evidence for each class at each position.

  M_c(x, y) = <w_c, F(x, y)>

  Args:
    maps: feature maps F before pooling, [b h w d].
    kernel: class vectors w in the columns, [d, c]; a bias is ignored.

  Returns:
    The maps of all classes, [b h w c], float32 or better. Their means over h, w are the logits of a linear classifier
    without bias.

  References:
    Zhou et al., `Learning Deep Features for Discriminative Localization <https://arxiv.org/abs/1512.04150>`_, 2016;
    Zhang et al., `Calibrating Class Activation Maps for Long-Tailed Visual Recognition` (CAMC), 2021, equation 1.

  >>> class_activation_maps(jnp.array([[[[1.0, 0.0], [0.0, 3.0]]]]), jnp.eye(2))[0, 0].tolist()
  [[1.0, 0.0], [0.0, 3.0]]
  """
  return jnp.einsum("bhwd,dc->bhwc", full_precision(maps), full_precision(kernel), precision=_HIGHEST)


def reinforcement(
    maps: Float[Array, "b h w d"],
    prototypes: Float[Array, "t k d"],
    fuse_kernel: Float[Array, "t n n k"],
    fuse_bias: Float[Array, "t"],
    *,
    hidden: tuple[Float[Array, "t n n k k"], Float[Array, "t k"]] | None = None,
    normalize_prototypes: bool = False,
) -> Float[Array, "b h w t"]:
  """Returns the factor between 1 and 2 by which CAMC strengthens each position for each tail class.

  a_c = 1 + sigmoid(conv(F * Phi^c)), where F * Phi^c are the k response maps <F(x, y), phi>

  Args:
    maps: feature maps F, [b h w d].
    prototypes: Phi, k vectors for each of t tail classes, [t k d].
    fuse_kernel: n x n convolution (n odd, zero padding) from k response maps to one, [t n n k]; [1 n n k] for a single
      convolution for all classes.
    fuse_bias: its bias, [t] or [1].
    hidden: kernel and bias of a convolution from k to k maps, followed by a ReLU, before the fusion.
    normalize_prototypes: respond with the cosines of F(x, y) and phi instead of their products.

  Returns:
    a, [b h w t], float32 or better.

  References:
    CAMC, equations 4 and 5. The paper only says "fused by convolutions"; we read it as one 3 x 3 convolution per class.

  >>> ones, zeros = jnp.ones((1, 2, 2, 3)), jnp.zeros((1, 3, 3, 4))
  >>> reinforcement(ones, jnp.ones((1, 4, 3)), zeros, jnp.zeros(1))[0, :, :, 0].tolist()
  [[1.5, 1.5], [1.5, 1.5]]
  """
  maps, prototypes = full_precision(maps), full_precision(prototypes)
  if normalize_prototypes:
    maps, prototypes = normalize(maps, axis=-1), normalize(prototypes, axis=-1)
  # Nearly all of the work is here, and a sigmoid follows, so accelerators may round the operands.
  responses = jnp.einsum("bhwd,tkd->bhwkt", maps, prototypes)
  if hidden is not None:
    responses = nn.relu(_fuse(responses, *hidden))
  return 1 + nn.sigmoid(_fuse(responses, fuse_kernel[..., None], fuse_bias[..., None])[..., 0, :])


def _fuse(responses, kernel, bias):
  """Convolves each class's maps [b h w k t] with [t n n k j] to [b h w j t]."""
  # Shifted sums, because XLA on a CPU is slow at convolutions in t groups, and slower at their derivatives.
  (_, h, w, _, t), n = responses.shape, kernel.shape[1]
  kernel = jnp.broadcast_to(kernel, (t, *kernel.shape[1:]))
  fused = bias.T
  for y, x in np.ndindex(n, n):
    # The shift follows the sum over k, so that the backward pass stores less.
    part = jnp.einsum("bhwkt,tkj->bhwjt", responses, kernel[:, y, x])
    framed = jnp.pad(part, ((0, 0), (n // 2, n // 2), (n // 2, n // 2), (0, 0), (0, 0)))
    fused = fused + framed[:, y:y + h, x:x + w]
  return fused


def calibrated_scores(
    maps: Float[Array, "b h w d"],
    kernel: Float[Array, "d c"],
    prototypes: Float[Array, "t k d"],
    fuse_kernel: Float[Array, "t n n k"],
    fuse_bias: Float[Array, "t"],
    tail: Int[Array, "t"],
    *,
    scale: float | Float[Array, ""],
    hidden: tuple[Float[Array, "t n n k k"], Float[Array, "t k"]] | None = None,
    normalize_prototypes: bool = False,
) -> Float[Array, "b c"]:
  """Returns the scores of CAMC, in which every tail class weights the positions with its own calibrated map.

  s_c = g <x_c / |x_c|, w_c / |w_c|>, x_c = mean over positions p of a_cp F_p; a_cp = 1 if c is not in the tail

  The code never forms the embeddings x_c [b t d]: <x_c, w> = sum_p a_cp <F_p, w> and |x_c|^2 = a_c^T G a_c, where
  G = F F^T is the Gram matrix of the positions. So the memory is that of the response maps, b t k h w.

  Args:
    maps: feature maps F, [b h w d].
    kernel: class vectors w in the columns, [d, c].
    prototypes: as in `reinforcement`, which computes a, [t k d].
    fuse_kernel: as in `reinforcement`, [t n n k].
    fuse_bias: as in `reinforcement`, [t].
    tail: the classes of these t rows, each once, [t]; with t = 0 this is the plain normalised classifier.
    scale: g > 0.
    hidden: as in `reinforcement`.
    normalize_prototypes: as in `reinforcement`.

  Returns:
    Scores, [b, c], float32 or better. Zero maps give zero scores and a finite gradient.

  References:
    CAMC, equations 5 and 8; equation 8 supersedes equation 6, which lacks the norm of w_c.

  >>> rng = np.random.default_rng(0)
  >>> maps, kernel, prototypes = (rng.standard_normal(shape) for shape in ((2, 3, 3, 8), (8, 5), (2, 4, 8)))
  >>> zeros = jnp.zeros((2, 3, 3, 4)), jnp.zeros(2)
  >>> scores = calibrated_scores(maps, kernel, prototypes, *zeros, jnp.array([4, 1]), scale=16.0)
  >>> scores.shape, bool(jnp.abs(scores).max() <= 16)
  ((2, 5), True)
  """
  maps, kernel = full_precision(maps), normalize(full_precision(kernel), axis=0)
  weights = reinforcement(maps, prototypes, fuse_kernel, fuse_bias, hidden=hidden,
                          normalize_prototypes=normalize_prototypes)
  rows = maps.reshape(maps.shape[0], -1, maps.shape[-1])
  weights = weights.reshape(*rows.shape[:2], -1) / rows.shape[1]
  plain = matmul(normalize(jnp.mean(rows, axis=1), axis=-1), kernel)
  gram = jnp.einsum("bpd,bqd->bpq", rows, rows, precision=_HIGHEST)
  squares = jnp.sum(weights * jnp.einsum("bpq,bqt->bpt", gram, weights, precision=_HIGHEST), axis=1)
  products = jnp.sum(weights * matmul(rows, kernel[:, tail]), axis=1)
  return scale * plain.at[:, tail].set(products * inverse_length(squares))


def crop_boxes(size: int, grid: int) -> np.ndarray:
  """Returns the windows of CAMC++: as large as the image, centred on a grid of cells, clipped at the edges.

  y0 = round(max(0, c - size/2)), y1 = round(min(size, c + size/2)) with c = (i + 1/2) size / grid, halves upwards

  Args:
    size: side of the image in pixels.
    grid: M >= 1 cells per side.

  Returns:
    int [grid grid 4]: y0, y1, x0, x1 of each cell's window.

  Raises:
    ConfigError: a grid below 1.

  References:
    CAMC, section III-B, which does not say where the centres lie.

  >>> crop_boxes(32, 2)[0].tolist()
  [[0, 24, 0, 24], [0, 24, 8, 32]]
  """
  if grid < 1:
    raise ConfigError(f"crop_boxes: grid must be at least 1, got {grid}")
  centres = (np.arange(grid) + 0.5) * size / grid
  first = np.floor(np.maximum(0, centres - size / 2) + 0.5).astype(int)
  last = np.floor(np.minimum(size, centres + size / 2) + 0.5).astype(int)
  extents = np.stack([first, last], axis=-1)
  return np.concatenate(np.broadcast_arrays(extents[:, None], extents[None, :]), axis=-1)


def crop_windows(size: int, grid: int) -> np.ndarray:
  """Returns matrices that crop and resize along one axis: `windows[i] @ image` is window i of `crop_boxes`, enlarged.

  The interpolation is bilinear with pixel centres at halves, as in torch's interpolate without align_corners. Windows
  differ in length, but the matrices have one shape, so a loop over the crops compiles once.

  Args:
    size: side of the image in pixels.
    grid: M >= 1 cells per side.

  Returns:
    float32 [grid size size].
  """
  windows = np.zeros((grid, size, size), np.float32)
  for window, (first, last) in zip(windows, crop_boxes(size, grid)[:, 0, :2], strict=True):
    positions = np.clip((np.arange(size) + 0.5) * (last - first) / size - 0.5, 0, last - first - 1)
    below = np.floor(positions).astype(int)
    above = np.minimum(below + 1, last - first - 1)
    np.add.at(window, (np.arange(size), first + below), 1 - (positions - below))
    np.add.at(window, (np.arange(size), first + above), positions - below)
  return windows


class CAMC(nn.Module):
  """The normalised classifier with calibrated class activation maps for the tail: `calibrated_scores`.

  The parameters are `kernel` [d, c] as in `NormalizedLinear`, `prototypes` [t k d], `fuse_kernel` [t n n k] and
  `fuse_bias` [t]. The last two start at 0, so that every sigmoid starts at 0.5, all positions count alike and the first
  scores are those of the plain classifier, whatever the length of the features. The prototypes are features of training
  images, which the stage computes with the model of the stage before; until then they are zeros. Products with them
  grow with the square of the features' length, so the fusion takes the responses of class c divided by the mean of
  |phi|^2 over its prototypes, about the response of the class's own images; undivided, they saturate the sigmoids in a
  few steps. Gradients treat that mean as a constant. Choices that the paper leaves open are arguments; their defaults
  are our reading.

  Args:
    num_classes: c.
    scale: g > 0; 16 in the paper.
    threshold: classes with fewer training images form the tail; 100 in the paper, 1000 or 200 on CIFAR-10-LT.
    num_prototypes: k >= 1, at most the images of the largest tail class; smaller classes repeat theirs.
    crops: M of CAMC++, whose maps are the M x M features of crops of the image; None for the backbone's own maps.
    shared_fusion: one fusion for all classes.
    fusion_size: n, odd.
    fusion_layers: 1, or 2 for a layer from k to k maps and a ReLU (`hidden_kernel`, `hidden_bias`) before the fusion.
    normalize_prototypes: respond with cosines instead of the divided products.
    pick: the images of a class that become prototypes: "random", "first", or "kmeans", those nearest to its centres.
    class_counts: training images of each class; None while they are unknown, for the names of the parameters.

  References:
    Zhang et al., `Calibrating Class Activation Maps for Long-Tailed Visual Recognition` (CAMC), 2021.
  """
  num_classes: int
  scale: Annotated[float, "(0, inf)"]
  threshold: Annotated[float, "[0, inf]"]
  num_prototypes: Annotated[int, "[1, inf)"] = 5
  crops: Annotated[int | None, "[1, inf)"] = None
  shared_fusion: bool = False
  fusion_size: Annotated[int, "[1, inf)"] = 3
  fusion_layers: Annotated[int, "[1, 2]"] = 1
  normalize_prototypes: bool = False
  pick: str = "random"
  class_counts: tuple[int, ...] | None = None

  takes_maps = True
  wants_prototypes = True
  keeps_norm = False

  def __post_init__(self):
    check_fields(self)
    if self.fusion_size % 2 == 0:
      raise ConfigError(f"CAMC: fusion_size must be odd, got {self.fusion_size}")
    if self.pick not in PICKS:
      raise ConfigError(f"CAMC: pick must be one of {', '.join(PICKS)}, got {self.pick!r}")
    if self.class_counts is not None:
      self._check_counts(np.asarray(self.class_counts))
    super().__post_init__()

  def _check_counts(self, counts) -> None:
    tail = counts[counts < self.threshold]
    if not len(tail):
      raise ConfigError(f"CAMC: threshold {self.threshold:g} leaves no tail class, as the smallest class has "
                        f"{counts.min()} images; raise it, or write head=dict(name='NormalizedLinear', "
                        f"scale={self.scale:g}, normalize_features=True)")
    if self.num_prototypes > tail.max():
      raise ConfigError(f"CAMC: num_prototypes {self.num_prototypes} exceeds the images of every tail class; the "
                        f"largest has {tail.max()}; lower it, or raise threshold {self.threshold:g}")

  @property
  def tail(self) -> np.ndarray:
    """The classes below the threshold, ascending, int [t]."""
    if self.class_counts is None:
      return np.array([self.num_classes - 1])
    return np.flatnonzero(np.asarray(self.class_counts) < self.threshold)

  def reinforcement(self, params: dict, maps: Float[Array, "b h w d"]) -> Float[Array, "b h w t"]:
    """Applies `reinforcement` with the head's parameters."""
    return reinforcement(maps, **self._fusion(params))

  def _fusion(self, params: dict) -> dict:
    """The arguments of `reinforcement` that the parameters give; the first kernel carries the division."""
    prototypes, kernel = full_precision(params["prototypes"]), params["fuse_kernel"]
    squares = 1.0 if self.normalize_prototypes else jax.lax.stop_gradient(
        jnp.maximum(jnp.mean(jnp.sum(jnp.square(prototypes), axis=-1), axis=-1), 1e-12))[:, None, None, None]
    hidden = None
    if self.fusion_layers == 2:
      hidden = params["hidden_kernel"] / jnp.expand_dims(squares, -1), params["hidden_bias"]
    else:
      kernel = kernel / squares
    return dict(prototypes=prototypes, fuse_kernel=kernel, fuse_bias=params["fuse_bias"], hidden=hidden,
                normalize_prototypes=self.normalize_prototypes)

  @nn.compact
  def __call__(self, maps: Float[Array, "b h w d"], *, train: bool = False) -> Float[Array, "b c"]:
    """Returns the scores [b c] of feature maps [b h w d], in float32 (float64 for float64)."""
    del train
    dim, k, n, tail = maps.shape[-1], self.num_prototypes, self.fusion_size, self.tail
    fusions = 1 if self.shared_fusion else len(tail)
    zeros = nn.initializers.zeros
    shapes = dict(kernel=(_normal, (dim, self.num_classes)), prototypes=(zeros, (len(tail), k, dim)),
                  fuse_kernel=(zeros, (fusions, n, n, k)), fuse_bias=(zeros, (fusions,)))
    if self.fusion_layers == 2:  # zeros in both layers would never learn
      wide = nn.initializers.normal((2 / (n * n * k)) ** 0.5)
      shapes |= dict(hidden_kernel=(wide, (fusions, n, n, k, k)), hidden_bias=(zeros, (fusions, k)))
    params = {name: self.param(name, init, shape, jnp.float32) for name, (init, shape) in shapes.items()}
    return calibrated_scores(maps, params["kernel"], tail=tail, scale=self.scale, **self._fusion(params))
