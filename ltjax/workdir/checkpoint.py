"""Saves and restores the checkpoints of a stage; the only module that knows Orbax.

A checkpoint is a folder named after its step, with two items: `model` (parameters and BatchNorm statistics), which the
next stage reads, and `training` (step, optimiser, running counts and the log's open window), which only its own stage
reads. It is written under a temporary name, hashed and flushed; one rename then gives it its final name. So a folder
named after a step is complete, however the program ended. Only the first process writes and reads; it sends the arrays
to the others.
"""

import dataclasses
import pathlib
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures

import flax.traverse_util
import jax
import numpy as np
import orbax.checkpoint as ocp

from ltjax.distributed import processes, sharding
from ltjax.errors import SaveError, WorkdirError
from ltjax.workdir import durable, log, manifest
from ltjax.workdir import trunk as trunks
from ltjax.workdir.durable import PARTIAL
from ltjax.workdir.trunk import Trunk

DAMAGED = ".damaged"  # suffix of a checkpoint that was set aside
_STEP = "(0|[1-9][0-9]*)"  # a checkpoint's only possible names: 007 and superscripts are not ours


class Checkpoints:
  """The checkpoints of one stage, in `folder`; saves in the background and keeps the last few and the best."""

  def __init__(self, folder: pathlib.Path, *, run: str = "", keep: int = 2, strict: bool = False,
               read_only: bool = False, on_fallback: Callable[[str], None] = lambda message: None,
               trunk: Trunk | None = None):
    """Makes the folder and removes files that a crash left half-written, unless `read_only`.

    Args:
      folder: the stage's folder.
      run: the random name of the run in its identity.json. Every checkpoint holds it, and one with no name or another
        counts as damaged. "" compares nothing: for a run that began before runs had names, and for readers of another
        run's checkpoints.
      keep: the number of newest checkpoints to retain, besides the one with the best score, if any has one.
      strict: stops the run if the newest checkpoint is damaged, instead of falling back to the one before.
      read_only: leaves all files as they are, as a reader must beside a run under way.
      on_fallback: called with the message about each fallback.
      trunk: the frozen parameters that a checkpoint leaves out, and their source.
    """
    self._folder, self._keep, self._strict, self._on_fallback = folder.absolute(), keep, strict, on_fallback
    self._run, self._read_only, self._logs, self._inode = run, read_only, {}, None
    self._trunk, self._note = trunk, {}
    # One thread, so that checkpoints are committed in the order of their steps.
    self._writer, self._pending = futures.ThreadPoolExecutor(1, "checkpoint"), None
    if processes.is_first() and not read_only:
      try:
        durable.make_folder(self._folder)
        self._inode = self._folder.stat().st_ino
        for path in self._folder.iterdir():
          if re.fullmatch(f"{_STEP}{re.escape(PARTIAL)}.*", path.name, re.ASCII) and path.is_dir():
            shutil.rmtree(path)
      except OSError as error:
        raise WorkdirError(f"{error.filename or self._folder} cannot be made or removed ({error.strerror or error}); "
                           "change its owner or mode, or give another --workdir") from error

  def __enter__(self):
    return self

  def __exit__(self, kind, *exception):
    self._writer.shutdown(wait=True)
    if kind is None:
      self.check()

  @property
  def logs(self) -> dict[str, dict]:
    """The marks of the logs in the restored checkpoint, for `Journal`; only the first process knows them."""
    return self._logs

  def steps(self) -> list[int]:
    """The committed steps in ascending order; for the first process only."""
    return sorted(int(path.name) for path in self._folder.glob("*")
                  if re.fullmatch(_STEP, path.name, re.ASCII) and path.is_dir())

  def latest(self) -> int | None:
    """The newest committed step, on every process; None if there is none."""
    return processes.from_first(lambda: max(self.steps(), default=None))

  def save(self, state, *, scores: Mapping[int, float] | None = None, logs: Sequence[log.Journal] = (),
           wait: bool = False) -> None:
    """Saves `state` under its step, unless that step exists; writes in the background unless `wait`.

    Args:
      state: the state.
      scores: {step: accuracy on the held-out images}, if there are any.
      logs: flushed before the checkpoint is committed; it notes how far they go.
      wait: returns when the checkpoint is committed.

    Raises:
      SaveError: the previous save failed, or, with `wait`, this one.
    """
    if not processes.is_first():
      return
    self._join()
    step = int(jax.device_get(state.step))
    if step not in self.steps():
      # A copy: on a CPU, device_get may return the device's own memory, which the next step reuses.
      items = jax.tree.map(np.array, jax.device_get(self._without_trunk(_items(state))))
      marks = {name: mark for each in logs for name, mark in each.mark().items()}
      self._pending = self._writer.submit(self._write, step, items, scores or {}, tuple(logs), marks)
    if wait:
      self._join()

  def _without_trunk(self, items: dict) -> dict:
    if not self._trunk or not self._trunk.omitted:
      return items
    if not self._note:  # they do not change
      omitted = trunks.only(items["model"], self._trunk.omitted)
      self._note = dict(trunk=dict(sha256=manifest.fingerprint(jax.device_get(omitted)), source=self._trunk.source,
                                   paths=list(omitted)))
    return items | dict(model=trunks.without(items["model"], self._trunk.omitted))

  def check(self) -> None:
    """Raises a `SaveError` if the background save has failed."""
    if self._pending and self._pending.done():
      self._join()

  def _join(self) -> None:
    pending, self._pending = self._pending, None
    if pending:
      pending.result()

  def _write(self, step: int, items: dict, scores: Mapping[int, float], logs: Sequence[log.Journal],
             marks: Mapping[str, dict]) -> None:
    partial, name = self._folder / f"{step}{PARTIAL}", self._folder / str(step)
    try:
      self._check_in_place()
      with _orbax() as orbax:
        orbax.save(partial, args=ocp.args.Composite(**{key: ocp.args.StandardSave(item)
                                                       for key, item in items.items()}))
      manifest.write(partial, items, step=step, run=self._run, logs=marks, **self._note)
      # All files before the rename: otherwise a power cut could leave the final name without its data. The logs too: a
      # checkpoint must not count lines that a power cut can still take.
      for path in (*partial.rglob("*"), partial):
        durable.sync(path)
      for each in logs:
        each.flush()
      partial.rename(name)
      durable.sync(self._folder)
    except Exception as error:
      for path in self._folder.glob(f"{step}{PARTIAL}*"):
        shutil.rmtree(path, ignore_errors=True)
      there = self.steps()
      raise SaveError(f"{name}: the checkpoint could not be saved ({_one_line(error)}); "
                      f"{f'that of step {there[-1]} is intact' if there else 'there is none before it'}; make room or "
                      "repair the folder and run the same command again") from error
    self._prune(step, scores)

  def _check_in_place(self) -> None:
    """Raises if the folder is no longer the one that was opened: a run that made it anew would continue elsewhere."""
    if not self._folder.is_dir() or self._folder.stat().st_ino != self._inode:
      raise FileNotFoundError("the work folder was moved or removed during the run")

  def _prune(self, newest: int, scores: Mapping[int, float]) -> None:
    steps = self.steps()
    best = max((step for step in steps if step in scores), key=lambda step: (scores[step], step), default=None)
    for step in steps[:-self._keep]:
      if step != best:
        path = self._folder / str(step)
        try:
          # Renamed first: an interrupted deletion must leave nothing that looks complete.
          shutil.rmtree(path.rename(self._folder / f"{step}{PARTIAL}"))
        except OSError as error:
          raise SaveError(f"{path}: the old checkpoint could not be removed ({_one_line(error)}); that of step "
                          f"{newest} is saved; remove the old one, and run the same command again") from error

  def restore(self, like, upto: int = sys.maxsize):
    """The newest undamaged state, with the shapes, types and shardings of `like`.

    Args:
      like: a state of arrays or of shapes.
      upto: the last step to consider.

    Raises:
      WorkdirError: all are damaged, or with `strict` the newest; or it belongs to another run or another model.
    """
    items = self._restore(_items(like), upto)
    return like.replace(**items["model"], **items["training"])

  def restore_model(self, like: dict) -> dict:
    """The newest {"params", "batch_stats"}, with the shapes, types and shardings of `like`."""
    return self._restore(dict(model=like))["model"]

  def stored_model(self) -> dict:
    """The newest {"params", "batch_stats"} of any network, as NumPy arrays."""

    def read():
      arrays = manifest.read(self._folder / str(self._newest_undamaged(sys.maxsize)))["arrays"]
      like = {tuple(path.split("/")[1:]): _empty(text) for path, text in arrays.items() if path.startswith("model/")}
      tree = dict(params={}, batch_stats={}) | flax.traverse_util.unflatten_dict(like)
      tree["params"].setdefault("backbone", {})  # one without parameters leaves no path, but is stored
      return self._read(dict(model=tree), sys.maxsize)["model"]

    return processes.from_first(read)

  def _restore(self, like: dict, upto: int = sys.maxsize) -> dict:
    leaves, structure = jax.tree.flatten(like)
    # Only the leaves travel: the processes exchange no named tuples, of which optax's states consist.
    restored = processes.from_first(lambda: jax.tree.leaves(self._read(like, upto)))
    assert len(restored) == len(leaves)
    return sharding.replicate(jax.tree.unflatten(structure, restored), sharding.data_mesh())

  def _read(self, like: dict, upto: int) -> dict:
    folder = self._folder / str(self._newest_undamaged(upto))
    content = manifest.read(folder)
    left_out = content.get("trunk") if "model" in like else None
    if left_out:
      like = like | dict(model=trunks.without(like["model"], left_out["paths"]))
    check_fit(like, folder)
    self._logs = content.get("logs", {})
    try:
      with _orbax() as orbax:
        restored = orbax.restore(folder, args=ocp.args.Composite(**{
            key: ocp.args.StandardRestore(jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), item))
            for key, item in like.items()}))
    except Exception as error:
      raise WorkdirError(f"{folder}: the checkpoint could not be read ({_one_line(error)}); "
                         "give another --workdir, or move it away") from error
    for key in like:
      if manifest.fingerprint(restored[key]) != content["values_sha256"][key]:
        raise WorkdirError(f"{folder}: the files of {key} are undamaged, but other values were read than were saved; "
                           "install the versions of orbax-checkpoint and tensorstore that the README names")
    restored = {key: restored[key] for key in like}
    if left_out:
      restored["model"] = trunks.filled(restored["model"], left_out, self._trunk, str(folder))
    return restored

  def _newest_undamaged(self, upto: int) -> int:
    """The newest step whose files are as they were written; warns about each newer one that is damaged."""
    damage = {}
    for step in reversed([step for step in self.steps() if step <= upto]):
      try:
        manifest.verified(self._folder / str(step), step=step, run=self._run)
      except manifest.DamageError as error:
        damage[step] = f"{self._folder / str(step)}: the checkpoint is damaged: {error}"
        if self._strict:
          raise WorkdirError(f"{damage[step]}; without --strict the run goes on from an older one") from error
        continue
      for bad, message in damage.items():
        if not self._read_only:
          self._set_aside(bad)
        message += f"; going on from step {step}"
        print(f"WARNING: {message}", file=sys.stderr)
        self._on_fallback(message)
      return step
    if not damage:
      which = f" of step {upto} or before" if self.steps() else ""
      raise WorkdirError(f"{self._folder}: there is no checkpoint{which}; give another --workdir, or start again")
    raise WorkdirError("; ".join(damage.values()) + "; no other is left: move the folder away to start the stage again")

  def _set_aside(self, step: int) -> None:
    """Renames a damaged checkpoint, so that its step can be saved again."""
    number = len(list(self._folder.glob(f"{step}{DAMAGED}*")))
    (self._folder / str(step)).rename(self._folder / f"{step}{DAMAGED}{number or ''}")


