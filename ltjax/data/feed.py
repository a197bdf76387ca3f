"""What a stage learns from and is tested on, whichever of the two data paths brings it to the devices."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ltjax import evaluate
from ltjax.data import resident
from ltjax.data.order import Order
from ltjax.data.pipeline import Pipeline, RandomCrops
from ltjax.distributed import sharding
from ltjax.errors import ConfigError


class Feed(NamedTuple):
  """The training images of a stage."""

  batch: Callable[[int], Any]  # step -> this process's part of its batch, on the host
  read: Callable  # (train or test, batch) -> images and labels, inside jit
  train: dict[str, np.ndarray]  # what lives on the devices during training


def make(config, stage: str, dataset, order: Order, mesh) -> Feed:
  """The feed of `stage`; reads no image yet."""
  rows = sharding.local_rows(mesh, config[stage].batch_size)
  if not streamed(config):
    return Feed(lambda step: order.batch(step)[rows], resident.gather, resident.arrays(dataset, "train"))
  (images, labels), size, crop = dataset.train, config.augment.get("size", 0), None
  if not isinstance(images, np.ndarray):
    crop = RandomCrops(size, config.seed, stage, order.batch(0).size)
  batches = Pipeline(images, labels, order.batch, order.steps, crop=crop, rows=rows)
  return Feed(batches.batch, resident.received, resident.constants(dataset))


def evaluator(config, model, dataset, split: str, mesh) -> evaluate.Evaluator:
  """What counts the predictions of `model` on the `split` of `dataset`, "test" or "held_out"."""
  stream = evaluate.stream(*getattr(dataset, split), batch_size=config.eval_batch_size, mesh=mesh,
                           size=config.augment.get("size", 0)) if streamed(config) else None
  data = resident.constants(dataset) if stream else resident.arrays(dataset, split)
  return evaluate.Evaluator(model, sharding.replicate(data, mesh), len(dataset.class_counts),
                            batch_size=config.eval_batch_size, mesh=mesh, stream=stream)


def streamed(config) -> bool:
  """Whether batches come from tf.data."""
  return config.dataset.get("pipeline", "resident") == "tf_data"


def image_shape(config, dataset) -> tuple[int, int, int, int]:
  """[1 h w c]: what the network is initialised with."""
  images, size = dataset.train[0], config.augment.get("size", 0)
  return images[:1].shape if isinstance(images, np.ndarray) else (1, size, size, 3)


def check(config, dataset) -> None:
  """Raises where the config's data path or augmentation is not for images such as the data set's."""
  arrays, cut = isinstance(dataset.train[0], np.ndarray), "crop" in config.augment
  name = config.dataset.name
  if arrays and cut:
    raise ConfigError(f"augment.crop: {config.augment.crop!r} cuts photographs, but {name!r} has images of one size; "
                      "write augment=dict(crop_padding=4, flip=True)")
  if not arrays and not cut:
    raise ConfigError(f"augment: the photographs of {name!r} are of many sizes; write "
                      "augment=dict(crop='random_resized', size=224, flip=True, jitter=0)")
  if not arrays and not streamed(config):
    raise ConfigError(f"dataset.pipeline: the photographs of {name!r} are too many to be resident; write 'tf_data'")
