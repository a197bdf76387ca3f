"""The train step of a stage, compiled for shapes alone: what afa.py and camc.py count."""

import jax
import numpy as np

from ltjax import stage as stages
from ltjax import step as steps
from ltjax.data.sources import Dataset


def stage(config, name: str, class_counts: np.ndarray, size: int) -> stages.Stage:
  """A stage of `config` on images of `size` pixels that take no memory."""
  labels = np.repeat(np.arange(len(class_counts)), class_counts)
  images = np.broadcast_to(np.uint8(0), (len(labels), size, size, 3))
  names = tuple(map(str, range(len(class_counts))))
  dataset = Dataset((images, labels), (images[:1], labels[:1]), np.arange(len(labels)), names, (0.5,) * 3, (0.25,) * 3)
  return next(made for made in stages.build(config, dataset) if made.name == name)


def compiled(made: stages.Stage, images: int, scalars: dict) -> jax.stages.Compiled:
  """The train step of a stage whose data set has that many images."""
  shape, classes = made.dataset.train[0].shape[1:], len(made.class_counts)
  data = dict(images=((images, *shape), np.uint8), labels=((images,), np.int32), mean=(3, np.float32),
              std=(3, np.float32), class_counts=(classes, np.float32))
  given = {key: jax.ShapeDtypeStruct(size if isinstance(size, tuple) else (size,), kind)
           for key, (size, kind) in data.items()}
  given["key"] = jax.eval_shape(lambda: jax.random.key(0))
  indices = jax.ShapeDtypeStruct((made.spec.batch_size,), np.int32)
  step = steps.make_train_step(made.parts)
  return jax.jit(step, donate_argnums=0).lower(made.like, given, indices, scalars).compile()