def check_fit(like: dict, folder: pathlib.Path) -> None:
  """Raises a `WorkdirError` that lists the arrays in which the checkpoint in `folder` differs from `like`."""
  stored = {path: text for path, text in manifest.read(folder)["arrays"].items() if path.split("/")[0] in like}
  if different := manifest.differences(manifest.describe(like), stored):
    raise WorkdirError(f"{folder}: the checkpoint does not fit the config's model: {different}; "
                       "give another --workdir, or move it away")


def _empty(description: str) -> np.ndarray:
  """An empty array of the type and shape in a text of `manifest.describe`."""
  dtype, _, shape = description.rstrip("]").partition("[")
  return np.empty([int(size) for size in shape.split(",") if size], dtype)


def _orbax() -> ocp.Checkpointer:
  """An Orbax checkpointer for this process alone: Orbax would otherwise wait for all processes."""
  alone = ocp.options.MultiprocessingOptions(
      primary_host=jax.process_index(), active_processes={jax.process_index()}, barrier_sync_key_prefix="first")
  items = {key: ocp.StandardCheckpointHandler(multiprocessing_options=alone) for key in ("model", "training")}
  return ocp.Checkpointer(ocp.CompositeCheckpointHandler(
      composite_options=ocp.CompositeOptions(multiprocessing_options=alone), **items), multiprocessing_options=alone)


def _one_line(error: Exception) -> str:
  text = " ".join(str(error).split())
  if system := re.search(r"([A-Z][^:]*) \[os_error_code=", text):  # tensorstore's: the cause comes after long names
    return system[1]
  return text.split(". ")[0][:200] or type(error).__name__


def _items(state) -> dict[str, dict]:
  fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
  model = {name: fields.pop(name) for name in ("params", "batch_stats")}
  return dict(model=model, training={name: value for name, value in fields.items() if value is not None})
