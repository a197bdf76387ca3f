"""F1: a killed save leaves the last committed step, or the new one, complete. The soak does this for longer."""

import numpy as np
import pytest

from tests.faults import damage, kills


@pytest.fixture
def folder(tmp_path):
  return damage.prepare(tmp_path / "checkpoints")


def test_killed_at_random_times(folder):
  rng = np.random.default_rng(0)
  notes = [kills.kill(folder, rng).note for _ in range(6)]
  assert any(notes), "no kill came in the middle of a save"


def test_killed_at_calls_that_change_files(folder):
  changes = kills.changes_of_a_save(folder)
  assert changes > 20
  # The last ones: the manifest, the rename that commits, and the removal of the oldest.
  notes = [kills.kill(folder, np.random.default_rng(0), die_at).note
           for die_at in (1, changes // 2, *range(changes - 4, changes + 1))]
  assert any(notes)
