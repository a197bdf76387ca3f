"""Test images that say most of a model's faults, small enough to stand in a page."""

import base64
import io
from typing import NamedTuple

import numpy as np
from PIL import Image

from ltjax.data import evaluate
from ltjax.report.names import shown
from ltjax.report.tables import confused_pairs

_PAIRS, _WRONG, _SIDE = 12, 8, 96


class Example(NamedTuple):
  """An image as a data address, its words, and whether its pixels are so few that they are shown as squares."""

  source: str
  title: str
  true: str
  predicted: str
  confidence: float
  true_probability: float
  pixelated: bool


class Pair(NamedTuple):
  """Two classes of which one is taken for the other: how often, and an image of each."""

  true: str
  predicted: str
  images: int
  share: float
  example: Example | None
  other: Example | None


class Examples(NamedTuple):
  """What the page shows: the most confused pairs, the least probable true classes, the surest wrong predictions."""

  pairs: list[Pair]
  worst: list[Example]
  surest: list[Example]


def of_stage(stage, confusion: np.ndarray, seen) -> Examples:
  """The examples of a stage's test set; `seen` are its `predictions.Predictions`."""
  names = [shown(name, "json") for name in stage.dataset.class_names]
  wrong = np.flatnonzero(~seen.right)
  surest = wrong[np.argsort(-seen.confidence[wrong], kind="stable")][:_WRONG]
  worst = wrong[np.argsort(seen.true_probability[wrong], kind="stable")]
  worst = worst[~np.isin(worst, surest)][:_WRONG]  # no image twice
  pairs = confused_pairs(confusion)[:_PAIRS]
  places = [_of_pair(seen, true, predicted) for true, predicted, _ in pairs]
  wanted = sorted({int(place) for place in (*surest, *worst, *(place for both in places for place in both))
                   if place >= 0})
  pictures = dict(zip(wanted, _pictures(stage, np.array(wanted, int)), strict=True))

  def example(place: int) -> Example | None:
    if pictures.get(int(place)) is None:
      return None
    source, pixelated = pictures[int(place)]
    title = "/".join(image_name(stage.dataset.test[0], int(place)).split("/")[-2:])  # what tells images apart
    return Example(source, title, names[seen.labels[place]],
                   names[seen.predicted[place]], float(seen.confidence[place]), float(seen.true_probability[place]),
                   pixelated)

  totals = confusion.sum(axis=1)
  return Examples(
      [Pair(names[true], names[predicted], count, count / totals[true], *map(example, both))
       for (true, predicted, count), both in zip(pairs, places, strict=True)],
      [found for place in worst if (found := example(place))], [found for place in surest if (found := example(place))])


def image_name(images, place: int) -> str:
  """What a test image is called, on one line: its path, or its number in an array."""
  return f"test image {place}" if isinstance(images, np.ndarray) else shown(images.name(place), "json")


def _of_pair(seen, true: int, predicted: int) -> tuple[int, int]:
  """(the image of `true` that is most surely taken for `predicted`, the surest image of that class); -1: none."""
  taken = np.flatnonzero((seen.labels == true) & (seen.predicted == predicted))
  own = np.flatnonzero((seen.labels == predicted) & seen.right)
  own = own if len(own) else np.flatnonzero(seen.labels == predicted)
  return tuple(int(places[np.argmax(seen.confidence[places])]) if len(places) else -1 for places in (taken, own))


def _pictures(stage, places: np.ndarray) -> list[tuple[str, bool] | None]:
  """(data address, whether it is smaller than it is shown) of test images; None for those that are no pictures."""
  if not len(places):
    return []
  found = []
  for pixels in evaluate.pixels(stage.dataset.test[0], places, stage.augmentation):
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3):
      found.append(None)
      continue
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    image.thumbnail((_SIDE, _SIDE))
    data, small = io.BytesIO(), max(image.size) < _SIDE // 2
    kind = "png" if small else "jpeg"  # JPEG blurs few pixels
    image.save(data, kind.upper())
    found.append((f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}", small))
  return found
