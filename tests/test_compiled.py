"""Compiled programs outlive the run: the second start of a config finds them all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from ltjax.errors import WorkdirError
from ltjax.workdir import compiled

ROOT = Path(__file__).parents[1]
# A run that counts what its compiler was asked for, and what was there already.
RUN = """
import collections, json, sys
from jax import monitoring

events = collections.Counter()
monitoring.register_event_listener(lambda name, **_: events.update([name.rpartition("/")[2]]))
from ltjax import main

code = main.main(["--config=configs/ce_digits.py", "--config.representation.epochs=1", "--config.dataset.imbalance=5",
                  "--config.backbone=dict(name='tests.tiny:OneConv')", *sys.argv[1:]])
print(json.dumps(dict(events, code=code)))
"""


@pytest.fixture
def settings():
  """What `keep` changes, put back afterwards."""
  names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs",
           "jax_persistent_cache_min_entry_size_bytes", "jax_enable_compilation_cache")
  before = {name: getattr(jax.config, name) for name in names}
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compiled.compilation_cache.reset_cache()


def test_the_second_start_compiles_nothing(tmp_path):
  environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
  environment |= dict(JAX_PLATFORMS="cpu", XDG_CACHE_HOME=str(tmp_path / "cache"))
  found = []
  for run in ("first", "second"):
    done = subprocess.run([sys.executable, "-c", RUN, f"--workdir={tmp_path / run}"], cwd=ROOT, env=environment,
                          capture_output=True, text=True, timeout=600)
    found.append(json.loads(done.stdout.splitlines()[-1]))
    assert found[-1]["code"] == 0, done.stderr[-2000:]
  first, second = found
  assert first["cache_misses"] > 10 and "cache_hits" not in first
  assert second["cache_hits"] == first["cache_misses"] and "cache_misses" not in second
  logs = [(tmp_path / run / "representation" / "metrics.jsonl").read_text() for run in ("first", "second")]
  assert logs[0] == logs[1]


def test_a_folder_that_jax_has_already_stays(settings):
  before = jax.config.jax_compilation_cache_dir
  assert before and compiled.keep() is None and jax.config.jax_compilation_cache_dir == before


def test_a_folder_of_ones_own_or_none(settings, tmp_path):
  assert compiled.keep(str(tmp_path / "mine")) == tmp_path / "mine"
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
  assert compiled.keep("none") is None and not jax.config.jax_enable_compilation_cache


def test_a_folder_that_cannot_be_made_is_one_sentence(settings, tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(WorkdirError, match="--compilation_cache: .*; give another folder, or --compilation_cache=none"):
    compiled.keep(str(tmp_path / "file" / "inside"))


def test_a_home_that_cannot_be_written_to_costs_nothing_but_time(settings, tmp_path, monkeypatch):
  (tmp_path / "file").touch()
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
  jax.config.update("jax_compilation_cache_dir", None)
  assert compiled.keep() is None
