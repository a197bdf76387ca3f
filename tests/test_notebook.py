"""A notebook has an event loop that runs already, an argument -f, and cells that are run again."""

import asyncio
import importlib
import sys

import pytest

from ltjax import main
from tests import tiny


@pytest.mark.usefixtures("no_pictures")
def test_a_config_runs_in_a_cell_and_again_after_a_reload(tmp_path, monkeypatch):
  monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
  config = tiny.config("ce_digits", epochs=1, backbone=tiny.ONE_CONV, precision="bf16")

  async def cell():
    return main.run(config, tmp_path / "run")["final"]

  first = asyncio.run(cell())
  importlib.reload(main)
  assert asyncio.run(cell()) == first and set(first) == {"overall", "many", "medium", "few"}
