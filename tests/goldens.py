"""Reads the golden vectors: tests/golden/<name>.json maps each case's arrays to keys of <name>.npz."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parent / "golden"


def cases(name: str) -> Iterator[tuple[str, dict, dict, dict]]:
  """(case, hyper, inputs, outputs) of every case; equal arrays are stored once, so the map is the only way in."""
  described = json.loads((FOLDER / f"{name}.json").read_text())["cases"]
  with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as stored:
    arrays = dict(stored)
  for case, parts in described.items():
    inputs, outputs = ({k: arrays[key] for k, key in parts[side].items()} for side in ("inputs", "outputs"))
    yield case, parts["hyper"], inputs, outputs


def parametrize(name: str, *, skip: dict[str, str] | None = None) -> pytest.MarkDecorator:
  """A test over (case, hyper, inputs, outputs); `skip` maps cases to the reason why our functions differ."""
  skip = skip or {}
  rows = [
    pytest.param(*row, id=row[0], marks=[pytest.mark.skip(reason=skip[row[0]])] if row[0] in skip else [])
    for row in cases(name)
  ]
  unknown = set(skip) - {row.id for row in rows}
  assert not unknown, f"golden {name} has no case {unknown}"
  return pytest.mark.parametrize(("case", "hyper", "inputs", "outputs"), rows)
