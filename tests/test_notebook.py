"""A notebook has an event loop that runs already, an argument -f, and cells that are run again."""

import asyncio
import importlib
import sys

import pytest

import ltjax
from ltjax import main
from ltjax.errors import WorkdirError
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


@pytest.mark.usefixtures("no_pictures")
def test_a_run_needs_two_texts_and_no_command_line(tmp_path, monkeypatch, capsys):
  file, folder = tmp_path / "mine.py", str(tmp_path / "run")
  file.write_text("from tests import tiny\n\n\ndef get_config(epochs):\n"
                  "  return tiny.config('ce_digits', epochs=int(epochs), backbone=tiny.ONE_CONV)\n")
  monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
  results = ltjax.run(f"{file}:1", folder)
  assert results["stages"]["representation"]["epochs"] == 1 and results["command"] == ""
  assert "epoch 1 of 1" in capsys.readouterr().err
  assert ltjax.run(f"{file}:1", folder) == results
  assert "epoch 1 of 1" not in capsys.readouterr().err  # of a finished run, nothing trains
  with pytest.raises(WorkdirError, match="is an address"):
    ltjax.run(f"{file}:1", "gs://bucket/run")


def test_the_package_has_no_other_name():
  with pytest.raises(AttributeError, match="no attribute 'ruin'"):
    _ = ltjax.ruin
