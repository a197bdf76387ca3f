"""The only module that knows Orbax: save, restore, and the bridge from one stage to the next.

A checkpoint is a folder named after its step, with two items: `model` (parameters and BatchNorm statistics), which the
next stage reads, and `training` (step, optimiser, running counts and the log's open window), which only its own stage
reads. It is written under another name, hashed, flushed, and gets its own name last, by one rename: what has a step's
name is whole, whatever ended the program. The first process alone writes and reads; the others are told.
"""

import dataclasses
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Mapping
from concurrent import futures

import flax.traverse_util
import jax
import numpy as np
import orbax.checkpoint as ocp

from ltjax.distributed import processes, sharding
from ltjax.errors import SaveError, WorkdirError, writing
from ltjax.workdir import manifest

PARTIAL, DAMAGED = ".partial", ".damaged"  # ends of names that are no steps


class Checkpoints:
  """The checkpoints of one stage, in `folder`; saves in the background and keeps the last few and the best."""

  def __init__(self, folder: pathlib.Path, *, keep: int = 2, strict: bool = False, read_only: bool = False,
               run: str = "", on_fallback: Callable[[str], None] = lambda message: None):
    """Removes what a crash left half-written, unless `read_only`, as beside a run that is under way.

    Args:
      folder: of the stage.
      keep: how many of the newest are kept, and with them the one with the best score, if any has one.
      strict: a damaged newest checkpoint stops the run, instead of a loud return to the one before.
      read_only: leaves all files as they are.
      run: the identity of the run, which is written into every checkpoint and compared.
      on_fallback: is told of each such return.
    """
    self._run = run
    self._folder, self._keep, self._strict, self._on_fallback = folder.absolute(), keep, strict, on_fallback
    self._read_only, self._writer, self._pending = read_only, futures.ThreadPoolExecutor(1, "checkpoint"), None
    if processes.is_first() and not read_only:
      with writing(self._folder):
        self._folder.mkdir(parents=True, exist_ok=True)
      for partial in self._folder.glob(f"*{PARTIAL}*"):
        if _is_step(partial.name.partition(".")[0]) and partial.is_dir():
          shutil.rmtree(partial)

  def __enter__(self):
    return self

  def __exit__(self, kind, *exception):
    self._writer.shutdown(wait=True)
    if kind is None:
      self.check()

  def steps(self) -> list[int]:
    """The committed steps, the newest last; of the first process, which alone sees them."""
    return sorted(int(path.name) for path in self._folder.glob("*") if _is_step(path.name) and path.is_dir())

  def latest(self) -> int | None:
    """The newest committed step, in every process."""
    return processes.from_first(lambda: max(self.steps(), default=None))

  def save(self, state, *, scores: Mapping[int, float] | None = None, wait: bool = False) -> None:
    """Saves `state` under its step, unless that step is there; the write goes on in the background unless `wait`.

    `scores` are the accuracies on the held-out images, if there are any, at the steps where they were looked at.

    Raises:
      SaveError: this save failed, if it is waited for, or the one before.
    """
    if not processes.is_first():
      return
    self._join()
    step = int(jax.device_get(state.step))
    if step not in self.steps():
      # A copy: what is on a CPU may be lent out, and the next step gives it back for reuse.
      items = jax.tree.map(np.array, jax.device_get(_items(state)))
      self._pending = self._writer.submit(self._write, step, items, scores or {})
    if wait:
      self._join()

  def check(self) -> None:
    """Raises a `SaveError` where the save in the background has failed."""
    if self._pending and self._pending.done():
      self._join()

  def _join(self) -> None:
    pending, self._pending = self._pending, None
    if pending:
      pending.result()

  def _write(self, step: int, items: dict, scores: Mapping[int, float]) -> None:
    partial, name = self._folder / f"{step}{PARTIAL}", self._folder / str(step)
    try:
      if not self._folder.is_dir():
        raise FileNotFoundError("the folder is gone: was the work folder moved or deleted while the run used it?")
      with _orbax() as orbax:
        orbax.save(partial, args=ocp.args.Composite(**{key: ocp.args.StandardSave(item)
                                                       for key, item in items.items()}))
      manifest.write(partial, items, step=step, run=self._run)
      for path in (*partial.rglob("*"), partial):
        _flush(path)
      partial.rename(name)
      _flush(self._folder)
      self._prune(scores)
    except Exception as error:
      for path in self._folder.glob(f"{step}{PARTIAL}*"):
        shutil.rmtree(path, ignore_errors=True)
      there = self.steps()
      raise SaveError(f"{name}: the checkpoint could not be saved ({_one_line(error)}); "
                      f"{f'that of step {there[-1]} is intact' if there else 'there is none before it'}; make room or "
                      "mend the folder and run the same command again") from error

  def _prune(self, scores: Mapping[int, float]) -> None:
    steps = self.steps()
    best = max((step for step in steps if step in scores), key=lambda step: (scores[step], step), default=None)
    for step in steps[:-self._keep]:
      if step != best:
        # Under another name first: a deletion that is cut short leaves nothing that looks whole.
        shutil.rmtree((self._folder / str(step)).rename(self._folder / f"{step}{PARTIAL}"))

  def restore(self, like, upto: int = sys.maxsize):
    """The newest state that is whole, with the shapes, types and shardings of `like`, which need not hold arrays.

    Args:
      like: such a state.
      upto: the last step that may be taken.

    Raises:
      WorkdirError: none is whole, or the newest is not and `strict`, or it is not the state of such a model.
    """
    items = self._restore(_items(like), upto)
    return like.replace(**items["model"], **items["training"])

  def restore_model(self, like: dict) -> dict:
    """The newest parameters and BatchNorm statistics: {"params": ..., "batch_stats": ...}, as `like` them."""
    return self._restore(dict(model=like))["model"]

  def stored_model(self) -> dict:
    """The newest parameters and BatchNorm statistics as NumPy arrays, of whatever network they are."""

    def read():
      arrays = manifest.read(self._folder / str(self._newest_whole(sys.maxsize)))["arrays"]
      like = {tuple(path.split("/")[1:]): _empty(text) for path, text in arrays.items() if path.startswith("model/")}
      tree = dict(params={}, batch_stats={}) | flax.traverse_util.unflatten_dict(like)
      return self._read(dict(model=tree), sys.maxsize)["model"]

    return processes.from_first(read)

  def _restore(self, like: dict, upto: int = sys.maxsize) -> dict:
    leaves, structure = jax.tree.flatten(like)
    found = processes.from_first(lambda: jax.tree.leaves(self._read(like, upto)))
    assert len(found) == len(leaves)
    return sharding.replicate(jax.tree.unflatten(structure, found), sharding.data_mesh())

  def _read(self, like: dict, upto: int) -> dict:
    folder = self._folder / str(self._newest_whole(upto))
    check_fit(like, folder)
    try:
      with _orbax() as orbax:
        found = orbax.restore(folder, args=ocp.args.Composite(**{
            key: ocp.args.StandardRestore(jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), item))
            for key, item in like.items()}))
    except Exception as error:
      raise WorkdirError(f"{folder}: the checkpoint could not be read ({_one_line(error)}); "
                         "give another --workdir, or move it away") from error
    written = manifest.read(folder)["values_sha256"]
    for key in like:
      if manifest.fingerprint(found[key]) != written[key]:
        raise WorkdirError(f"{folder}: the files of {key} are whole, but other values were read than were saved; "
                           "are the versions of orbax-checkpoint and tensorstore those that the README names?")
    return {key: found[key] for key in like}

  def _newest_whole(self, upto: int) -> int:
    """The newest step whose files are what was written; says so loudly where that is not the newest of all."""
    damage = {}
    for step in reversed([step for step in self.steps() if step <= upto]):
      try:
        self._check_owner(step, manifest.verified(self._folder / str(step)))
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

  def _check_owner(self, step: int, content: dict) -> None:
    """Raises a `DamageError` for a checkpoint that was copied here under another name or from another run."""
    if content.get("step", step) != step:
      raise manifest.DamageError(f"it is that of step {content['step']} under another name")
    if self._run and content.get("run") and content["run"] != self._run:
      raise manifest.DamageError("it belongs to another run")

  def _set_aside(self, step: int) -> None:
    """Gives a damaged checkpoint another name, so that its step can be saved again."""
    number = len(list(self._folder.glob(f"{step}{DAMAGED}*")))
    (self._folder / str(step)).rename(self._folder / f"{step}{DAMAGED}{number or ''}")


