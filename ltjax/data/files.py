"""Encoded images, read one by one wherever they lie. A `Dataset` of photographs holds them in place of arrays."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from etils import epath


class Files(Protocol):
  """n encoded images (JPEG, PNG, ...), read by their place."""

  def __len__(self) -> int:
    """n."""

  def read(self, place: int) -> bytes:
    """The bytes of image `place`; OSError where they cannot be had. Called from many threads."""

  def name(self, place: int) -> str:
    """What a message calls image `place`."""


class Paths:
  """Files of a folder, local or gs://."""

  def __init__(self, root: str, paths: Sequence[str]):
    """`paths` are relative to `root`, with forward slashes."""
    self._root, self._paths = root.rstrip("/"), paths

  def __len__(self) -> int:
    return len(self._paths)

  def read(self, place: int) -> bytes:
    """The bytes of image `place`."""
    return epath.Path(self.name(place)).read_bytes()

  def name(self, place: int) -> str:
    """The full path of image `place`."""
    return f"{self._root}/{self._paths[place]}"

  def take(self, places: Iterable[int]) -> "Paths":
    """The images at `places`, in that order."""
    return Paths(self._root, [self._paths[place] for place in places])
