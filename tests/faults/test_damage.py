"""F2 and F3: every flipped bit, every cut and every missing file is found, named, and survived. The soak has more."""

import collections

import numpy as np
import pytest

from ltjax.errors import WorkdirError
from ltjax.workdir import manifest
from tests.faults import damage


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return damage.prepare(tmp_path_factory.mktemp("damaged"))


def test_flipped_bits(folder):
  rng = np.random.default_rng(0)
  for _ in range(60):
    damage.flip(folder, rng)
  damage.clean(folder)


def test_every_file_cut_in_every_way(folder):
  files = sorted(path for path in (folder / "2").rglob("*") if path.is_file() and path.stat().st_size > 2)
  assert len(files) > 10
  for path in files:
    for how in damage.CUTS:
      damage.cut_file(folder, path, how)
  damage.clean(folder)


def test_a_file_that_nobody_wrote_is_no_damage(folder):
  (folder / "2" / "notes.txt").write_text("mine")
  damage.clean(folder)
  (folder / "2" / "notes.txt").unlink()


def test_where_all_are_damaged_all_are_named_and_nothing_is_removed(tmp_path):
  folder = damage.prepare(tmp_path / "all")
  for step in ("1", "2"):
    (folder / step / manifest.NAME).unlink()
  with pytest.raises(WorkdirError, match=r"2: .*damaged.*; .*1: .*damaged.*; no other is left: move the folder away"):
    damage.Checkpoints(folder).restore(damage.LIKE)
  assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


def test_orbax_alone_restores_most_flips_silently_wrong(tmp_path):
  # This is why there is a manifest. If it fails, Orbax has begun to check the values it reads.
  found = damage.orbax_in_child(tmp_path / "orbax", seed=0, count=40)
  by_byte = collections.Counter({key.split(",")[0]: count for key, count in found.items() if "byte" in key})
  assert by_byte["restored silently wrong"] > 0.8 * by_byte.total()
