"""What parts from outside must have, and which of a module's functions are parts of a family."""

import inspect
from collections.abc import Callable

from ltjax.config import bind as b


def lacks(*parameters: str) -> Callable[[Callable], str | None]:
  """A check that an outside function has `parameters`; "a|b" means one of the two."""

  def check(part: Callable) -> str | None:
    there = b.signature(part)
    for wanted in parameters:
      if not set(wanted.split("|")) & set(there):
        return f"takes no {' or '.join(map(repr, wanted.split('|')))}, which it would be called with"
    return None

  return check


def backbone_lacks(part: Callable) -> str | None:
  """What an outside backbone lacks, if anything."""
  if not inspect.isclass(part) or not hasattr(part, "apply") or not hasattr(part, "init"):
    return "is not a flax.linen module"
  if "train" not in inspect.signature(part.__call__).parameters:
    return "has no 'train' in __call__(self, images, *, train), which it is called with"
  return None


def head_lacks(part: Callable) -> str | None:
  """What an outside head lacks, if anything."""
  return backbone_lacks(part) or lacks("num_classes")(part)


def returns(axes: str) -> Callable[[Callable], bool]:
  """A test whether a function's annotated result has `axes`, such as "b c"; without an annotation it passes."""

  def accepts(function: Callable) -> bool:
    annotation = inspect.signature(function).return_annotation
    return getattr(annotation, "dim_str", axes) == axes

  return accepts
