"""A checkpoint of another model is refused, with the arrays in which it differs, before anything is read."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltjax.errors import WorkdirError
from ltjax.stage import TrainState
from ltjax.workdir.checkpoint import Checkpoints, check_fit
from tests import tiny


@functools.cache
def shapes(classes: int = 10, depth: int = 8) -> TrainState:
  """The state of a CIFAR ResNet, without values."""
  config = tiny.config("ce_digits", backbone=dict(name="ResNetCIFAR", depth=depth, widths=(4, 4, 8)))
  data = tiny.dataset(config)._replace(class_names=tuple(map(str, range(classes))))
  return tiny.stages(config, data)["representation"].like


def items(state: TrainState) -> dict:
  return dict(model=dict(params=state.params, batch_stats=state.batch_stats))


def without(tree: dict, name: str) -> dict:
  return {key: without(value, name) if isinstance(value, dict) else value for key, value in tree.items() if key != name}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A ResNet-32's checkpoint for 10 classes."""
  found = tmp_path_factory.mktemp("fit")
  zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes(depth=32))
  with Checkpoints(found) as checkpoints:
    checkpoints.save(zeros, wait=True)
  return found / "0"


CASES = dict(
    classes=(lambda: items(shapes(classes=100, depth=32)), [
        "params/head/kernel is float32[8,10], expected float32[8,100]"]),
    deeper=(lambda: items(shapes(depth=56)), ["is absent, expected float32[", "; and ", " more;"]),
    shallower=(lambda: items(shapes(depth=8)), [", expected absent", "; and ", " more;"]),
    no_norm=(lambda: without(items(shapes(depth=32)), "stem_norm"), [
        "batch_stats/backbone/stem_norm/mean is float32[4], expected absent",
        "params/backbone/stem_norm/scale is float32[4], expected absent"]),
    half=(lambda: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), items(shapes(depth=32))), [
        "is float32[4], expected bfloat16[4]", " more;"]))


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_of_another_model_is_refused(folder, case):
  make, words = CASES[case]
  with pytest.raises(WorkdirError, match="does not fit the config's model") as info:
    check_fit(make(), folder)
  for part in (*words, str(folder), "give another --workdir, or move it away"):
    assert part in str(info.value), str(info.value)
  assert "\n" not in str(info.value) and len(str(info.value)) < 700


def test_a_checkpoint_that_fits_is_accepted(folder):
  check_fit(items(shapes(depth=32)), folder)
