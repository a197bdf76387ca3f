"""The identity of a run's data: written beside `config.json`, and compared when the folder is used again."""

import base64
import zlib
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import numpy as np

_NAMED = 3  # examples to name of each kind of difference
_SPLITS = dict(train="training", held_out="held-out", test="test")


def describe(dataset) -> dict:
  """The identity of a `Dataset` as JSON: {"class_names", "class_counts", "fingerprint", "examples", "made_by"}.

  "examples" holds the example lines of every split, packed: a million paths take some megabytes and seconds. The
  fingerprint says whether anything differs; the lines name it. For files, the path, the length and the class are
  compared. Other bytes of the same length go unnoticed: to notice them, every start would have to read all files. For
  arrays every byte is compared, but they have no names, so no lines are stored. "made_by" belongs to features.
  """
  lines = {split: list(dataset.example_lines(split)) for split in dataset.splits}
  return dict(class_names=list(dataset.class_names), class_counts=dataset.class_counts.tolist(),
              fingerprint=dataset.fingerprint_of(lines), made_by=dict(dataset.made_by),
              examples={split: _packed(part) for split, part in lines.items()
                        if not isinstance(getattr(dataset, split)[0], np.ndarray)})


def checked(found) -> dict:
  """`found`, which was read from a file; raises a `ValueError` unless it is an identity."""
  kinds = dict(class_names=list, class_counts=list, fingerprint=str, examples=dict)
  if not isinstance(found, dict) or not all(isinstance(found.get(key), kind) for key, kind in kinds.items()):
    raise ValueError(f"expected {', '.join(kinds)}")
  try:
    if not all(line.count("\t") == 2 for part in found["examples"].values() for line in _unpacked(part)):
      raise ValueError("its example lines are not as ltjax writes them")
  except (TypeError, AttributeError, zlib.error) as error:
    raise ValueError(f"its examples cannot be unpacked: {error}") from error
  return found


def differences(old: Mapping, new: Mapping) -> list[str]:
  """How the identity `new` differs from `old`: one line for each kind of difference, none if they are equal.

  Classes come first: renamed, gone, new, in another order. Then, for each split, how many examples were removed or
  added, have another length or another class, or are only in another order, with the first three of each; and how many
  moved from one split to another.
  """
  if old["fingerprint"] == new["fingerprint"]:
    return []
  before, after = ({split: _Examples(_unpacked(part)) for split, part in identity["examples"].items()}
                   for identity in (old, new))
  renamed = _renamed(old, new, [*before.values()], [*after.values()])
  lines = of_classes(old["class_names"], new["class_names"], renamed)
  before = {split: part.called(renamed) for split, part in before.items()}
  moved = _moved(before, after)
  for split, title in _SPLITS.items():
    if split in before and split in after:
      lines += _of_split(title, before[split], after[split], moved)
    elif split in before or split in after:
      count = len((before if split in before else after)[split].order)
      lines.append(f"the {title} set of {count:,} images is {'gone' if split in before else 'new'}")
  if moved:
    path, (was, now) = next(iter(moved.items()))
    are = "1 image is" if len(moved) == 1 else f"{len(moved):,} images are"
    lines.append(f"{are} in another set, because a set that is drawn from the images changes with them: "
                 f"{_first([*moved])}; the first was a {_SPLITS[was]} image and is a {_SPLITS[now]} image")
  if not lines:
    lines.append(f"the images or their order differ: {sum(old['class_counts']):,} training images then, "
                 f"{sum(new['class_counts']):,} now")
  return lines


class _Examples:
  """The examples of a split: their paths in order, and (length, class) of each path."""

  def __init__(self, lines: Iterable[str]):
    rows = [line.split("\t") for line in lines]
    self.order = [path for path, _, _ in rows]
    self.found = {path: (size, name) for path, size, name in rows}

  def of_class(self, name: str) -> list[tuple[str, str]]:
    """(path below the class folder, length) of the images of a class."""
    return [(path.partition("/")[2] or path, size) for path, (size, c) in self.found.items() if c == name]

  def called(self, renamed: Mapping[str, str]) -> "_Examples":
    """The same examples, with new names for classes and for the folders named after them."""
    if not renamed:
      return self
    other = _Examples(())
    for path in self.order:
      size, name = self.found[path]
      folder, slash, rest = path.partition("/")
      path = f"{renamed[name]}{slash}{rest}" if slash and folder == name and name in renamed else path
      other.order.append(path)
      other.found[path] = size, renamed.get(name, name)
    return other


