"""A run's model as one function of images, with everything inside that lies between pixels and probabilities."""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ltjax.data import evaluate
from ltjax.errors import ConfigError
from ltjax.report.readout import Readout


class Model(NamedTuple):
  """What is exported.

  Attributes:
    run: (variables, uint8 images [b h w c]) -> float32 probabilities [b classes]; b may be a symbol.
    variables: {"params", "batch_stats"}, on the host.
    shape: (h, w, c) of an image.
    class_names: in the order of the probabilities.
  """

  run: Callable
  variables: dict
  shape: tuple[int, int, int]
  class_names: tuple[str, ...]

  def __call__(self, images) -> np.ndarray:
    """The probabilities of images, [b classes], on the host."""
    return np.asarray(jax.jit(self.run)(self.variables, images))


def of_stage(stage, variables: dict, readout: Readout) -> Model:
  """The model of a finished stage.

  An image file must come as the square that a test sees of it; an array comes as it is and is resized inside. Where
  the run's test averages five crops of a file, the exported model sees the one in the middle.
  """
  augmentation, dataset = stage.augmentation, stage.dataset
  if dataset.holds_files:
    augmentation = augmentation.one_view
  mean, std = np.float32(dataset.mean), np.float32(dataset.std)

  def run(variables, images):
    found = evaluate.outputs(stage.model, variables, augmentation.evaluate(images, mean, std))
    return readout(found["features"], found["logits"]).astype(jnp.float32)

  shape = (augmentation.size, augmentation.size, 3) if dataset.holds_files else dataset.train[0].shape[1:]
  return Model(run, jax.device_get(variables), tuple(map(int, shape)), dataset.class_names)


def check_images(stage, workdir: pathlib.Path) -> None:
  """Raises where a run takes no images but features that something else has computed."""
  if stage.dataset.holds_features:
    raise ConfigError(f"{workdir}: the run was trained on a file of features, not on images, so its model takes none; "
                      "give a run that was trained on images: one with --config.pretrained=WEIGHTS computes the "
                      "features of a frozen backbone by itself")