def _is_step(name: str) -> bool:
  return name.isascii() and name.isdigit() and str(int(name)) == name


def check_fit(like: dict, folder: pathlib.Path) -> None:
  """Raises a `WorkdirError` that lists the arrays in which the checkpoint in `folder` differs from `like`."""
  stored = {path: text for path, text in manifest.read(folder)["arrays"].items() if path.split("/")[0] in like}
  if different := manifest.differences(manifest.describe(like), stored):
    raise WorkdirError(f"{folder}: the checkpoint does not fit the config's model: {different}; "
                       "give another --workdir, or move it away")


def _empty(description: str) -> np.ndarray:
  """An array as `manifest.describe` describes it."""
  dtype, _, shape = description.rstrip("]").partition("[")
  return np.empty([int(size) for size in shape.split(",") if size], dtype)


def _orbax() -> ocp.Checkpointer:
  """An Orbax writer and reader that knows of this process alone."""
  alone = ocp.options.MultiprocessingOptions(
      primary_host=jax.process_index(), active_processes={jax.process_index()}, barrier_sync_key_prefix="first")
  items = {key: ocp.StandardCheckpointHandler(multiprocessing_options=alone) for key in ("model", "training")}
  return ocp.Checkpointer(ocp.CompositeCheckpointHandler(
      composite_options=ocp.CompositeOptions(multiprocessing_options=alone), **items), multiprocessing_options=alone)


def _flush(path: pathlib.Path) -> None:
  """Waits until a file or the names in a folder are on the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _one_line(error: Exception) -> str:
  return " ".join(str(error).split()).split(". ")[0][:200] or type(error).__name__


def _items(state) -> dict[str, dict]:
  fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
  model = {name: fields.pop(name) for name in ("params", "batch_stats")}
  return dict(model=model, training={name: value for name, value in fields.items() if value is not None})
