"""Post-hoc methods, which change a trained classifier without training, as functions of kernels, features, logits."""

import functools
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Real

from ltjax import metrics
from ltjax.data import tally
from ltjax.errors import ConfigError, DataError
from ltjax.losses.adjustment import log_power
from ltjax.losses.arguments import Number, at_least_float32, class_prior, ranged

__all__ = ["adjust_logits", "nearest_class_mean", "nearest_mean_logits", "tau_normalize"]

_METRICS = ("cosine", "euclidean", "dot")


@ranged
def tau_normalize(kernel: Float[Array, "d c"], *, tau: Annotated[Number, "[0, inf)"]) -> Float[Array, "d c"]:
  """Divides each class vector by a power of its norm and drops the bias.

  w_c / |w_c|^tau

  Args:
    kernel: class vectors w in the columns, [d, c].
    tau: >= 0; 0 changes nothing, 1 gives unit vectors. Choose it on held-out data, never on the test set.

  Returns:
    The new kernel, [d, c], float32 or better; logits are `features @ kernel`.

  Raises:
    ConfigError: tau below 0.

  References:
    Kang et al., `Decoupling Representation and Classifier for Long-Tailed Recognition
    <https://arxiv.org/abs/1910.09217>`_, 2020; `tau_norm.py` of facebookresearch/classifier-balancing,
    whose grid is linspace(0, 2, 21).

  >>> tau_normalize(jnp.array([[0.0, 4.0], [2.0, 0.0]]), tau=0.5).round(4).tolist()
  [[0.0, 2.0], [1.414199948310852, 0.0]]
  """
  kernel = at_least_float32(kernel)
  squares = jnp.sum(kernel * kernel, axis=0)
  # A zero vector has no direction, and its norm has no finite derivative.
  return kernel * jnp.where(squares > 1e-24, squares, 1.0) ** (-tau / 2)


def nearest_class_mean(
    features: Float[Array, "n d"],
    labels: Int[Array, "n"],
    num_classes: int,
    *,
    metric: str = "cosine",
    unit: bool = False,
    center: Float[Array, "d"] | None = None,
) -> Float[Array, "c d"]:
  """Returns the mean feature of each class, for `nearest_mean_logits` with the same metric, unit and center.

  mean_c = sum_i [y_i = c] x'_i / n_c with x' = x - center, divided by its norm if `unit`; for "cosine" mean_c is
  divided by its norm too

  Args:
    features: training features x, [n, d].
    labels: class indices in [0, num_classes), every class present, [n].
    num_classes: c.
    metric: "cosine", "euclidean" or "dot".
    unit: L2-normalise the features first.
    center: the mean of the training features, [d]; subtracted from the features first.

  Returns:
    The class means, [c, d], float32 or better.

  Raises:
    ConfigError: an unknown metric.
    DataError: labels outside [0, num_classes), or a class without features.

  References:
    Kang et al., `Decoupling Representation and Classifier for Long-Tailed Recognition
    <https://arxiv.org/abs/1910.09217>`_, 2020. `KNNClassifier` of facebookresearch/classifier-balancing offers the
    metrics "euclidean" and "dot" and the features "un", "l2n" (unit=True) and "cl2n" (with a center as well).

  >>> nearest_class_mean(jnp.array([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]]), jnp.array([0, 0, 1]), 2).tolist()
  [[1.0, 0.0], [0.0, 1.0]]
  """
  _check_metric(metric)
  features = _moved(features, unit, center)
  if not isinstance(labels, jax.core.Tracer):
    classes = np.asarray(labels)
    if not np.issubdtype(classes.dtype, np.integer) or classes.shape != features.shape[:1]:
      raise DataError(f"labels must be {features.shape[0]} integers, got {classes.dtype} of shape {classes.shape}.")
    if classes.size and not 0 <= classes.min() <= classes.max() < num_classes:
      raise DataError(f"labels must be in [0, {num_classes}), got {classes.min()} to {classes.max()}.")
    empty = np.flatnonzero(np.bincount(classes, minlength=num_classes) == 0)
    if empty.size:
      raise DataError(f"every class needs a feature, but class {empty[0]} has none ({empty.size} such classes of "
                      f"{num_classes}).")
  sums = jax.ops.segment_sum(features, labels, num_classes)
  sizes = jax.ops.segment_sum(jnp.ones(features.shape[:1], features.dtype), labels, num_classes)
  means = sums / sizes[:, None]
  return means * jax.lax.rsqrt(_squares(means)) if metric == "cosine" else means


