"""The manifest of a checkpoint: its step, its run and the hash of every file, so that damage is found and named."""

import hashlib
import json
import pathlib

import jax
import numpy as np

NAME = "manifest.json"


class DamageError(Exception):
  """A checkpoint is not as it was written; the message says how it differs."""


def write(folder: pathlib.Path, arrays: dict, **entries) -> None:
  """Writes `folder/manifest.json`: the hashes of all files there, a description of `arrays`, and `entries`.

  The last entry is the hash of all entries before it.
  """
  files = {str(path.relative_to(folder)): _of_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}
  content = dict(entries, arrays=describe(arrays), files=files,
                 values_sha256={item: fingerprint(tree) for item, tree in arrays.items()})
  # No newline at the end: a file cut short by even one byte is then not valid JSON.
  (folder / NAME).write_text(json.dumps(content | dict(sha256=_of_json(content)), indent=1))


def verified(folder: pathlib.Path, *, step: int | None = None, run: str = "") -> dict:
  """The manifest of `folder`, after comparing every file with it.

  Raises:
    DamageError: a file is missing or not as it was written, or the checkpoint was copied here: it belongs to another
      step than `step`, or to another run than `run`. Both are compared only if given.
  """
  content = read(folder)
  if step is not None and content.get("step") != step:
    raise DamageError(f"{NAME} belongs to step {content.get('step')}: this is a copy of another checkpoint")
  if run and content.get("run", "") != run:
    raise DamageError(f"{NAME} belongs to another run: this is a copy of its checkpoint")
  for name, (size, sha256) in content["files"].items():
    path = folder / name
    try:
      if path.stat().st_size != size:
        raise DamageError(f"{name} has {path.stat().st_size} bytes, expected {size}")
      if _of_file(path)[1] != sha256:
        raise DamageError(f"{name} is not as it was written: its SHA-256 differs")
    except OSError as error:
      raise DamageError(f"{name} cannot be read ({error.strerror or error})") from error
  return content


def read(folder: pathlib.Path) -> dict:
  """The manifest of `folder`, after a check of its own hash; raises a `DamageError` if it does not fit."""
  try:
    content = json.loads((folder / NAME).read_bytes())
    sha256 = content.pop("sha256")
  except OSError as error:
    raise DamageError(f"{NAME} cannot be read ({error.strerror or error})") from error
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    raise DamageError(f"{NAME} is not as it was written: it is not a manifest") from error
  if sha256 != _of_json(content):
    raise DamageError(f"{NAME} is not as it was written: its SHA-256 differs")
  return content


def describe(tree) -> dict[str, str]:
  """{"model/params/head/kernel": "float32[64,10]"} of a tree of arrays or shapes."""
  return {path: f"{np.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]" for path, leaf in _leaves(tree)}


def differences(wanted: dict[str, str], stored: dict[str, str]) -> str:
  """The first few arrays in which two descriptions differ, in words; empty if they agree."""
  different = [f"{path} is {stored.get(path, 'absent')}, expected {wanted.get(path, 'absent')}"
           for path in sorted({*wanted, *stored}) if wanted.get(path) != stored.get(path)]
  return "; ".join(different[:4]) + (f"; and {len(different) - 4} more" if different[4:] else "")


def fingerprint(tree) -> str:
  """The hash of all values of a tree of arrays."""
  digest = hashlib.sha256()
  for path, leaf in _leaves(tree):
    digest.update(path.encode())
    digest.update(np.ascontiguousarray(leaf).data)
  return digest.hexdigest()


def _leaves(tree) -> list:
  return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _of_file(path: pathlib.Path) -> list:
  with path.open("rb") as file:
    return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def _of_json(content: dict) -> str:
  return hashlib.sha256(json.dumps(content).encode()).hexdigest()
