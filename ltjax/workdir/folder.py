"""Decides whether a work folder belongs to a run, and writes its config.json and identity.json."""

import contextlib
import json
import os
import pathlib
import re
import secrets
from collections.abc import Mapping
from types import MappingProxyType

from ml_collections import ConfigDict

from ltjax import recipes
from ltjax.distributed import processes
from ltjax.errors import LtjaxError, WorkdirError
from ltjax.workdir import compiled, durable, identity, lock

keep_programs = compiled.keep  # beside the work folder's own files, the only ones that a run writes
PARTIALS = ("config.json.partial", "identity.json.partial", "identity.json")  # left by an interrupted start
PLANS = ("plan.json", "plan.md")  # of ltjax plan, which may come before the run
# Keys that change no number of a run may differ when it continues. identity.json compares the data themselves.
FREE = ("eval_batch_size", "posthoc", "eval_every_epochs", "checkpoint_every_epochs", "keep_checkpoints",
        "log_every_steps", "skip_limit", "dataset.on_bad_image", "preset")
PATHS = ("root", "test_root", "dir", "lists", "tfds_dir", "train_csv", "test_csv", "train_list", "test_list",
         "val_list", "class_names")


def check_before_data(config: ConfigDict, workdir: pathlib.Path, defaults: Mapping = MappingProxyType({})) -> bool:
  """`check`, on every process; run it before reading the data, which may be a long download."""
  check_local(workdir)
  for key in ("root", "test_root"):
    root = config.dataset.get(key, "")
    if isinstance(root, str) and root and "://" not in root:
      inside = pathlib.Path(root).expanduser().resolve()
      if workdir.resolve().is_relative_to(inside):
        raise WorkdirError(f"--workdir: {workdir} lies inside dataset.{key}={root!r}, where its files would count as "
                           "data; give a folder outside it")
  return processes.from_first(lambda: check(config, workdir, defaults))


def check_local(workdir: pathlib.Path | str) -> None:
  """Raises if a path is an address such as gs://bucket/run, or cannot be encoded in UTF-8."""
  if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text := str(workdir)):
    raise WorkdirError(f"--workdir: {text!r} is an address, expected a folder of this machine; mount the bucket, or "
                       "copy the folder there when the run has ended")
  if os.fsencode(text) != text.encode("utf-8", "replace"):
    raise WorkdirError(f"--workdir: {text!r} cannot be written in UTF-8, which checkpoints need; give another name, or "
                       "set PYTHONUTF8=1")


def check(config: ConfigDict, workdir: pathlib.Path, defaults: Mapping = MappingProxyType({})) -> bool:
  """Whether the work folder already belongs to this config; raises where it cannot become or stay its folder.

  `defaults` are the values of keys that a config may leave out, by their path.
  """
  path = workdir / "config.json"
  try:
    above = next(folder for folder in (workdir, *workdir.absolute().parents) if folder.exists())
    if not above.is_dir():
      raise WorkdirError(f"--workdir: {above} is a file, expected a folder; give another --workdir")
    if not os.access(above, os.R_OK | os.W_OK | os.X_OK):
      raise WorkdirError(f"--workdir: {above} may not be read and written; give another --workdir, or change its mode")
    if path.exists():
      _compare(json.loads(path.read_text()), json.loads(config.to_json()), workdir, defaults)
      return True
    if workdir.exists() and any(entry.name not in (*PARTIALS, *PLANS, lock.NAME) for entry in workdir.iterdir()):
      raise WorkdirError(f"--workdir: {workdir} is not empty and has no config.json, so it is not a run of ltjax; "
                         "give a new or empty folder")
  except OSError as error:
    raise _unusable(workdir, error) from error
  except ValueError as error:
    if isinstance(error, LtjaxError):
      raise
    raise WorkdirError(f"--workdir: {path} is not valid JSON ({error}); repair it, or give another folder") from error
  return False


def load(workdir: pathlib.Path) -> ConfigDict:
  """The config that the run in `workdir` was started with; raises a `WorkdirError` if there is none."""
  path = workdir / "config.json"
  try:
    stored = json.loads(path.read_text())
    if not isinstance(stored, Mapping):
      raise ValueError(f"expected a dict, got {type(stored).__name__}")
    later = {key: value for key, value in recipes.RUN_DEFAULTS.items() if key not in stored}
    return ConfigDict(_tuples(dict(stored) | later))
  except OSError as error:
    raise WorkdirError(f"{workdir} is not a run of ltjax: {path} cannot be read ({error.strerror or error}); give the "
                       "--workdir of a run") from error
  except (ValueError, TypeError) as error:
    raise WorkdirError(f"{path} is not the config of a run ({error}); repair it, or give another folder") from error


