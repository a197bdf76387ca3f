"""Where a classifier looks: class activation maps of a trained model, and CAMC's calibrated ones beside them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from ltjax.data import evaluate, feed
from ltjax.models.camc import class_activation_maps

NAMES = ("class activation map", "calibrated")
_COARSE = 3  # a map of fewer places a side says nothing of where the network looks


class Activations(NamedTuple):
  """Images and what of each speaks for its class.

  `images` are uint8 [n h w c], `labels` and `predictions` int [n]; `maps` are float32 [n h' w'] by name, "class
  activation map" and, for CAMC, "calibrated" after it.
  """

  images: np.ndarray
  labels: np.ndarray
  predictions: np.ndarray
  maps: dict[str, np.ndarray]


def activations(model, variables: dict, images: np.ndarray, labels: np.ndarray, prepare=feed.plain, *,
                mean, std) -> Activations | None:
  """The activation maps of `labels` in `images`, for a head with class vectors; None without them, or without maps.

  <w_y, F(x, y)>, and for CAMC a_y(x, y) <w_y, F(x, y)> where y is in the tail

  Args:
    model: a `models.Classifier`.
    variables: its {"params", "batch_stats"}.
    images: uint8 [n h w c], of any size that the backbone takes.
    labels: int [n], the classes that are looked for.
    prepare: (images, mean, std) -> normalised images.
    mean: of each channel, for images in [0, 1].
    std: likewise.
  """
  seen = looker(model, prepare, mean=mean, std=std)(jax.device_get(variables), images, labels)
  if seen is None:
    return None
  predictions, maps = jax.device_get(seen)
  return Activations(images, labels, predictions, dict(zip(NAMES, maps, strict=False)))


def looker(model, prepare=feed.plain, *, mean, std) -> Callable:
  """look(variables, images, labels) -> (predictions [n], the maps of `activations` [n h' w'] in a list), or None.

  It is compiled, and used by each process alone, as these are few images. The arguments are those of `activations`.
  """

  @jax.jit
  def look(variables, images, labels):
    kernel = variables["params"].get("head", {}).get("kernel")
    pixels = prepare(images, jnp.float32(mean), jnp.float32(std))
    maps, (logits, _) = model.apply(variables, pixels, method="maps"), model.apply(variables, pixels, train=False)
    if maps.ndim != 4 or kernel is None or kernel.shape[0] != maps.shape[-1]:  # features of a class token have no maps
      return None
    params, rows = variables["params"]["head"], jnp.arange(len(images))
    found = [class_activation_maps(maps, params["kernel"])]
    if hasattr(model.head, "reinforcement"):
      found.append(found[0].at[..., model.head.tail].multiply(model.head.reinforcement(params, maps)))
    return jnp.argmax(logits, axis=-1), [value[rows, :, :, labels] for value in found]

  return look


def has_maps(stage, variables: dict) -> bool:
  """Whether a stage's model has maps of 3 places a side at least; smaller ones would show nothing."""
  maps = jax.eval_shape(lambda: stage.model.apply(variables, jnp.zeros(stage.image_shape), method="maps"))
  return maps.ndim == 4 and min(maps.shape[1:3]) >= _COARSE


def overlay(image: np.ndarray, heat: np.ndarray) -> Image.Image:
  """An image, uint8 [h w 3], with a map [h' w'] over it, from its smallest value, dark, to its largest, bright."""
  import matplotlib

  span = float(np.ptp(heat)) or 1.0
  small = Image.fromarray(np.uint8(np.rint(255 * (heat - heat.min()) / span)))
  large = np.asarray(small.resize(image.shape[1::-1], Image.BILINEAR))
  colours = matplotlib.colormaps["inferno"](large)[..., :3] * 255
  return Image.fromarray(np.uint8(np.rint(0.45 * image + 0.55 * colours)))


def of_stage(stage, variables: dict, number: int = 6) -> Activations | None:
  """`activations` of a stage's model in a test image of each of the smallest classes, the smallest first.

  None where there are no maps, or maps of fewer than 3 places a side, which would show nothing.
  """
  dataset = stage.dataset
  if dataset.holds_features:  # there is no image to lay the maps on
    return None
  images, labels = dataset.test
  order = [c for c in np.argsort(stage.class_counts, kind="stable") if (labels == c).any()][:number]
  places = np.array([np.flatnonzero(labels == c)[0] for c in order])
  if not has_maps(stage, variables):
    return None
  return activations(stage.model, variables, evaluate.pixels(images, places, stage.augmentation), labels[places],
                     stage.augmentation.one_view.evaluate, mean=dataset.mean, std=dataset.std)
