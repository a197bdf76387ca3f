"""F21: checkpoints of released versions load bit by bit.

`python -m tests.test_golden_checkpoint /tmp/checkpoint_0_2` wrote that of 0.2, and then it was copied: Orbax notes the
path that it writes to. Those of 0.1, which was never released, had other parts.
"""

import json
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest

from ltjax.step import TrainState
from ltjax.workdir import manifest
from ltjax.workdir.checkpoint import Checkpoints

GOLDEN = pathlib.Path(__file__).parent / "golden"
STEP = 12


def state() -> TrainState:
  """Exact in every type that a state has: no random numbers, which may change with NumPy."""
  def ramp(*shape):
    return (np.arange(np.prod(shape), dtype=np.float32).reshape(shape) - 7) / 3

  return TrainState(
      step=np.int32(STEP),
      params=dict(backbone=dict(conv=dict(kernel=ramp(3, 3, 1, 4))), head=dict(kernel=ramp(4, 10))),
      batch_stats=dict(backbone=dict(norm=dict(mean=ramp(4), var=ramp(4)))),
      opt_state=(dict(trace=dict(head=dict(kernel=np.float32([np.inf, -0.0, 1e-45])))),),
      loss_state=dict(seen_counts=ramp(10)), ema=None,
      window=dict(loss=np.float32(1.5), correct=np.float32(3), examples=np.float32(128)))


@pytest.mark.parametrize("version", ["0_2"])
def test_loads_bit_by_bit(tmp_path, version):
  shutil.copytree(GOLDEN / f"checkpoint_{version}", tmp_path / "checkpoints")
  wanted = state()
  like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), wanted)
  with Checkpoints(tmp_path / "checkpoints", strict=True) as checkpoints:
    found = checkpoints.restore(like)
  assert manifest.fingerprint(jax.device_get(found)) == manifest.fingerprint(wanted)
  written = json.loads((tmp_path / "checkpoints" / str(STEP) / manifest.NAME).read_text())
  assert {"step", "arrays", "files", "values_sha256", "sha256"} <= set(written)
  assert sum(path.stat().st_size for path in GOLDEN.rglob(f"checkpoint_{version}/**/*") if path.is_file()) < 100_000


if __name__ == "__main__":
  with Checkpoints(pathlib.Path(sys.argv[1])) as writer:
    writer.save(state(), wait=True)