def _renamed(old: Mapping, new: Mapping, before: list[_Examples], after: list[_Examples]) -> dict[str, str]:
  """{old name: new name} of classes with the very same images under another name, each the only one that fits.

  The images of all splits count together, because a split that is drawn changes with the names.
  """
  gone = [name for name in old["class_names"] if name not in set(new["class_names"])]
  fresh = [name for name in new["class_names"] if name not in set(old["class_names"])]
  if not (gone and fresh and before and after) or max(len(gone), len(fresh)) > 100:
    return {}

  def images_of(name: str, parts: list[_Examples]) -> list[tuple[str, str]]:
    return sorted(image for part in parts for image in part.of_class(_line(name)))

  images = {name: images_of(name, after) for name in fresh}
  found = {}
  for name in gone:
    own = images_of(name, before)
    alike = [other for other in fresh if images[other] == own]
    if len(alike) == 1 and alike[0] not in found.values():
      found[name] = alike[0]
  return found


def _line(name: str) -> str:
  """A class name as it is written in example lines."""
  return name.replace("\\", r"\\").replace("\t", r"\t").replace("\n", r"\n").replace("\r", r"\r")


def of_classes(old: list[str], new: list[str], renamed: Mapping[str, str] = MappingProxyType({})) -> list[str]:
  """A line for each kind of difference of two lists of classes; `renamed` are those that only have another name."""
  lines = [f"class {name!r} is now called {other!r}" for name, other in list(renamed.items())[:_NAMED]]
  if len(renamed) > _NAMED:
    lines.append(f"and {len(renamed) - _NAMED} more classes have another name")
  for names, others, verb in ((old, new, "gone"), (new, old, "new")):
    only = [name for name in names if name not in set(others) and name not in {*renamed, *renamed.values()}]
    if only:
      are = "1 class is" if len(only) == 1 else f"{len(only):,} classes are"
      lines.append(f"{are} {verb}: {_first(only)}")
  called = [renamed.get(name, name) for name in old]
  if called != new and sorted(called) == sorted(new):
    index = next(k for k, (a, b) in enumerate(zip(called, new, strict=True)) if a != b)
    lines.append(f"the classes are in another order: class {index} was {called[index]!r} and is {new[index]!r}")
  return lines


def _moved(before: Mapping[str, _Examples], after: Mapping[str, _Examples]) -> dict[str, tuple[str, str]]:
  """{path: (old split, new split)} of the images that moved from one split to another."""
  def only(ones: Mapping[str, _Examples], others: Mapping[str, _Examples]) -> dict[str, str]:
    return {path: split for split, part in ones.items() for path in part.order
            if split not in others or path not in others[split].found}

  gone, come = only(before, after), only(after, before)
  return {path: (split, come[path]) for path, split in gone.items() if path in come and come[path] != split}


def _of_split(title: str, old: _Examples, new: _Examples, moved: Mapping[str, tuple]) -> list[str]:
  lines = []
  for one, other, verb in ((old, new, "removed"), (new, old, "added")):
    if only := [path for path in one.order if path not in other.found and path not in moved]:
      lines.append(f"{_count(only, title)} {verb}: {_first(only)}")
  both = [path for path in old.order if path in new.found]
  if others := [path for path in both if old.found[path][1] != new.found[path][1]]:
    (_, was), (_, now) = old.found[others[0]], new.found[others[0]]
    lines.append(f"{_count(others, title)} of another class: {_first(others)}; the first was {was!r} and is {now!r}")
  if sizes := [path for path in both if old.found[path][0] != new.found[path][0]]:
    lines.append(f"{_count(sizes, title)} replaced by other bytes: {_first(sizes)}")
  if not lines and not moved and old.order != new.order:
    index = next(k for k, (a, b) in enumerate(zip(old.order, new.order, strict=False)) if a != b)
    lines.append(f"the {title} images are in another order: image {index} was {old.order[index]!r} and is "
                 f"{new.order[index]!r}")
  return lines


def _count(paths: list, title: str) -> str:
  return f"1 {title} image is" if len(paths) == 1 else f"{len(paths):,} {title} images are"


def _first(names: list[str]) -> str:
  more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
  return ", ".join(map(repr, names[:_NAMED])) + more


def _packed(lines: list[str]) -> str:
  text = "\n".join(lines).encode("utf-8", "surrogateescape")
  return base64.b85encode(zlib.compress(text, 6)).decode()


def _unpacked(text: str) -> list[str]:
  lines = zlib.decompress(base64.b85decode(text)).decode("utf-8", "surrogateescape")
  return lines.split("\n") if lines else []
