"""The GCL recipes for large image data sets, end to end: official class counts, tiny images, three steps a stage."""

import importlib
import os

import numpy as np
import pytest

from ltjax import recipes
from ltjax.data.official import OFFICIAL
from tests import photographs, tiny


def write(folder, name: str) -> int:
  """Writes lists and images of data set `name`, one to three per class; returns the number of training images."""
  official, folder = OFFICIAL[name], folder / "images"
  folder.mkdir()
  originals = []
  for number in range(8):
    originals.append(folder / f"{number}.jpg")
    originals[-1].write_bytes(photographs.jpeg(number, 20 + number))
  labels = np.repeat(np.arange(official.classes), np.where(np.arange(official.classes) % 50, 1, 3))
  for role, known in official.lists.items():
    lines = []
    for place, label in enumerate(labels.tolist() if role == "train" else range(0, official.classes, 7)):
      path = f"{role}_{label}_{place}.jpg"
      os.link(originals[label % 8], folder / path)
      lines.append(f"{path} {label}\n")
    (folder.parent / f"{known.name}.txt").write_text("".join(lines))
  return len(labels)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("name", ["gcl_imagenet_lt", "gcl_places_lt", "gcl_inat"])
def test_three_steps_of_each_stage(name, tmp_path):
  config = importlib.import_module(f"configs.{name}").get_config("resnet10")
  images = write(tmp_path, config.dataset.name)
  config.dataset.lists, config.dataset.root = str(tmp_path), str(tmp_path / "images")
  config.augment, config.log_every_steps = recipes.crop_flip(16), 1
  # Places-LT's recipe trains some layers of a ResNet; the others take a network that compiles faster.
  resnet = dict(name="ResNet", depth=10, width=4, bn_groups=1)
  with config.unlocked(), config.ignore_type():
    config.backbone = tiny.ONE_CONV if config.representation.train == (".*",) else resnet
  for stage in config.stages:
    config[stage].epochs, config[stage].batch_size = 1, images // 3
  results = tiny.run(config, tmp_path / "run")
  classes = OFFICIAL[config.dataset.name].classes
  assert len(results["data"]["class_counts"]) == classes and results["data"]["train_images"] == images
  assert results["data"]["test_images"] == len(range(0, classes, 7))
  for stage in config.stages:
    losses = [line["loss"] for line in tiny.log(tmp_path / "run", stage) if "loss" in line]
    assert len(losses) == results["stages"][stage]["steps"] == 3
    assert np.isfinite(losses).all()
  assert (tmp_path / "run" / "report" / "README.md").is_file()
