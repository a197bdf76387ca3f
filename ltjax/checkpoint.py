"""The only module that knows Orbax: save, restore, and the bridge from one stage to the next.

A checkpoint has two items: `model` (parameters and BatchNorm statistics), which the next stage reads, and `training`
(step, optimiser, running counts and the log's open window), which only its own stage reads.
"""

import pathlib

import flax.traverse_util
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
        preservation_policy=preservation_policy.LatestN(KEEP), cleanup_tmp_directories=True),
        item_handlers=dict(model=ocp.StandardCheckpointHandler(), training=ocp.StandardCheckpointHandler()))

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

  def restore_model(self, like: dict) -> dict:
    """The newest parameters and BatchNorm statistics: {"params": ..., "batch_stats": ...}, as `like` them."""
    return self._restore(model=like).model

  def _restore(self, **items):
    where = f"{self._folder}/{self.latest()}"
    try:
      stored = _shapes(self._manager.item_metadata(self.latest()).model.tree)
      _check_fit(_shapes(items["model"]), stored, where)
      return self._manager.restore(self.latest(), args=ocp.args.Composite(
          **{name: ocp.args.StandardRestore(item) for name, item in items.items()}))
    except WorkdirError:
      raise
    except Exception as error:  # Orbax raises a bare Exception for a file cut short
      reason = " ".join(str(error).split()).split(". ")[0][:200]
      raise WorkdirError(f"{where}: the checkpoint could not be read ({reason}); "
                         "give another --workdir, or move it away") from error


def _shapes(tree) -> dict[str, tuple]:
  """{"params/head/kernel": (64, 10)} of a nested dict of arrays or of their descriptions."""
  return {path: tuple(leaf.shape) for path, leaf in flax.traverse_util.flatten_dict(tree, sep="/").items()}


def _check_fit(wanted: dict[str, tuple], stored: dict[str, tuple], where: str) -> None:
  """Says what Orbax would say in a paragraph for each array."""
  if different := sorted(path for path in {*wanted, *stored} if wanted.get(path) != stored.get(path)):
    path = different[0]
    raise WorkdirError(f"{where}: the checkpoint does not fit the config's model: {path} is "
                       f"{stored.get(path, 'absent')}, expected {wanted.get(path, 'absent')}"
                       f"{f', and {len(different) - 1} more differ' if different[1:] else ''}; "
                       "give another --workdir, or move it away")


def _items(state: TrainState) -> tuple[dict, dict]:
  model = dict(params=state.params, batch_stats=state.batch_stats)
  return model, dict(step=state.step, opt_state=state.opt_state, seen_counts=state.seen_counts, window=state.window)
