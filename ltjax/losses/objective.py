"""A stage's adjustment, loss, class weights and reduction as one function of the logits."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

# What a step offers to every loss and adjustment, by the name of the parameter that takes it; a config sets none.
OFFERED = ("logits", "cosines", "labels", "class_counts", "features", "key", "noise", "mask")


class Objective(NamedTuple):
  """What a stage minimises.

  Args:
    loss: one value per example, [b].
    adjust: logits [b c] to logits [b c], before the loss; None leaves them.
    class_weights: whether `scalars` have "class_weights" [c].
    reduce: "weighted_mean" divides by the sum of the weights, "mean" by the number of rows.
  """

  loss: Any
  adjust: Any | None
  class_weights: bool
  reduce: str

  @property
  def states(self) -> dict[str, Any]:
    """{argument: the declared state} of the loss and the adjustment that ask for one."""
    declared = [getattr(call.function, "state", None) for call in (self.adjust, self.loss) if call]
    return {state.argument: state for state in declared if state is not None}

  def init_state(self, num_classes: int) -> dict | None:
    """The states before the first step; None where nothing asks for any."""
    return {name: state.init(num_classes) for name, state in self.states.items()} or None

  def update_state(self, state: dict | None, logits, labels, weight) -> dict | None:
    """The states after `labels` [b], which have `weight` in the batch."""
    return state and {name: self.states[name].update(value, logits, labels, weight) for name, value in state.items()}

  def row_weights(self, labels, scalars, valid=None):
    """(weights [b] that multiply the losses, the number that their sum is divided by)."""
    counted = jnp.ones(labels.shape) if valid is None else valid.astype(jnp.float32)
    weights = scalars["class_weights"][labels] * counted if self.class_weights else counted
    return weights, jnp.sum(weights if self.reduce == "weighted_mean" else counted)

  def __call__(self, logits, labels, *, features, key, scalars, class_counts, state=None, valid=None, weight=1.0,
               total=None):
    """The mean loss of the rows that are `valid`, times `weight`, a number or one a row.

    With `total`, the sum is divided by it: the losses of parts of a batch then add up to that of the batch.
    """
    if valid is not None:  # nothing in the other rows, not even a NaN, may reach the valid ones
      logits, features = (jnp.where(valid[:, None], rows, 1) for rows in (logits, features))
    offered = dict(labels=labels, class_counts=class_counts, features=features, key=key, **(state or {}))
    if self.adjust:
      logits = _apply(self.adjust, logits, offered, scalars["adjust"])
    values = _apply(self.loss, logits, offered, scalars["loss"])
    if jnp.ndim(weight):
      values, weight = weight * values, 1.0
    weights, own_total = self.row_weights(labels, scalars, valid)
    return weight * (jnp.sum(weights * values) / (own_total if total is None else total))


def _apply(call, logits, offered: Mapping, scheduled: Mapping):
  takes = {name: value for name, value in offered.items() if name in call.arguments}
  return call(logits, **takes, **scheduled)
