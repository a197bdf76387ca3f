"""What a loss or an adjustment asks for beyond its arguments, declared where it is defined.

`of_batch`: the loss of a complete batch, whose rows cannot be left out or weighted one by one. `drops_columns`: columns
of the logits are removed at random. `needs_angles`: the cosines must lie in [-1, 1]. `state`: see `stateful`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple


class State(NamedTuple):
  """What a loss remembers from step to step.

  Args:
    argument: the keyword that receives it.
    init: num_classes -> a pytree of arrays, before the first step.
    update: (state, logits [b c], labels [b], weight) -> the state that the loss of this very step reads. It runs inside
      jit, once for each set of labels; `weight` is the labels' weight in the batch, 1 without mixup.
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
  """Declares the `State` of a loss; a run holds and checkpoints it only where a stage uses the loss."""
  return has(state=State(argument, init, update))
