"""Runs small enough for a test: real digits, a network of a few hundred parameters, a handful of steps."""

import importlib
import json
import pathlib

import jax
import numpy as np

from ltjax import main


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


def log(workdir: pathlib.Path, stage: str) -> list[dict]:
  return [json.loads(line) for line in (workdir / stage / "metrics.jsonl").read_text().splitlines()]


def assert_trees_equal(a, b) -> None:
  """The same structure, the same bits."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for (path, left), right in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(np.asarray(left), np.asarray(right), err_msg=jax.tree_util.keystr(path))
