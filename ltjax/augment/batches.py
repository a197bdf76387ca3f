"""A batch inside the compiled step, and the transforms that change more than its images.

A transform is `name(batch, key, *, hyper-parameters) -> Batch`; it may add rows, labels or a second batch. A config
lists a stage's transforms: `transforms=(dict(name="generate_features", ...),)`.
"""

import functools
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ltjax.augment import features
from ltjax.losses import reweighting

__all__ = ["contrastive_views", "generate_features", "learning_to_reweight", "meta_weight_net", "two_branches"]


class Term(NamedTuple):
  """Labels of the first n rows of the network's output, and how they enter the loss.

  Args:
    labels: [n].
    weight: the factor on their loss, a number or one a row.
    valid: the rows that count, [n]; all of them where None.
    observed: whether the rows are images of the training set. Accuracies and the state of losses see only those.
  """

  labels: Int[Array, "n"]
  weight: float | Float[Array, ""] | Float[Array, "n"]
  valid: Bool[Array, "n"] | None = None
  observed: bool = True

  def sum(self, values: Float[Array, "n"]) -> Float[Array, ""]:
    """The weighted sum of `values`."""
    return jnp.sum(self.weight * values) if np.ndim(self.weight) else self.weight * jnp.sum(values)


class Batch(NamedTuple):
  """What the network takes, and the terms of the loss of what it gives."""

  inputs: Any
  terms: tuple[Term, ...]

  @property
  def observed(self) -> tuple[Term, ...]:
    """The terms of images of the training set; their weights sum to 1."""
    return tuple(term for term in self.terms if term.observed)

  def piece(self, index, pieces: int) -> "Batch":
    """The rows `index`, index + pieces, ... of every array; with such strides each device keeps its own rows."""

    def rows(array):
      if not np.ndim(array):
        return array
      return jax.lax.dynamic_index_in_dim(array.reshape(-1, pieces, *array.shape[1:]), index, axis=1, keepdims=False)

    return Batch(jax.tree.map(rows, self.inputs), tuple(
        term._replace(labels=rows(term.labels), weight=rows(term.weight), valid=None if term.valid is None else rows(
            term.valid)) for term in self.terms))


class Weighing(NamedTuple):
  """A batch whose rows have weights that a held-out batch teaches.

  Args:
    batch: with one set of labels.
    held_out: of images that are not trained on, likewise.
    weigh: (losses, held-out loss, parameters, state, lr) -> (weights [b] with a mean of 1, state). Both losses are
      functions of the parameters: that of each row, [b], and the mean of `held_out`.
  """

  batch: Batch
  held_out: Batch
  weigh: Callable


class Branches(NamedTuple):
  """What a two-branch network learns from in one step (BBN).

  Args:
    conventional: [b h w c], drawn by the stage's sampler.
    rebalancing: [b h w c], drawn by the second sampler.
    share: a in [0, 1], of the conventional branch.
  """

  conventional: Float[Array, "b h w c"]
  rebalancing: Float[Array, "b h w c"]
  share: float | Float[Array, ""]


def two_branches(batches: tuple[Batch, Batch], key: jax.Array, *,
                 share: Annotated[float | Float[Array, ""], "[0, 1]"]) -> Batch:
  """Joins two batches for a two-branch network: loss a l(z, y) + (1 - a) l(z, y').

  The second batch comes from a sampler of its own, which the block names as `sampler`.

  Args:
    batches: one per stream, each of plain images.
    key: not used.
    share: a, a number or a schedule.

  References:
    Zhou et al., `BBN: Bilateral-Branch Network <https://arxiv.org/abs/1912.02413>`_, 2020.
  """
  del key
  first, second = batches
  (own,), (other,) = first.terms, second.terms
  return Batch(Branches(first.inputs, second.inputs, share),
               (own._replace(weight=share), other._replace(weight=1 - share)))


two_branches.draws = (0, 1)  # the sampler of each batch that it joins: the stage's, then its own
two_branches.needs = "takes_branches"  # the trait of a backbone that takes what it makes


