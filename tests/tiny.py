"""Runs small enough for a test: real digits, a network of a few hundred parameters, a handful of steps."""

import contextlib
import importlib
import json
import pathlib
from unittest import mock

import flax.linen as nn
import jax
import numpy as np

from ltjax import main, stage
from ltjax.config import parse
from ltjax.data import extract
from ltjax.data.sources import Dataset
from ltjax.workdir.checkpoint import Checkpoints


class OneConv(nn.Module):
  """A backbone that compiles in a moment, for tests of the loop rather than of the network."""

  @nn.compact
  def __call__(self, images, *, train):
    maps = nn.Conv(4, (3, 3), strides=2, name="conv")(images)
    return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(maps))


ONE_CONV = dict(name="tests.tiny:OneConv")


def config(name: str = "gcl_digits", *, epochs: int = 2, backbone: dict | None = None, **overrides):
  """A shipped digits config shrunk to `epochs` epochs per stage.

  Args:
    name: the name of the config file.
    epochs: the epochs of each stage.
    backbone: its block, instead of a ResNet-8 with a few channels; `ONE_CONV` is the fastest.
    **overrides: values by their path, with __ for the dot; a dict replaces the complete block.
  """
  found = importlib.import_module(f"configs.{name}").get_config()
  found.dataset.imbalance = 5.0
  found.log_every_steps, found.eval_every_epochs, found.checkpoint_every_epochs = 3, 1, 1
  for each in found.stages:
    found[each].epochs, found[each].batch_size = epochs, 128
  with found.unlocked():
    found.backbone = backbone or dict(name="ResNetCIFAR", depth=8, widths=(4, 4, 8))
    for path, value in overrides.items():
      *parents, key = path.split("__")
      block = found
      for parent in parents:
        block = block[parent]
      with block.ignore_type():
        block[key] = value
  return found


def dataset(config) -> Dataset:
  """The data set of a config."""
  return parse(config).read()[0]


def stages(config, data: Dataset | None = None) -> dict[str, stage.Stage]:
  """{name: stage} of a config."""
  return {each.name: each for each in stage.build(config, data or dataset(config))}


def run(config, workdir: pathlib.Path, *, stop_after: int | None = None) -> dict:
  """`main.run`; `stop_after` stops it after that number of training steps of this call."""
  calls = iter(range(10**9))
  return main.run(config, workdir, (lambda: False) if stop_after is None else lambda: next(calls) + 1 >= stop_after)


def features(path: pathlib.Path, *, imbalance: float = 5.0, views: int = 0, float16: bool = False, maps: bool = False,
             **overrides) -> tuple[stage.Stage, dict]:
  """Writes features of the digits to a file; returns the stage and the variables that made them."""
  made = stages(config("ce_digits", backbone=ONE_CONV, dataset__imbalance=imbalance, **overrides))["representation"]
  variables = made.init()
  assert extract.extract(made, variables, path, extract.describe(
      made, variables, views=views, float16=float16, maps=maps))
  return made, variables


@contextlib.contextmanager
def shared_compilations():
  """Compiles the functions of equal stages once; all other parts of a stage are still built anew for each run.

  So a resumed run need neither trace nor compile, but it does restore its own state and take its own batches.
  """
  built, train_steps, evaluators, kept = stage.Stage.__init__, stage.Stage.train_steps, stage.Stage.evaluators, {}

  def init(self, spec, run, dataset, mesh):
    built(self, spec, run, dataset, mesh)
    self.key = run.config.to_json(), spec.name

  def shared(made):
    def get(self):
      if (made.attrname, self.key) not in kept:
        kept[made.attrname, self.key] = made.func(self)
      return kept[made.attrname, self.key]

    return property(get)

  with mock.patch.multiple(stage.Stage, __init__=init, train_steps=shared(train_steps),
                           evaluators=shared(evaluators)):
    yield


def saved(made: stage.Stage, workdir: pathlib.Path) -> stage.TrainState:
  """The newest state that a stage has saved, on the host."""
  with Checkpoints(workdir / made.name / "checkpoints") as checkpoints:
    return jax.device_get(checkpoints.restore(made.like))


def saved_steps(workdir: pathlib.Path, stage: str) -> list[int]:
  """The committed steps of `stage`, found without opening the folder, which would tidy it."""
  return sorted(int(path.name) for path in (workdir / stage / "checkpoints").glob("*") if path.name.isdigit())


def log(workdir: pathlib.Path, stage: str, name: str = "metrics.jsonl") -> list[dict]:
  """The lines of a stage's log."""
  return [json.loads(line) for line in (workdir / stage / name).read_text().splitlines()]


def assert_trees_equal(a, b) -> None:
  """The same structure, the same bits."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for (path, left), right in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(np.asarray(left), np.asarray(right), err_msg=jax.tree_util.keystr(path))