def _tuples(value):
  """`value` with tuples, as configs have them, in place of JSON's lists."""
  if isinstance(value, Mapping):
    return {key: _tuples(entry) for key, entry in value.items()}
  return tuple(map(_tuples, value)) if isinstance(value, list) else value


@contextlib.contextmanager
def held(config: ConfigDict, workdir: pathlib.Path, command: str, dataset, defaults: Mapping = MappingProxyType({})):
  """Locks the work folder for this run and writes its config.json and identity.json; yields the run's name.

  The name is random, drawn at the first start; it is "" for a run that began before runs had names.

  Raises:
    WorkdirError: the folder belongs to another config, to other data, or to a run that is under way.
  """
  with contextlib.ExitStack() as stack:

    def take():
      stack.enter_context(lock.WorkdirLock(workdir, command))
      check(config, workdir, defaults)
      run = _check_identity(identity.describe(dataset), workdir)
      _write(config.to_json(indent=1), workdir / "config.json")
      return run

    yield processes.from_first(take)


def read_identity(workdir: pathlib.Path) -> dict | None:
  """The identity of the data that the run in `workdir` was started with; None before it has started."""
  path = workdir / "identity.json"
  try:
    return identity.checked(json.loads(path.read_text())) if path.exists() else None
  except (OSError, ValueError, RecursionError) as error:
    raise WorkdirError(f"{path} is not the identity of a run ({error}); restore it, or give another folder") from error


def _check_identity(now: dict, workdir: pathlib.Path) -> str:
  """Writes or compares identity.json; returns the run's name."""
  before = read_identity(workdir)
  if before is None:
    # A run with a config began before there were identities: its checkpoints have no name of a run.
    before = now if (workdir / "config.json").exists() else now | dict(run=secrets.token_hex(16))
    _write(json.dumps(before), workdir / "identity.json")
  elif different := identity.differences(before, now):
    raise WorkdirError(f"--workdir: {workdir} was started with other data: {'; '.join(different)}. Restore the data "
                       "to continue that run, or give another --workdir to start afresh")
  return before.get("run", "")


def _write(text: str, path: pathlib.Path) -> None:
  try:
    if not path.exists() or path.read_text() != text + "\n":
      durable.write_durably(path, text + "\n")
  except OSError as error:
    raise _unusable(path.parent, error) from error


def _unusable(workdir: pathlib.Path, error: OSError) -> WorkdirError:
  return WorkdirError(f"--workdir: {workdir} cannot be used ({error.strerror or error}); "
                      "give a folder that can be read and written")


def _compare(before, now: Mapping, workdir: pathlib.Path, defaults: Mapping) -> None:
  if not isinstance(before, Mapping):
    raise WorkdirError(f"--workdir: {workdir / 'config.json'} is not the config of a run; give another folder")
  before, now, missing = _flat(recipes.RUN_DEFAULTS | dict(before)), _flat(now), object()
  if isinstance(before.get("augment.flip", None), bool) or "augment.crop_padding" in before:
    raise WorkdirError(f"--workdir: {workdir} was written by ltjax 0.1, whose configs had other keys; finish that run "
                       "with ltjax 0.1, or give another folder")
  implied = {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()}
  different = [f"{key} was {before.get(key, 'absent')!r}, is {now.get(key, 'absent')!r}"
               for key in sorted({*before, *now}) if not free(key)
               and before.get(key, implied.get(key, missing)) != now.get(key, implied.get(key, missing))]
  if different:
    raise WorkdirError(f"--workdir: {workdir} was written by another config: {'; '.join(different)}. "
                       "Give another folder, or the values it was started with")


def free(key: str) -> bool:
  """Whether a key may differ when a run continues."""
  head, _, tail = key.partition(".")
  return key in FREE or head in FREE or (head == "dataset" and tail in PATHS)


def _flat(config: Mapping, prefix: str = "") -> dict[str, object]:
  leaves = {}
  for key, value in config.items():
    if isinstance(value, Mapping) and value:
      leaves |= _flat(value, f"{prefix}{key}.")
    else:
      leaves[prefix + key] = value
  return leaves
