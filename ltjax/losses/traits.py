"""Traits: what a loss or an adjustment needs beyond its arguments, declared on the function itself.

`of_batch`: the loss belongs to a complete batch, so its rows cannot be left out or weighted differently.
`drops_columns`: the function removes columns of the logits at random, which no loss with `of_batch` can follow.
`rows_of`: the transform whose order of rows the loss reads. `takes`: the projections that it takes for features.
`needs_angles`: the cosines must lie in [-1, 1]. `state`: see `stateful`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple


class State(NamedTuple):
  """The state that a loss carries from step to step.

  Args:
    argument: the keyword argument that receives the state.
    init: num_classes -> a pytree of arrays, the state before the first step.
    update: (state, logits [b c], labels [b], weight) -> the new state. It runs inside jit, once per step and set of
      labels, before the loss of that step reads the state; `weight` is the labels' weight in the batch, 1 without
      mixup.
  """

  argument: str
  init: Callable[[int], Any]
  update: Callable[..., Any]


def has(**traits) -> Callable[[Callable], Callable]:
  """Sets `traits` as attributes of a function."""

  def mark(function: Callable) -> Callable:
    for name, value in traits.items():
      setattr(function, name, value)
    return function

  return mark


def stateful(argument: str, init: Callable[[int], Any], update: Callable[..., Any]) -> Callable[[Callable], Callable]:
  """Declares the `State` of a loss; a run allocates and saves it only for stages that use the loss."""
  return has(state=State(argument, init, update))
