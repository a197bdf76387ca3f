"""What this machine decodes: measured, to be compared with what a host of the topology must."""

import importlib.resources
import time

import numpy as np

from ltjax.data import decode
from ltjax.data.files import Paths
from ltjax.data.pipeline import Pipeline, RandomCrops

_PHOTOGRAPHS = ("china.jpg", "flower.jpg")  # scikit-learn's, 640 x 427
_BATCH = 64


def measured(size: int, seconds: float = 2.0) -> tuple[float, int]:
  """(images a second of the training pipeline with crops of `size`, cores) on this machine."""
  with importlib.resources.as_file(importlib.resources.files("sklearn.datasets.images")) as folder:
    images = Paths(str(folder), _PHOTOGRAPHS)
    places = np.arange(_BATCH) % len(_PHOTOGRAPHS)
    pipeline = Pipeline(images, np.zeros(len(_PHOTOGRAPHS), np.int32), lambda step: places, 10**6,
                        crop=RandomCrops(size, 0, "plan", _BATCH))
    for step in range(3):  # buffers and threads are there from then on
      pipeline.batch(step)
    began, step = time.perf_counter(), 3
    while time.perf_counter() - began < seconds:
      pipeline.batch(step)
      step += 1
    return (step - 3) * _BATCH / (time.perf_counter() - began), decode.cores()
