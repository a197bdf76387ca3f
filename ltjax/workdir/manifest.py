"""What a checkpoint consists of, written beside it: the hash of every file, so that damage is found and named."""

import hashlib
import json
import pathlib

import jax
import numpy as np

NAME = "manifest.json"


class DamageError(Exception):
  """What is wrong with a checkpoint's files."""


def write(folder: pathlib.Path, arrays: dict, **entries) -> None:
  """Writes `folder/manifest.json`: all files there, what `arrays` are, item by item, and `entries`.

  Its own last entry is the hash of all before it.
  """
  files = {str(path.relative_to(folder)): _of_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}
  content = dict(entries, arrays=describe(arrays), files=files,
                 values_sha256={item: fingerprint(tree) for item, tree in arrays.items()})
  # No end of line: without any of its bytes, the text is no JSON.
  (folder / NAME).write_text(json.dumps(content | dict(sha256=_of_json(content)), indent=1))


def verified(folder: pathlib.Path) -> dict:
  """The manifest of `folder`, after every file has been found to be what it says.

  Raises:
    DamageError: a file is missing or not as it was written.
  """
  content = read(folder)
  for name, (size, sha256) in content["files"].items():
    path = folder / name
    try:
      if path.stat().st_size != size:
        raise DamageError(f"{name} has {path.stat().st_size} bytes, expected {size}")
      if _of_file(path)[1] != sha256:
        raise DamageError(f"{name} is not what was written: its SHA-256 differs")
    except OSError as error:
      raise DamageError(f"{name} cannot be read ({error.strerror or error})") from error
  return content


def read(folder: pathlib.Path) -> dict:
  """The manifest of `folder`, its own hash checked; raises `DamageError`."""
  try:
    content = json.loads((folder / NAME).read_bytes())
    sha256 = content.pop("sha256")
  except OSError as error:
    raise DamageError(f"{NAME} cannot be read ({error.strerror or error})") from error
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    raise DamageError(f"{NAME} is not what was written: it is no manifest") from error
  if sha256 != _of_json(content):
    raise DamageError(f"{NAME} is not what was written: its SHA-256 differs")
  return content


def describe(tree) -> dict[str, str]:
  """{"model/params/head/kernel": "float32[64,10]"} of a tree of arrays or of their shapes."""
  return {path: f"{np.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]" for path, leaf in _leaves(tree)}


def differences(wanted: dict[str, str], stored: dict[str, str]) -> str:
  """In which arrays two descriptions differ, the first few of them in words; empty where they do not."""
  found = [f"{path} is {stored.get(path, 'absent')}, expected {wanted.get(path, 'absent')}"
           for path in sorted({*wanted, *stored}) if wanted.get(path) != stored.get(path)]
  return "; ".join(found[:4]) + (f"; and {len(found) - 4} more" if found[4:] else "")


def fingerprint(tree) -> str:
  """The hash of all values of a tree of arrays."""
  found = hashlib.sha256()
  for path, leaf in _leaves(tree):
    found.update(path.encode())
    found.update(np.ascontiguousarray(leaf).data)
  return found.hexdigest()


def _leaves(tree) -> list:
  return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _of_file(path: pathlib.Path) -> list:
  with path.open("rb") as file:
    return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def _of_json(content: dict) -> str:
  return hashlib.sha256(json.dumps(content).encode()).hexdigest()
