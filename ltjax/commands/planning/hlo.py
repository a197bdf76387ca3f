"""What a compiled program's text says of its collectives and loops."""

import re
from typing import NamedTuple

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_BITS = dict(pred=8, s4=4, u4=4, s8=8, u8=8, s16=16, u16=16, f16=16, bf16=16, s32=32, u32=32, f32=32, s64=64, u64=64,
             f64=64, c64=64, c128=128)
ARRAY = re.compile(r"\b([a-z]+[0-9]*)\[([0-9,]*)\](\{[^{}]*\})?")  # type, sides, layout
# `%name = TYPE OPERATION(`; what a start has begun, its done does not count again.
_COLLECTIVE = re.compile(rf"= (\S.*?) ({'|'.join(_KINDS)})(-start)?\(")
_WHILE = re.compile(r"= .*? while\(")


class Collective(NamedTuple):
  """Collectives of one kind in a program, by type of number.

  Args:
    kind: as "all-reduce".
    count: how many.
    bytes: that a device gives to all of them.
    dtypes: of the numbers.
  """

  kind: str
  count: int
  bytes: int
  dtypes: tuple[str, ...]


def collectives(text: str) -> list[Collective]:
  """The collectives in a compiled module's text, by kind; a loop's body counts once.

  >>> collectives("%a = (f32[64]{0}, f32[64]{0}) all-reduce(%x, %y), to_apply=%add")
  [Collective(kind='all-reduce', count=1, bytes=512, dtypes=('f32',))]
  """
  found = {}
  for shape, kind, _ in _COLLECTIVE.findall(text):
    arrays = [array[:2] for array in ARRAY.findall(shape)]
    count, total, dtypes = found.get(kind, (0, 0, set()))
    found[kind] = count + 1, total + sum(size(*array) for array in arrays), dtypes | {dtype for dtype, _ in arrays}
  return [Collective(kind, count, total, tuple(sorted(dtypes)))
          for kind, (count, total, dtypes) in sorted(found.items())]


def loops(text: str) -> int:
  """The number of loops in a compiled module's text."""
  return len(_WHILE.findall(text))


def size(dtype: str, shape: str) -> int:
  """Bytes of an array, as of ("f32", "2,3")."""
  elements = 1
  for side in filter(None, shape.split(",")):
    elements *= int(side)
  return elements * _BITS.get(dtype, 0) // 8