def nearest_mean_logits(
    features: Float[Array, "b d"],
    means: Float[Array, "c d"],
    *,
    metric: str = "cosine",
    unit: bool = False,
    center: Float[Array, "d"] | None = None,
) -> Float[Array, "b c"]:
  """Returns how close each feature is to each class mean; the largest logit is the prediction.

  cosine: <x', m> / |x'| |m|; euclidean: -|x' - m|^2; dot: <x', m> / d

  Args:
    features: x, [b, d]; x' as in `nearest_class_mean`.
    means: m from `nearest_class_mean`, [c, d].
    metric: "cosine", "euclidean" or "dot".
    unit: as for the means.
    center: as for the means.

  Returns:
    Logits, [b, c], float32 or better.

  Raises:
    ConfigError: an unknown metric.

  References:
    As `nearest_class_mean`.

  >>> nearest_mean_logits(jnp.array([[0.0, 3.0]]), jnp.eye(2)).tolist()
  [[0.0, 1.0]]
  """
  _check_metric(metric)
  x, means = _moved(features, unit, center), at_least_float32(means)
  products = jnp.matmul(x, means.T, precision=jax.lax.Precision.HIGHEST)
  if metric == "dot":
    return products / x.shape[-1]
  if metric == "cosine":
    return products * jax.lax.rsqrt(_squares(x)) * jax.lax.rsqrt(_squares(means)).T
  return 2 * products - jnp.sum(x**2, axis=-1, keepdims=True) - jnp.sum(means**2, axis=-1)


@ranged
def adjust_logits(
    logits: Float[Array, "b c"],
    class_counts: Real[Array, "c"],
    *,
    tau: Annotated[Number, "[0, inf)"] = 1.0,
    epsilon: Annotated[float, "[0, inf)"] = 1e-12,
) -> Float[Array, "b c"]:
  """Post-hoc logit adjustment: removes the training prior from the logits of a trained model.

  logit_ij = z_ij - log(pi_j^tau + epsilon) with pi = n / N

  Args:
    logits: z, [b, c].
    class_counts: training images n of each class, positive, in any order, [c]; a traced 0 has the prior 0.
    tau: >= 0. Choose it on held-out data, never on the test set.
    epsilon: >= 0. The released code uses 1e-12; 0 is the equation of the paper.

  Returns:
    Adjusted logits, [b, c], float32 or better; the largest is the prediction.

  Raises:
    ConfigError: tau or epsilon outside its range.
    DataError: counts that are not one positive number per class.

  References:
    Menon et al., `Long-tail learning via logit adjustment <https://arxiv.org/abs/2007.07314>`_, 2021, post hoc.
    `ltjax.losses.logit_adjustment` is the form for training.

  >>> adjust_logits(jnp.array([[0.0, -1.0]]), jnp.array([99, 1])).argmax(-1).tolist()
  [1]
  """
  logits = at_least_float32(logits)
  return logits - log_power(class_prior(class_counts, logits), tau, epsilon)


def _check_metric(metric: str) -> None:
  if metric not in _METRICS:
    raise ConfigError(f"metric must be one of {', '.join(_METRICS)}, got {metric!r}.")


def _moved(features, unit: bool, center) -> Float[Array, "n d"]:
  features = at_least_float32(features)
  if center is not None:
    features = features - at_least_float32(center)
  return _unit(features) if unit else features


