"""The only module that knows Orbax: save, restore, and the bridge from one stage to the next.

A checkpoint has two items: `model` (parameters and BatchNorm statistics), which the next stage reads, and `training`
(step, optimiser and the log's open window), which only its own stage reads.
"""

import pathlib

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from ltjax.errors import WorkdirError
from ltjax.step import TrainState

KEEP = 2


class Checkpoints:
  """The checkpoints of one stage, in `folder`; saves in the background and keeps the last two."""

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    self._manager = ocp.CheckpointManager(folder.absolute(), options=ocp.CheckpointManagerOptions(
        preservation_policy=preservation_policy.LatestN(KEEP), cleanup_tmp_directories=True))

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self._manager.close()

  def latest(self) -> int | None:
    """The newest committed step."""
    return self._manager.latest_step()

  def save(self, state: TrainState, *, wait: bool = False) -> None:
    """Saves `state` under its step, unless that step is there; the write goes on in the background unless `wait`."""
    step = int(jax.device_get(state.step))
    if step != self.latest():
      model, training = _items(state)
      with jax.transfer_guard("allow"):  # copying the state to the host is what a save is
        self._manager.save(step, args=ocp.args.Composite(
            model=ocp.args.StandardSave(model), training=ocp.args.StandardSave(training)))
    if wait:
      self._manager.wait_until_finished()

  def restore(self, like: TrainState) -> TrainState:
    """The newest state, with the shapes, types and shardings of `like`, which need not hold arrays."""
    model, training = _items(like)
    found = self._restore(model=model, training=training)
    return like.replace(**found.model, **found.training)

  def restore_model(self, like: TrainState) -> dict:
    """The newest parameters and BatchNorm statistics: {"params": ..., "batch_stats": ...}."""
    return self._restore(model=_items(like)[0]).model

  def _restore(self, **items):
    try:
      return self._manager.restore(self.latest(), args=ocp.args.Composite(
          **{name: ocp.args.StandardRestore(item) for name, item in items.items()}))
    except (ValueError, KeyError, OSError) as error:
      raise WorkdirError(f"{self._folder}/{self.latest()}: the checkpoint could not be read or does not fit the "
                         f"config's model ({str(error)[:300]}); give another --workdir, or move it away") from error


def _items(state: TrainState) -> tuple[dict, dict]:
  model = dict(params=state.params, batch_stats=state.batch_stats)
  return model, dict(step=state.step, opt_state=state.opt_state, window=state.window)
