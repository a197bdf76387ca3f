"""Long-tailed class counts, the field's selection of the images, and the many / medium / few groups. NumPy only."""

import math

import numpy as np
from jaxtyping import Int

from ltjax.errors import ConfigError, DataError

__all__ = ["GROUPS", "exponential_counts", "long_tailed_subset", "pareto_counts", "shot_groups", "step_counts"]

GROUPS = ("many", "medium", "few")


def _check_profile(num_classes: int, max_count: int, imbalance: float) -> None:
  for name, value in (("num_classes", num_classes), ("max_count", max_count)):
    if not value >= 1 or value % 1:
      raise ConfigError(f"{name} must be an integer of at least 1, got {value}.")
  if not (math.isfinite(imbalance) and imbalance >= 1):
    raise ConfigError(f"imbalance is the largest count over the smallest: finite and at least 1, got {imbalance}.")


def _truncated(counts: list[float], max_count: int, imbalance: float) -> Int[np.ndarray, "c"]:
  # int() truncates, as the authors' code does; rounding would select other images.
  truncated = np.array([int(n) for n in counts], dtype=np.int64)
  empty = np.flatnonzero(truncated < 1)
  if empty.size:
    raise ConfigError(
        f"class {empty[0]} would have 0 images ({empty.size} such classes of {truncated.size}) with "
        f"max_count={max_count} and imbalance={imbalance}; use an imbalance of at most max_count.")
  return truncated


def exponential_counts(num_classes: int, max_count: int, imbalance: float) -> Int[np.ndarray, "c"]:
  """The exponential profile of CIFAR-10-LT and CIFAR-100-LT.

  n_i = int(n_max f^(i / (C - 1))) with f = 1 / imbalance, i = 0 .. C - 1

  Args:
    num_classes: C >= 1. One class has n_max images.
    max_count: n_max >= 1, the images of class 0.
    imbalance: n_max over the last class's count, >= 1.

  Returns:
    Class counts, falling, int64 [c].

  Raises:
    ConfigError: an argument out of its range, or a class left without images.

  References:
    Cao et al., `Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss
    <https://arxiv.org/abs/1906.07413>`_, 2019, section 4, with the truncation and the exponent of the authors' code.
    The form n_max mu^i that some papers print loses an image of the last class to rounding.

  >>> exponential_counts(10, 5000, 100).tolist()
  [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
  """
  _check_profile(num_classes, max_count, imbalance)
  factor = 1 / imbalance
  counts = [max_count * factor ** (i / max(num_classes - 1.0, 1.0)) for i in range(num_classes)]
  return _truncated(counts, max_count, imbalance)