def contrastive_views(batches: tuple[Batch, Batch, Batch], key: jax.Array) -> Batch:
  """Puts a batch for the classifier before two views of another batch, for `losses.hybrid_contrastive`.

  The stage's sampler draws the images of the two views, which differ in their augmentation. The images for the
  classifier come from a sampler of their own, which the block names as `sampler`. BatchNorm sees all three together.

  Args:
    batches: both views, then the batch for the classifier, each of plain images.
    key: not used.

  References:
    Wang et al., `Contrastive Learning based Hybrid Networks for Long-Tailed Image Classification
    <https://arxiv.org/abs/2103.14267>`_, 2021.
  """
  del key
  rows = batches[2], batches[0], batches[1]
  labels = jnp.concatenate([batch.terms[0].labels for batch in rows])
  return Batch(jnp.concatenate([batch.inputs for batch in rows]), (Term(labels, 1.0),))


contrastive_views.draws = (0, 0, 1)


def learning_to_reweight(batches: tuple[Batch, Batch], key: jax.Array) -> Weighing:
  """Weighs each image by how well its gradient agrees with that of a held-out batch: `reweighting.agreement` (L2RW).

  The second batch comes from the images that are held out, by a sampler that the block names as `sampler`.

  Args:
    batches: of the training images and of the held-out ones, each of plain images.
    key: not used.

  References:
    Ren et al., `Learning to Reweight Examples for Robust Deep Learning <https://arxiv.org/abs/1803.09050>`_, 2018.
  """
  del key
  return Weighing(*batches, reweighting.agreement)


learning_to_reweight.draws, learning_to_reweight.draws_held_out = (0, 1), True


def meta_weight_net(batches: tuple[Batch, Batch], key: jax.Array, *, hidden: Annotated[int, "[1, inf)"] = 100,
                    rate: Annotated[float, "(0, inf)"] = 1e-5) -> Weighing:
  """Weighs each image by a function of its loss that held-out images teach: `reweighting.weight_net`.

  The second batch comes from the images that are held out, by a sampler that the block names as `sampler`.

  Args:
    batches: of the training images and of the held-out ones, each of plain images.
    key: not used.
    hidden: units of the hidden layer.
    rate: the learning rate of the function's parameters.

  References:
    Shu et al., `Meta-Weight-Net: Learning an Explicit Mapping For Sample Weighting
    <https://arxiv.org/abs/1902.07379>`_, 2019.
  """
  del key, hidden
  return Weighing(*batches, functools.partial(reweighting.weight_net, rate=rate))


meta_weight_net.draws, meta_weight_net.draws_held_out = (0, 1), True
meta_weight_net.init = reweighting.init_weight_net  # the state that it carries from step to step


def generate_features(batch: Batch, key: jax.Array, *, num_classes: int,
                      weight: Annotated[float | Float[Array, ""], "[0, inf)"],
                      gamma: Annotated[float, "(0, inf)"] = 1.0, alpha: Annotated[float, "[0, inf)"] = 4.0) -> Batch:
  """Adds features of rare classes that the backbone's `insert` makes of those in the batch (AFA).

  The loss becomes l(batch) + weight l(batch and generated rows together).

  Args:
    batch: images with one set of labels.
    key: of the draws.
    num_classes: c.
    weight: a number or a schedule; at 0 nothing is generated, in a compiled step of its own.
    gamma: how many features there are for each image, see `features.generated_counts`.
    alpha: how much rare classes are preferred, see there.

  References:
    Wang et al., `Attentive Feature Augmentation for Long-Tailed Visual Recognition` (AFA, LTVR), 2022, section III-C2.
  """
  (term,) = batch.terms
  drawn = features.plan(term.labels, key=key, num_classes=num_classes, gamma=gamma, alpha=alpha)
  inputs, labels, valid = features.enlarge(batch.inputs, term.labels, drawn)
  return Batch(inputs, (term, Term(labels, weight, valid, observed=False)))


generate_features.off_at_zero = "weight"  # at weight 0 the step is compiled without it
generate_features.adds_rows = True  # rows that may be invalid: a loss of a complete batch cannot take them
