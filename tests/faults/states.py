"""A state of a megabyte, as a stage has it, whose values follow from its step; no model and no data."""

import jax
import numpy as np

from ltjax.step import TrainState, init_window


def state(step: int) -> TrainState:
  """The state of that step, as NumPy arrays."""
  rng = np.random.default_rng(step)

  def draw(*shape):
    return rng.normal(size=shape).astype(np.float32)

  return TrainState(
      step=np.int32(step), params=dict(backbone=dict(kernel=draw(256, 256), scale=draw(64)), head=draw(128, 100)),
      batch_stats=dict(mean=draw(64), var=draw(64)), opt_state=(dict(kernel=draw(256, 256)), draw(128, 400)),
      loss_state=dict(seen_counts=draw(100)), ema=None, window=init_window())


LIKE = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state(0))


def assert_is(found: TrainState, step: int) -> None:
  """`found` is the state of `step`, bit by bit."""
  wanted = state(step)
  assert jax.tree.structure(found) == jax.tree.structure(wanted)
  for (path, left), right in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
    left, right = np.asarray(left), np.asarray(right)
    assert left.dtype == right.dtype and left.tobytes() == right.tobytes(), jax.tree_util.keystr(path)