def step_counts(num_classes: int, max_count: int, imbalance: float) -> Int[np.ndarray, "c"]:
  """The step profile: the first half of the classes is frequent, the second half is rare.

  n_i = n_max for i < max(C // 2, 1), else int(n_max / imbalance)

  Args:
    num_classes: C >= 1. With an odd C the middle class is rare; the authors' code would leave one class out.
    max_count: n_max >= 1.
    imbalance: ratio of the two counts, >= 1.

  Returns:
    Class counts, falling, int64 [c].

  Raises:
    ConfigError: an argument out of its range, or a class left without images.

  References:
    Buda et al., `A systematic study of the class imbalance problem in convolutional neural networks
    <https://arxiv.org/abs/1710.05381>`_, 2018, section 3.1, as in the code of Cao et al., 2019.

  >>> step_counts(4, 5000, 100).tolist()
  [5000, 5000, 50, 50]
  """
  _check_profile(num_classes, max_count, imbalance)
  frequent = max(num_classes // 2, 1)
  counts = [max_count] * frequent + [max_count * (1 / imbalance)] * (num_classes - frequent)
  return _truncated(counts, max_count, imbalance)


def pareto_counts(num_classes: int, max_count: int, imbalance: float, *, alpha: float = 6.0) -> Int[np.ndarray, "c"]:
  """The Pareto profile of ImageNet-LT, without its random draw.

  q_i = (C / (i + 1))^(1 / alpha), u_i = (q_i - 1) / (q_0 - 1), n_i = int(u_i n_max + (1 - u_i) n_max / imbalance)

  A fraction (i + 1) / C of Pareto draws exceeds the quantile q_i; u_i moves and scales it so that the first class has
  n_max images and the last n_max / imbalance. ImageNet-LT itself is one draw and has fixed lists; with C = 1000,
  n_max = 1280 and imbalance 256 this gives 121,449 images and 404 / 456 / 140 many, medium and few classes, where the
  lists have 115,846 and 385 / 479 / 136.

  Args:
    num_classes: C >= 1. One class has n_max images.
    max_count: n_max >= 1, the images of class 0.
    imbalance: n_max over the last class's count, >= 1.
    alpha: power of the Pareto distribution, > 0; the smaller, the heavier its head.

  Returns:
    Class counts, falling, int64 [c].

  Raises:
    ConfigError: an argument out of its range, or a class left without images.

  References:
    Liu et al., `Large-Scale Long-Tailed Recognition in an Open World <https://arxiv.org/abs/1904.05160>`_, 2019,
    section 4, names the distribution and alpha = 6; the quantiles are ours.

  >>> pareto_counts(5, 1280, 256).tolist()
  [1280, 688, 373, 162, 5]
  """
  _check_profile(num_classes, max_count, imbalance)
  if not (math.isfinite(alpha) and alpha > 0):
    raise ConfigError(f"pareto_counts: alpha must be finite and positive, got {alpha}.")
  if num_classes == 1:
    return _truncated([max_count], max_count, imbalance)
  quantiles = [(num_classes / (i + 1)) ** (1 / alpha) for i in range(num_classes)]
  shares = [(q - 1) / (quantiles[0] - 1) for q in quantiles]
  tail = max_count * (1 / imbalance)
  return _truncated([u * max_count + (1 - u) * tail for u in shares], max_count, imbalance)


def long_tailed_subset(
    labels: Int[np.ndarray, "n"], class_counts: Int[np.ndarray, "c"], *, seed: int = 0
) -> Int[np.ndarray, "m"]:
  """Selects the images that the field uses for given class counts.

  For c = 0 .. C - 1: shuffle the indices of class c in `labels` and take the first n_c; concatenate class by class.

  Args:
    labels: class index in [0, C) of every image, in the order of the dataset's files, [n].
    class_counts: images n_c to take of each class, >= 1, [c].
    seed: of NumPy's legacy generator. 0 in the LDAM-DRW, GCL, FBL, MiSLAS and BBN codes, 666 in the KPS code.

  Returns:
    Indices into `labels`, int64 [sum of class_counts].

  Raises:
    DataError: labels that are not class indices, or a class without a request or with fewer images than requested.

  References:
    `gen_imbalanced_data` in the code of Cao et al., 2019, which seeds NumPy's global generator; the stream of a
    `RandomState` is the same.

  >>> long_tailed_subset(np.array([0, 1, 0, 1, 0]), np.array([2, 1])).tolist()
  [4, 2, 1]
  """
  labels, class_counts = np.asarray(labels), np.asarray(class_counts)
  classes = len(class_counts)
  if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
    raise DataError(f"labels must be a list of class indices, got {labels.dtype} of shape {labels.shape}.")
  outside = np.flatnonzero((labels < 0) | (labels >= classes))
  if outside.size:
    raise DataError(f"label {labels[outside[0]]} of image {outside[0]} is not a class: class_counts has {classes} "
                    f"classes, so labels go from 0 to {classes - 1}.")
  available = np.bincount(labels, minlength=classes)
  wrong = np.flatnonzero((class_counts < 1) | (class_counts > available))
  if wrong.size:
    c = wrong[0]
    raise DataError(f"class {c}: {class_counts[c]} images requested, 1 to {available[c]} possible ({wrong.size} such "
                    f"classes of {classes}); lower max_count, lower the imbalance or drop the class.")
  # One stream for all classes, as in the authors' code: each class depends on the shuffles before it.
  stream = np.random.RandomState(seed)
  chosen = []
  for c, count in enumerate(class_counts):
    members = np.flatnonzero(labels == c).astype(np.int64)
    stream.shuffle(members)
    chosen.append(members[: int(count)])
  return np.concatenate(chosen)


def shot_groups(class_counts: Int[np.ndarray, "c"], *, many: int = 100, few: int = 20) -> dict[str, np.ndarray]:
  """Classes by their number of training images.

  many: n > 100; medium: 20 <= n <= 100; few: n < 20

  Args:
    class_counts: training images n of each class, in any order, [c].
    many: largest count that is still medium.
    few: smallest count that is already medium.

  Returns:
    {"many", "medium", "few"} -> class indices, ascending, int64; a group may be empty.

  Raises:
    ConfigError: `few` above `many` + 1, which would put a class into two groups.

  References:
    Liu et al., 2019, section 4, with the bounds of `shot_acc` in the code of Kang et al., `Decoupling Representation
    and Classifier <https://arxiv.org/abs/1910.09217>`_, 2020.

  >>> {name: classes.tolist() for name, classes in shot_groups(np.array([500, 100, 20, 19])).items()}
  {'many': [0], 'medium': [1, 2], 'few': [3]}
  """
  if few > many + 1:
    raise ConfigError(f"shot_groups: few must be at most many + 1, got few={few} and many={many}.")
  counts = np.asarray(class_counts)
  return {
    "many": np.flatnonzero(counts > many),
    "medium": np.flatnonzero((counts >= few) & (counts <= many)),
    "few": np.flatnonzero(counts < few),
  }
