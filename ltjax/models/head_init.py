"""How a head starts: with class vectors from features of training images or from a file, instead of random ones.

`head_init=dict(name="class_mean")` is a block of a stage. Each function gives class vectors [d c] and biases [c]. The
stage sets them once, before its first step, with the backbone that it starts with.
"""

import pathlib
import warnings
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ltjax.distributed import processes, sharding
from ltjax.errors import DataError, nearest
from ltjax.models import import_torch, weight_files

__all__ = ["class_mean", "file", "linear_probe"]

OFFERED = ("features", "labels", "class_names", "dim", "unit", "pretrained")  # arguments that a config must not give


class Vectors(NamedTuple):
  """Class vectors in columns, and biases."""

  kernel: Float[np.ndarray, "d c"]
  bias: Float[np.ndarray, "c"]


def class_mean(features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, "n"],
               class_names: Sequence[str]) -> Vectors:
  """w_c = the mean feature m_c of the training images of class c, b_c = -|m_c|^2 / 2.

  A linear head so starts as the classifier of the nearest class mean, because |x - m_c|^2 = |x|^2 - 2 (<x, m_c> + b_c).
  A head that ignores the length of its class vectors starts with the mean directions, as LIFT does on features of
  ImageNet-21k (Shi et al., ICML 2024).

  Args:
    features: [n d].
    labels: [n], each class at least once.
    class_names: c names.
  """
  sums = np.zeros((len(class_names), features.shape[1]), np.float64)
  np.add.at(sums, labels, features)
  means = sums / np.bincount(labels, minlength=len(class_names))[:, None]
  return Vectors(means.T, -np.square(means).sum(axis=1) / 2)


def linear_probe(features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, "n"], class_names: Sequence[str],
                 unit: bool, *, strength: Annotated[float, "(0, inf)"] = 10.0) -> Vectors:
  """scikit-learn's logistic regression with balanced class weights, on features of length 1 for a head of cosines.

  It takes seconds for thousands of images and minutes for a hundred thousand.

  Args:
    features: [n d].
    labels: [n], each class at least once.
    class_names: c names.
    unit: whether the head ignores the length of the features.
    strength: of the fit, the inverse of the penalty on the length of the class vectors.
  """
  from sklearn.exceptions import ConvergenceWarning
  from sklearn.linear_model import LogisticRegression

  if unit:
    features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", ConvergenceWarning)  # training goes on from here
    found = LogisticRegression(C=strength, class_weight="balanced", max_iter=1000, fit_intercept=not unit).fit(
        features, labels)
  kernel, bias = found.coef_, np.broadcast_to(found.intercept_, len(found.coef_))
  if len(class_names) == 2:  # scikit-learn has one vector for both
    kernel, bias = np.concatenate((-kernel, kernel)) / 2, np.concatenate((-bias, bias)) / 2
  return Vectors(kernel.T, bias)


def file(class_names: Sequence[str], dim: int, pretrained: str, *, path: str) -> Vectors:
  """The vectors of a file, by class name; docs/pretrained.md shows how to write those of texts with open_clip.

  They have the size of the features, or that of a CLIP's texts. The projection P of the CLIP that the run starts with
  then brings them to the features: w_c = P v_c / |v_c|, as in LIFT (Shi et al., ICML 2024). The biases are 0.

  Args:
    class_names: c names.
    dim: d of the features.
    pretrained: the weights that the run starts with.
    path: a .safetensors or .npz file with one vector a class, under the class's name.

  Raises:
    DataError: no such file, a class without a vector, or vectors of a size that does not fit.
  """
  found = weight_files.read(pathlib.Path(path).expanduser())
  if missing := [name for name in class_names if name not in found]:
    raise DataError(f"head_init: {path} has no vector for {len(missing)} of {len(class_names)} classes, the first is "
                    f"{missing[0]!r}{nearest(missing[0], found)}; write one under the name of each class")
  shapes = {np.shape(found[name]) for name in class_names}
  if len(shapes) > 1 or len(size := next(iter(shapes))) != 1:
    raise DataError(f"head_init: the vectors of {path} have the shapes {', '.join(map(str, sorted(shapes)))}, expected "
                    "one list of numbers a class, all of one length")
  vectors = np.stack([np.asarray(found[name], np.float64) for name in class_names], axis=1)
  vectors /= np.maximum(np.linalg.norm(vectors, axis=0), 1e-12)
  if size[0] != dim:
    projection = _projection(pretrained)
    if projection is None or projection.shape != (dim, size[0]):
      raise DataError(f"head_init: the vectors of {path} have {size[0]} numbers, the features have {dim}, and the "
                      "pretrained weights have no projection between the two; give vectors of the CLIP whose weights "
                      "the run starts with")
    vectors = projection @ vectors
  return Vectors(vectors, np.zeros(len(class_names)))


def _projection(pretrained: str) -> np.ndarray | None:
  """The matrix from features to the space of texts; None for weights without one."""
  try:
    return import_torch.projection(pretrained)
  except DataError:
    return None


def start(stage, variables: dict) -> dict:
  """`variables` of a stage with the head that its `head_init` asks for.

  Args:
    stage: a `stage.Stage`.
    variables: {"params", "batch_stats"} that it begins with.
  """
  call = stage.spec.head_init
  if call is None:
    return variables
  (images, labels), head = stage.dataset.train, variables["params"]["head"]
  offered = _offered(stage)
  if "features" in call.arguments:
    extract = stage.extractor(sharding.replicate(variables, stage.mesh), one_view=True)
    offered |= dict(features=extract(images, "features")["features"], labels=labels)

  def vectors() -> Vectors:
    return call(**{name: value for name, value in offered.items() if name in call.arguments})

  kernel, bias = processes.from_first(lambda: tuple(vectors()))
  if not getattr(stage.model.head, "keeps_norm", True):
    kernel = kernel / np.maximum(np.linalg.norm(kernel, axis=0), 1e-12)
  name = getattr(stage.model.head, "class_vectors", "kernel")
  new = {name: jnp.asarray(kernel, jnp.float32)}
  if "bias" in head and name == "kernel":
    new["bias"] = jnp.asarray(bias, jnp.float32)
  return variables | dict(params=variables["params"] | dict(head=head | new))


def check(stage) -> None:
  """Raises where the head of a stage cannot start from a file."""
  call = stage.spec.head_init
  if call is not None and "features" not in call.arguments:
    call(**{name: value for name, value in _offered(stage).items() if name in call.arguments})


def _offered(stage) -> dict:
  return dict(class_names=stage.dataset.class_names, dim=stage.shapes["params"]["head"]["kernel"].shape[0],
              unit=not getattr(stage.model.head, "keeps_norm", True), pretrained=stage.pretrained)
