"""What a compiled program moves in the main memory of its device: bytes by instruction, and the source line behind it.

The compiler's own sum also counts what stays in the memory on the chip, where a TPU keeps activations and prefetches
parameters to, and it counts an operand in full where a slice of it is read. So it is an upper bound.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from ltjax.commands.planning.hlo import ARRAY, size

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
_TABLES = dict(FileNames=re.compile(r'^(\d+) "(.*)"$', re.MULTILINE),
               FileLocations=re.compile(r"^(\d+) \{file_name_id=(\d+) .*?\bline=(\d+)", re.MULTILINE),
               StackFrames=re.compile(r"^(\d+) \{file_location_id=(\d+) parent_frame_id=(\d+)", re.MULTILINE))
# They move nothing; what a start has begun, its done does not count again.
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id")
_SLICES = ("slice", "dynamic-slice", "gather")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls|branch_computations)=(%?[\w.\-]+|\{.*?\})")
_OUTER = ("while", "call", "conditional", "async-start")  # their computations move what they do


class Moved(NamedTuple):
  """What an instruction moves in main memory.

  Args:
    operation: its kind, as "fusion".
    path: where in the traced function it comes from, as "jit(train_step)/jvp(Classifier)/head/dot_general".
    source: file and line in ltjax, or "" where the compiler names none.
    read, written: bytes.
  """

  operation: str
  path: str
  source: str
  read: int
  written: int

  @property
  def bytes(self) -> int:
    """Both together."""
    return self.read + self.written


class Source(NamedTuple):
  """What the instructions of one place move.

  Args:
    place: as "ltjax/optim.py:86", or the argument that is moved, as "state.params".
    operations: their kinds.
    count: how many.
    read, written: bytes.
  """

  place: str
  operations: tuple[str, ...]
  count: int
  read: int
  written: int

  @property
  def bytes(self) -> int:
    """Both together."""
    return self.read + self.written


class _Instruction(NamedTuple):
  shape: str
  operation: str
  operands: list[str]  # of a parameter its number
  attributes: str


def moved(text: str) -> list[Moved]:
  """What each instruction of a compiled module's text moves, without those that move nothing; a loop counts once.

  >>> moved('''ENTRY %main {
  ...   %x = f32[8]{0} parameter(0)
  ...   %y = f32[8]{0:S(1)} copy(%x)
  ...   ROOT %z = bf16[8]{0} convert(%y), metadata={op_name="f/convert"}
  ... }''')
  [Moved(operation='copy', path='', source='', read=32, written=0), \
Moved(operation='convert', path='f/convert', source='', read=0, written=16)]
  """
  computations, entry = _parse(text)
  sources = _sources(text)
  return [found for found in _of(entry, computations, sources) if found.bytes]


def by_source(found: Iterable[Moved]) -> tuple[Source, ...]:
  """What is moved, by the line of source that asks for it; of arguments by their name."""
  groups: dict[str, list[Moved]] = {}
  for each in found:
    groups.setdefault(each.source or each.path or "elsewhere", []).append(each)
  sources = [Source(place, tuple(sorted({each.operation for each in group})), len(group),
                    sum(each.read for each in group), sum(each.written for each in group))
             for place, group in groups.items()]
  return tuple(sorted(sources, key=lambda source: (-source.bytes, source.place)))


def _parse(text: str) -> tuple[dict[str, dict[str, _Instruction]], str]:
  """({computation: {name: instruction}}, the name of the entry); the last instruction of each is its root."""
  computations: dict[str, dict[str, _Instruction]] = {}
  entry, current = "", None
  for line in text.splitlines():
    if (opened := _COMPUTATION.match(line)) and not line.startswith("HloModule"):
      current = computations[opened[2]] = {}
      entry = opened[2] if opened[1] else entry
    elif current is not None and (match := _INSTRUCTION.match(line)):
      operands, attributes = _closed(match[5])
      names = [operands] if match[4] == "parameter" else re.findall(r"%([\w.\-]+)", operands)
      current[match[2]] = _Instruction(match[3], match[4], names, attributes)
  return computations, entry


def _closed(text: str) -> tuple[str, str]:
  """What stands before and after the parenthesis that closes the operands."""
  depth = 1
  for place, letter in enumerate(text):
    depth += (letter == "(") - (letter == ")")
    if not depth:
      return text[:place], text[place + 1:]
  return text, ""


def _of(name: str, computations: dict, sources: dict[str, str]) -> Iterable[Moved]:
  body = computations[name]
  for each in body.values():
    if each.operation in _OUTER:
      for called in re.findall(r"[\w.\-]+", " ".join(_CALLED.findall(each.attributes))):
        yield from _of(called, computations, sources)
    elif each.operation not in _FREE and not each.operation.endswith("-done"):
      path, source = _origin(each, body, sources)
      yield Moved(each.operation, path, source, *_counted(each, body, computations))


def _counted(each: _Instruction, body: dict[str, _Instruction], computations: dict) -> tuple[int, int]:
  """(bytes read, bytes written)."""
  operands = [body[name] for name in each.operands if name in body]
  if each.operation in ("copy-start", "slice-start"):  # the result's shape repeats the operand's
    arrays = ARRAY.findall(each.shape)
    target = arrays[0] if each.operation == "copy-start" else arrays[len(operands)]
    return size(*target[:2]) if any(map(_main, operands)) else 0, _in_main([target])
  if each.operation == "custom-call" and "ConcatBitcast" in each.attributes:
    return 0, 0
  if each.operation in _SLICES:
    return min(_all(each.shape, anywhere=True), _all(operands[0].shape)), _all(each.shape)
  if each.operation == "dynamic-update-slice":
    return _all(operands[1].shape), min(_all(operands[1].shape, anywhere=True), _all(each.shape))
  if each.operation == "fusion":
    fused = computations[_CALLED.search(each.attributes)[1].strip("%")]
    return (sum(_fused_read(fused, number, operand) for number, operand in enumerate(operands)),
            _fused_written(fused, each.shape))
  read, written = sum(_all(operand.shape) for operand in operands), _all(each.shape)
  # The result of these repeats the operands.
  return read, written - read if each.operation in ("all-gather-start", "collective-permute-start") else written


def _fused_read(fused: dict[str, _Instruction], number: int, operand: _Instruction) -> int:
  """What a fusion reads of an operand: of one that it only slices, the slices."""
  name = next(name for name, each in fused.items() if each.operation == "parameter" and each.operands == [str(number)])
  users = [each for each in fused.values() if name in each.operands]
  if users and all(each.operation in _SLICES and each.operands[0] == name for each in users):
    return min(sum(_all(each.shape, anywhere=True) for each in users), _all(operand.shape))
  if users and all(each.operation == "dynamic-update-slice" and each.operands[0] == name for each in users):
    return 0  # changed in place
  return _all(operand.shape)


def _fused_written(fused: dict[str, _Instruction], shape: str) -> int:
  """What a fusion writes: of an array that it changes in place, the slice."""
  root = list(fused.values())[-1]
  if root.operation == "dynamic-update-slice":
    return min(_all(fused[root.operands[1]].shape, anywhere=True), _all(shape))
  return _all(shape)


def _origin(each: _Instruction, body: dict[str, _Instruction], sources: dict[str, str]) -> tuple[str, str]:
  """(path, source) of an instruction, or where it has none of what it moves."""
  for _ in range(8):
    path, frame = (re.search(pattern, each.attributes) for pattern in (r'op_name="([^"]*)"', r"stack_frame_id=(\d+)"))
    if path or not each.operands or each.operands[0] not in body:
      # Of an argument the path is its name; which of its leaves does not matter here.
      return re.split(r"[\[\\']", path[1])[0] if path else "", sources.get(frame[1], "") if frame else ""
    each = body[each.operands[0]]
  return "", ""


def _sources(text: str) -> dict[str, str]:
  """{frame: the innermost line of ltjax}, from the tables at the head of a module's text."""
  files, locations, frames = (dict(pattern.findall(_table(text, name))) if name == "FileNames" else {
      number: rest for number, *rest in pattern.findall(_table(text, name))} for name, pattern in _TABLES.items())
  found = {"0": ""}
  for frame, (location, parent) in frames.items():  # a frame stands behind its parent, whose number is one less
    name, line = files[locations[location][0]], locations[location][1]
    own = "ltjax/" in name and "ltjax/commands/" not in name
    found[frame] = f"ltjax/{name.rpartition('ltjax/')[2]}:{line}" if own else found[str(int(parent) - 1)]
  return found


def _table(text: str, name: str) -> str:
  table = re.search(rf"^{name}\n(.*?)\n\n", text, re.MULTILINE | re.DOTALL)
  return table[1] if table else ""


def _main(each: _Instruction) -> bool:
  return _all(each.shape) > 0


def _all(shape: str, *, anywhere: bool = False) -> int:
  """Bytes of a shape's arrays in main memory, or anywhere."""
  arrays = ARRAY.findall(shape)
  return sum(size(*array[:2]) for array in arrays) if anywhere else _in_main(arrays)


def _in_main(arrays) -> int:
  return sum(size(dtype, sides) for dtype, sides, layout in arrays if "S(" not in layout)
