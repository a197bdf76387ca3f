"""Class activation maps, and their calibration by prototypes of the tail classes: CAMC and CAMC++ (Zhang et al.)."""

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
  """How much each place speaks for each class.

  M_c(x, y) = <w_c, F(x, y)>

  Args:
    maps: feature maps F before pooling, [b h w d].
    kernel: class vectors w in the columns, [d, c]; a bias plays no part.

  Returns:
    The maps of all classes, [b h w c], float32 or better; their means over h, w are the logits of a linear classifier
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
  """How much CAMC strengthens each place for each tail class, between 1 and 2.

  a_c = 1 + sigmoid(conv(F * Phi^c)), where F * Phi^c are the k response maps <F(x, y), phi>

  Args:
    maps: feature maps F, [b h w d].
    prototypes: Phi, k vectors for each of t tail classes, [t k d].
    fuse_kernel: n x n convolution (n odd, the outside zero) from k response maps to one, for each class, [t n n k], or
      [1 n n k] for all.
    fuse_bias: its bias, [t] or [1].
    hidden: kernel and bias of a convolution from k to k maps and a ReLU before that.
    normalize_prototypes: respond with the cosines of F(x, y) and phi in place of their products.

  Returns:
    a, [b h w t], float32 or better.

  References:
    CAMC, equations 4 and 5. "Fused by convolutions" does not say which: one of 3 x 3 for each class is our reading.

  >>> ones, zeros = jnp.ones((1, 2, 2, 3)), jnp.zeros((1, 3, 3, 4))
  >>> reinforcement(ones, jnp.ones((1, 4, 3)), zeros, jnp.zeros(1))[0, :, :, 0].tolist()
  [[1.5, 1.5], [1.5, 1.5]]
  """
  maps, prototypes = full_precision(maps), full_precision(prototypes)
  if normalize_prototypes:
    maps, prototypes = normalize(maps, axis=-1), normalize(prototypes, axis=-1)
  # These are nearly all of the work, and a sigmoid follows: accelerators may round their operands.
  responses = jnp.einsum("bhwd,tkd->bhwkt", maps, prototypes)
  if hidden is not None:
    responses = nn.relu(_fuse(responses, *hidden))
  return 1 + nn.sigmoid(_fuse(responses, fuse_kernel[..., None], fuse_bias[..., None])[..., 0, :])


def _fuse(responses, kernel, bias):
  """A convolution [t n n k j] of each class's maps [b h w k t] to [b h w j t]."""
  # As shifted sums: XLA on a CPU is slow at convolutions in t groups, and slower at their derivatives.
  (_, h, w, _, t), n = responses.shape, kernel.shape[1]
  kernel = jnp.broadcast_to(kernel, (t, *kernel.shape[1:]))
  fused = bias.T
  for y, x in np.ndindex(n, n):
    # Shifted after the sum over k, which leaves less to keep for the derivative than before it.
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
  """The scores of CAMC: every tail class sees the image through its own calibrated map.

  s_c = g <x_c / |x_c|, w_c / |w_c|>, x_c = mean over places p of a_cp F_p; a_cp = 1 where c is not in the tail

  The embeddings x_c [b t d] are never made: <x_c, w> = sum_p a_cp <F_p, w> and |x_c|^2 = a_c^T G a_c with the Gram
  matrix G = F F^T of the image's places, so the memory is that of the response maps, b t k h w.

  Args:
    maps: feature maps F, [b h w d].
    kernel: class vectors w in the columns, [d, c].
    prototypes: as in `reinforcement`, which gives a, [t k d].
    fuse_kernel: likewise, [t n n k].
    fuse_bias: likewise, [t].
    tail: the classes of these t rows, each once, [t]; none is the plain normalised classifier.
    scale: g > 0.
    hidden: as in `reinforcement`.
    normalize_prototypes: as in `reinforcement`.

  Returns:
    Scores, [b, c], float32 or better. Maps of zeros give zeros, and a finite gradient.

  References:
    CAMC, equations 5 and 8; equation 6 without the norm of w_c is superseded by 8.

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
  places = maps.reshape(len(maps), -1, maps.shape[-1])
  weights = weights.reshape(*places.shape[:2], -1) / places.shape[1]
  plain = matmul(normalize(jnp.mean(places, axis=1), axis=-1), kernel)
  gram = jnp.einsum("bpd,bqd->bpq", places, places, precision=_HIGHEST)
  squares = jnp.sum(weights * jnp.einsum("bpq,bqt->bpt", gram, weights, precision=_HIGHEST), axis=1)
  products = jnp.sum(weights * matmul(places, kernel[:, tail]), axis=1)
  return scale * plain.at[:, tail].set(products * inverse_length(squares))


def crop_boxes(size: int, grid: int) -> np.ndarray:
  """The windows of CAMC++: as large as the image, around the centres of a grid of cells, cut off at its edges.

  y0 = round(max(0, c - size/2)), y1 = round(min(size, c + size/2)) with c = (i + 1/2) size / grid, halves upwards

  Args:
    size: side of the image in pixels.
    grid: M >= 1 cells a side.

  Returns:
    int [grid grid 4]: y0, y1, x0, x1 of each cell's window.

  Raises:
    ConfigError: a grid below 1.

  References:
    CAMC, section III-B; where the centres lie is not said.

  >>> crop_boxes(32, 2)[0].tolist()
  [[0, 24, 0, 24], [0, 24, 8, 32]]
  """
  if grid < 1:
    raise ConfigError(f"crop_boxes: the grid of crops has at least one cell a side, got {grid}")
  centres = (np.arange(grid) + 0.5) * size / grid
  first = np.floor(np.maximum(0, centres - size / 2) + 0.5).astype(int)
  last = np.floor(np.minimum(size, centres + size / 2) + 0.5).astype(int)
  extents = np.stack([first, last], axis=-1)
  return np.concatenate(np.broadcast_arrays(extents[:, None], extents[None, :]), axis=-1)


def crop_windows(size: int, grid: int) -> np.ndarray:
  """Cropping and resizing along one axis as matrices: `windows[i] @ image` is window i of `crop_boxes`, enlarged.

  Bilinear, pixel centres at halves, as torch's interpolate without align_corners. Matrices, because windows of
  different lengths are different shapes, which no loop over the crops could have.

  Args:
    size: side of the image in pixels.
    grid: M >= 1 cells a side.

  Returns:
    float32 [grid size size].
  """
  windows = np.zeros((grid, size, size), np.float32)
  for window, (first, last) in zip(windows, crop_boxes(size, grid)[:, 0, :2], strict=True):
    places = np.clip((np.arange(size) + 0.5) * (last - first) / size - 0.5, 0, last - first - 1)
    below = np.floor(places).astype(int)
    above = np.minimum(below + 1, last - first - 1)
    np.add.at(window, (np.arange(size), first + below), 1 - (places - below))
    np.add.at(window, (np.arange(size), first + above), places - below)
  return windows


class CAMC(nn.Module):
  """The normalised classifier with calibrated class activation maps for the tail: `calibrated_scores`.

  The parameters are `kernel` [d, c] as in `NormalizedLinear`, `prototypes` [t k d], `fuse_kernel` [t n n k] from
  N(0, 0.01^2) and `fuse_bias` [t] from 0, so that the first scores are nearly those of the plain classifier. The
  prototypes are features of training images, which the stage takes from the one before it; they start as zeros where
  nothing puts those in. What the paper leaves open is an argument here, its default our reading.

  Args:
    num_classes: c.
    scale: g > 0; the paper's is 16.
    threshold: classes with fewer training images are the tail; the paper's is 100, on CIFAR-10-LT 1000 or 200.
    num_prototypes: k, at most what some tail class has; classes with fewer repeat theirs.
    crops: M of CAMC++, whose maps are the M x M features of crops of the image; None for the backbone's own maps.
    shared_fusion: one fusion for all classes.
    fusion_size: n, odd.
    fusion_layers: 2 puts a layer from k to k maps and a ReLU (`hidden_kernel`, `hidden_bias`) before the fusion.
    normalize_prototypes: respond with cosines. Products grow with the features' length, which a small magnitude g in
      the stage before makes large, and may leave the sigmoid at its ends, where it tells no place from another.
    pick: which images of a class become prototypes: random ones, the first, or those nearest to the centres of k-means.
    class_counts: training images of each class; None where they are not known yet, for the names of the parameters.

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
      raise ConfigError(f"CAMC: threshold {self.threshold:g} leaves no tail class, the smallest class has "
                        f"{counts.min()} images; raise it, or write head=dict(name='NormalizedLinear', "
                        f"scale={self.scale:g}, normalize_features=True)")
    if self.num_prototypes > tail.max():
      raise ConfigError(f"CAMC: num_prototypes {self.num_prototypes} is more than the images of every tail class, the "
                        f"largest has {tail.max()}; lower it, or raise threshold {self.threshold:g}")

  @property
  def tail(self) -> np.ndarray:
    """int [t]: the classes below the threshold, ascending."""
    if self.class_counts is None:
      return np.array([self.num_classes - 1])
    return np.flatnonzero(np.asarray(self.class_counts) < self.threshold)

  def reinforcement(self, params: dict, maps: Float[Array, "b h w d"]) -> Float[Array, "b h w t"]:
    """`reinforcement` with the head's parameters."""
    return reinforcement(maps, *(params[name] for name in ("prototypes", "fuse_kernel", "fuse_bias")),
                         **self._options(params))

  def _options(self, params: dict) -> dict:
    hidden = (params["hidden_kernel"], params["hidden_bias"]) if self.fusion_layers == 2 else None
    return dict(hidden=hidden, normalize_prototypes=self.normalize_prototypes)

  @nn.compact
  def __call__(self, maps: Float[Array, "b h w d"], *, train: bool = False) -> Float[Array, "b c"]:
    """Returns the scores [b c] of feature maps [b h w d], in float32 (float64 for float64)."""
    del train
    dim, k, n, tail = maps.shape[-1], self.num_prototypes, self.fusion_size, self.tail
    fusions = 1 if self.shared_fusion else len(tail)
    small, zeros = nn.initializers.normal(0.01), nn.initializers.zeros
    shapes = dict(kernel=(_normal, (dim, self.num_classes)), prototypes=(zeros, (len(tail), k, dim)),
                  fuse_kernel=(small, (fusions, n, n, k)), fuse_bias=(zeros, (fusions,)))
    if self.fusion_layers == 2:
      shapes |= dict(hidden_kernel=(small, (fusions, n, n, k, k)), hidden_bias=(zeros, (fusions, k)))
    params = {name: self.param(name, init, shape, jnp.float32) for name, (init, shape) in shapes.items()}
    return calibrated_scores(
        maps, *(params[name] for name in ("kernel", "prototypes", "fuse_kernel", "fuse_bias")), tail,
        scale=self.scale, **self._options(params))
