"""F2 and F3: flipped bits, cut and removed files of the newest checkpoint; and Orbax's own answer to such flips."""

import contextlib
import io
import os
import pathlib
import shutil
import time
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from ltjax.errors import WorkdirError
from ltjax.workdir import manifest
from ltjax.workdir.checkpoint import DAMAGED, Checkpoints
from tests.faults.forks import FORKS
from tests.faults.states import LIKE, assert_is, state
from tests.faults.tally import Trial

CUTS = ("to 0", "to 1", "to half", "by 1", "removed")


class Flip(NamedTuple):
  """A random bit of a folder's files: each byte equally likely if by byte, else each file."""

  path: pathlib.Path
  place: int
  bit: int
  by: str


def prepare(folder: pathlib.Path) -> pathlib.Path:
  """`folder` with the checkpoints of steps 1 and 2."""
  with Checkpoints(folder) as checkpoints:
    for step in (1, 2):
      checkpoints.save(state(step), wait=True)
  return folder


def draw(folder: pathlib.Path, rng: np.random.Generator) -> Flip:
  """A random bit of a random file below `folder`."""
  files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
  sizes = np.array([path.stat().st_size for path in files])
  by = ("byte", "file")[rng.integers(2)]
  path = files[rng.choice(len(files), p=sizes / sizes.sum() if by == "byte" else None)]
  return Flip(path, int(rng.integers(path.stat().st_size)), int(rng.integers(8)), by)


@contextlib.contextmanager
def flipped(flip: Flip):
  """The bit is flipped inside, and flipped back then."""
  whole = flip.path.read_bytes()
  changed = bytearray(whole)
  changed[flip.place] ^= 1 << flip.bit
  flip.path.write_bytes(changed)
  try:
    yield
  finally:
    flip.path.write_bytes(whole)


def flip(folder: pathlib.Path, rng: np.random.Generator) -> Trial:
  """Flips a bit of step 2 of a prepared `folder`, and restores it afterwards."""
  chosen = draw(folder / "2", rng)
  with flipped(chosen):
    return found(folder, str(chosen.path.relative_to(folder / "2")))


def cut(folder: pathlib.Path, rng: np.random.Generator, how: str) -> Trial:
  """Cuts or removes a file of step 2 of a prepared `folder`, and restores it afterwards."""
  files = [path for path in sorted((folder / "2").rglob("*")) if path.is_file() and path.stat().st_size > 2]
  return cut_file(folder, files[rng.integers(len(files))], how)


def cut_file(folder: pathlib.Path, path: pathlib.Path, how: str) -> Trial:
  """The same to a certain file."""
  whole = path.read_bytes()
  try:
    if how == "removed":
      path.unlink()
    else:
      path.write_bytes(whole[:{"to 0": 0, "to 1": 1, "to half": len(whole) // 2, "by 1": -1}[how]])
    return found(folder, str(path.relative_to(folder / "2")))
  finally:
    path.write_bytes(whole)


def found(folder: pathlib.Path, name: str) -> Trial:
  """Restores: the damaged file is named, on stderr too, step 1 is read instead; with `strict`, nothing is."""
  with pytest.raises(WorkdirError, match="the checkpoint is damaged"):
    Checkpoints(folder, strict=True).restore(LIKE)
  told, error, began = [], io.StringIO(), time.perf_counter()
  with contextlib.redirect_stderr(error):
    restored = Checkpoints(folder, on_fallback=told.append).restore(LIKE)
  seconds = time.perf_counter() - began
  (folder / f"2{DAMAGED}").rename(folder / "2")
  assert_is(restored, 1)
  assert len(told) == 1 and f"damaged: {name} " in told[0] and "going on from step 1" in told[0], (name, told)
  assert f"WARNING: {told[0]}" in error.getvalue()
  return Trial(seconds)


def clean(folder: pathlib.Path) -> Trial:
  """Restores an undamaged checkpoint: there must be no false alarm."""
  began, told = time.perf_counter(), []
  restored = Checkpoints(folder, on_fallback=told.append).restore(LIKE)
  assert_is(restored, 2)
  assert not told, told
  return Trial(time.perf_counter() - began)


# -- Orbax alone ------------------------------------------------------------------------------------------------------


def orbax_alone(folder: pathlib.Path, seed: int, count: int, pipe=None) -> dict[str, int]:
  """Counts how often Orbax, after one flipped bit, restored the saved values, silently restored others, or raised.

  `pipe` receives the counts so far after every trial.
  """
  rng, content = np.random.default_rng(seed), _tree()
  shutil.rmtree(folder, ignore_errors=True)
  with ocp.StandardCheckpointer() as orbax:
    orbax.save(folder, content)
    orbax.wait_until_finished()
    wanted, outcomes = manifest.fingerprint(content), {}
    for _ in range(count):
      chosen = draw(folder, rng)
      with flipped(chosen):
        try:
          right = manifest.fingerprint(orbax.restore(folder, jax.tree.map(np.zeros_like, content))) == wanted
          outcome = "restored right" if right else "restored silently wrong"
        except Exception:
          outcome = "error"
      key = f"{outcome}, by {chosen.by}"
      outcomes[key] = outcomes.get(key, 0) + 1
      if pipe:
        pipe.send(outcomes)
  return outcomes


def orbax_in_child(folder: pathlib.Path, seed: int, count: int) -> dict[str, int]:
  """`orbax_alone` in a forked process, which it may end or hang."""
  pipe, theirs = FORKS.Pipe(duplex=False)
  process = FORKS.Process(target=_child, args=(folder, seed, count, theirs), daemon=True)
  process.start()
  theirs.close()
  outcomes = {}
  try:
    while pipe.poll(60):
      outcomes = pipe.recv()
  except EOFError:
    pass
  finally:
    process.kill()
    process.join()
    pipe.close()
  if sum(outcomes.values()) < count:
    outcomes["the process died, by byte"] = 1
  return outcomes


def _child(folder: pathlib.Path, seed: int, count: int, pipe) -> None:
  os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # Orbax's errors end in pages of tracebacks
  orbax_alone(folder, seed, count, pipe)


def _tree() -> dict:
  content = state(2)
  return dict(params=content.params, batch_stats=content.batch_stats, opt_state=content.opt_state,
              step=np.asarray(content.step), loss_state=content.loss_state)