def _unit(x):
  return x * jax.lax.rsqrt(_squares(x))


def _squares(x):
  # The clamp keeps the root and its derivative finite at a zero vector.
  return jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24)


def method_logits(name: str, hyper_parameters: dict, outputs, kernel, train_labels, class_counts):
  """Returns the logits [n c] of a post-hoc method, by its name in a config.

  Args:
    name: "tau_normalize", "nearest_class_mean" or "logit_adjustment".
    hyper_parameters: the method's hyper-parameters.
    outputs: `outputs("these", key)` returns the "features" or "logits" of the images to predict,
      `outputs("train", key)` those of the training images.
    kernel: the kernel of the head, [d c], if it has one.
    train_labels: [n].
    class_counts: [c].
  """
  if name == "tau_normalize":
    kernel = tau_normalize(kernel, **hyper_parameters)
    return jnp.matmul(outputs("these", "features"), kernel, precision=jax.lax.Precision.HIGHEST)
  if name == "nearest_class_mean":
    means = nearest_class_mean(outputs("train", "features"), train_labels, len(class_counts), **hyper_parameters)
    return nearest_mean_logits(outputs("these", "features"), means, **hyper_parameters)
  return adjust_logits(outputs("these", "logits"), class_counts, **hyper_parameters)


def trace(name: str, hyper_parameters: dict) -> None:
  """Traces a method on shapes alone, which raises a ConfigError if a hyper-parameter is outside its range."""
  array, labels = jax.ShapeDtypeStruct((2, 2), "float32"), jax.ShapeDtypeStruct((2,), "int32")
  jax.eval_shape(lambda array, labels: method_logits(
      name, hyper_parameters, lambda images, key: array, array, labels, jnp.ones(2)), array, labels)


# -- on a trained stage -----------------------------------------------------------------------------------------------


def run(blocks, stage, variables: dict) -> list[dict]:
  """Returns the entries of `results.json` for the blocks of config.posthoc that name `stage`.

  It chooses hyper-parameters on held-out training images, never on the test set.

  Args:
    blocks: `config.spec.PosthocSpec`s.
    stage: a `stage.Stage`, after training.
    variables: its {"params", "batch_stats"}.
  """
  if not blocks:
    return []
  dataset, counts, extract = stage.dataset, stage.class_counts, stage.extractor(variables)

  @functools.cache
  def outputs(split, key):
    return extract(getattr(dataset, split)[0], key)[key]

  # On the host: these arrays are small, and every process computes the same values.
  kernel = jax.device_get(variables["params"].get("head", {}).get("kernel"))

  def tallied(block, candidate, split):
    logits = method_logits(block.name, candidate, lambda of, key: outputs(split if of == "these" else of, key), kernel,
                           dataset.train[1], counts)
    return tally.count(getattr(dataset, split)[1], np.argmax(logits, axis=-1), len(counts))

  found = []
  for block in blocks:
    chosen, selection = block.candidates[0], None
    if block.choices:
      chosen, selection = _choose(block, functools.partial(tallied, block, split="held_out"))
    tested = tallied(block, chosen, "test")
    found.append(dict(name=block.name, stage=block.stage, hyper_parameters=chosen, selection=selection,
                      test=metrics.scores(tested, counts), per_class=metrics.measured(tested)))
  return found


def _choose(block, held_out) -> tuple[dict, dict]:
  """Returns (best candidate by mean class accuracy, record of the choice); the first wins a tie."""
  tallies = [held_out(candidate) for candidate in block.candidates]
  tried = tallies[0].total
  scores = [metrics.balanced_accuracy(found) for found in tallies]
  candidates = [{key: candidate[key] for key in block.choices} | dict(balanced_accuracy=score)
                for candidate, score in zip(block.candidates, scores, strict=True)]
  return block.candidates[int(np.argmax(scores))], dict(
      chosen_on="held-out training images", images=int(tried.sum()), classes=int((tried > 0).sum()),
      candidates=candidates)
