"""Runs small enough for a test: real digits, a network of a few hundred parameters, a handful of steps."""

import importlib
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import flax.linen as nn
import jax
import numpy as np

from ltjax import main, models, train
from ltjax import step as steps
from ltjax.config import bind as build
from ltjax.data import resident
from ltjax.models import heads


def config(name: str = "gcl_digits", *, epochs: int = 2, **overrides):
  """A shipped digits config shrunk to `epochs` epochs a stage; `overrides` are flat, with __ for the dot."""
  found = importlib.import_module(f"configs.{name}").get_config()
  found.backbone.depth = 8
  found.backbone.widths = (4, 4, 8)
  found.dataset.imbalance = 5.0
  found.log_every_steps, found.eval_every_epochs, found.checkpoint_every_epochs = 3, 1, 1
  for stage in found.stages:
    found[stage].epochs = epochs
    found[stage].batch_size = 128
  with found.unlocked():
    found.update_from_flattened_dict({key.replace("__", "."): value for key, value in overrides.items()})
  return found


def run(config, workdir: pathlib.Path, *, stop_after: int | None = None) -> dict:
  """`main.run`; with `stop_after`, asked to stop after that many training steps of this call."""
  calls = iter(range(10**9))
  return main.run(config, workdir, (lambda: False) if stop_after is None else lambda: next(calls) + 1 >= stop_after)


class OneConv(nn.Module):
  """A backbone that compiles in a moment, for tests of the loop rather than of the network."""

  @nn.compact
  def __call__(self, images, *, train):
    maps = nn.Conv(4, (3, 3), strides=2, name="conv")(images)
    return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(maps))


def one_conv(config=None, class_counts=(1,) * 10, stage: str = "") -> models.Classifier:
  """Stands in for `build.model`."""
  del config, stage
  num_classes = 2 if class_counts is None else len(class_counts)
  return models.Classifier(backbone=OneConv(), head=heads.Cosine(num_classes=num_classes))


class Parts(NamedTuple):
  """One stage of a config before it starts to loop: what `train.prepare` makes, and the step before it is compiled."""

  stage: train.Stage
  model: models.Classifier
  factors: Any
  tx: Any
  load: Callable
  train_step: Callable

  def state(self) -> steps.TrainState:
    return self.stage.make_state(self.stage.init())


def parts(config, name: str, model: Callable = build.model) -> Parts:
  dataset, block = build.dataset(config)(), config[name]
  with mock.patch.object(build, "model", model):
    stage, model = train.prepare(config, name, dataset), build.model(config, dataset.class_counts, name)
    _, _, tx, factors = train.state_makers(config, name, dataset.class_counts, dataset.train[0][:1].shape)
  load = resident.make_load(**config.augment, mixup=block.mixup)
  train_step = steps.make_train_step(model, tx, factors, stage.objective, load, batch_norm=block.batch_norm,
                                     on_nonfinite=config.on_nonfinite)
  return Parts(stage, model, factors, tx, load, train_step)


def saved_steps(workdir: pathlib.Path, stage: str) -> list[int]:
  """The committed steps of `stage`, found without opening the folder, which would tidy it."""
  return sorted(int(path.name) for path in (workdir / stage / "checkpoints").glob("*") if path.name.isdigit())


def log(workdir: pathlib.Path, stage: str) -> list[dict]:
  return [json.loads(line) for line in (workdir / stage / "metrics.jsonl").read_text().splitlines()]


def assert_trees_equal(a, b) -> None:
  """The same structure, the same bits."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for (path, left), right in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(np.asarray(left), np.asarray(right), err_msg=jax.tree_util.keystr(path))
