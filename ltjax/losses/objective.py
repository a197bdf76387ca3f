"""A stage's adjustment, loss, class weights and reduction as one function of the logits."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

# The arguments that a step offers to every loss and adjustment, by name; a config sets none of them.
OFFERED = ("logits", "cosines", "labels", "class_counts", "features", "key", "noise", "mask")


class Objective(NamedTuple):
  """The function that a stage minimises.

  Args:
    loss: returns one value per example, [b].
    adjust: maps logits [b c] to logits [b c], before the loss; None leaves them as they are.
    class_weights: whether `scalars` has "class_weights" [c].
    reduce: "weighted_mean" divides by the sum of the weights, "mean" by the number of rows.
  """

  loss: Any
  adjust: Any | None
  class_weights: bool
  reduce: str

  @property
  def states(self) -> dict[str, Any]:
    """{argument: declared state} of the loss and the adjustment, if they declare one."""
    declared = [getattr(call.function, "state", None) for call in (self.adjust, self.loss) if call]
    return {state.argument: state for state in declared if state is not None}

  def init_state(self, num_classes: int) -> dict | None:
    """The states before the first step; None if nothing declares any."""
    return {name: state.init(num_classes) for name, state in self.states.items()} or None

  def update_state(self, state: dict | None, logits, labels, weight) -> dict | None:
    """The states after a batch with `labels` [b], which counts with `weight`."""
    return state and {name: self.states[name].update(value, logits, labels, weight) if name in self.states else value
                      for name, value in state.items()}

  def row_weights(self, labels, scalars, valid=None):
    """(weights [b] of the losses, the number that divides their weighted sum)."""
    counted = jnp.ones(labels.shape) if valid is None else valid.astype(jnp.float32)
    weights = scalars["class_weights"][labels] * counted if self.class_weights else counted
    return weights, jnp.sum(weights if self.reduce == "weighted_mean" else counted)

  def __call__(self, logits, labels, *, features, key, scalars, class_counts, state=None, valid=None, weight=1.0,
               total=None):
    """The mean loss of the `valid` rows, times `weight`, a number or one per row.

    `total`, if given, divides the sum instead of the rows' own total, so that the losses of a batch's parts add up to
    the loss of the batch.
    """
    if valid is not None:  # nothing in the other rows, not even a NaN, may reach the valid ones
      logits, features = (jnp.where(valid[:, None], rows, 1) for rows in (logits, features))
    values = self.values(logits, labels, features=features, key=key, scalars=scalars, class_counts=class_counts,
                         state=state)
    if np.ndim(weight):
      values, weight = weight * values, 1.0
    weights, own_total = self.row_weights(labels, scalars, valid)
    return weight * (jnp.sum(weights * values) / (own_total if total is None else total))

  def values(self, logits, labels, *, features, key, scalars, class_counts, state=None):
    """The loss of each row, [b], before weights and reduction."""
    offered = dict(labels=labels, class_counts=class_counts, features=features, key=key, **(state or {}))
    if self.adjust:
      logits = _apply(self.adjust, logits, offered, scalars["adjust"])
    return _apply(self.loss, logits, offered, scalars["loss"])


def _apply(call, logits, offered: Mapping, scheduled: Mapping):
  takes = {name: value for name, value in offered.items() if name in call.arguments}
  return call(logits, **takes, **scheduled)
