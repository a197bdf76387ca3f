"""The notebook docs/tour.ipynb runs, and its outputs are those of its cells."""

import json
import os

import pytest

from benchmarks import tour


@pytest.fixture(scope="module")
def stored():
  return json.loads(tour.PATH.read_text())


def test_every_cell_runs(stored, monkeypatch):
  pytest.importorskip("nbclient", reason="nbclient runs notebooks; it is in the extra `test`")
  pytest.importorskip("ipykernel", reason="ipykernel is what notebooks run in; it is in the extra `test`")
  monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
  flags = "--xla_backend_optimization_level=1"  # most of the time is LLVM's; with 0 the training itself is slow
  found = tour.execute(dict(os.environ, PYTHONPATH=str(tour.ROOT), JAX_PLATFORMS="cpu", XLA_FLAGS=flags))
  cells = [cell for cell in found.cells if cell.cell_type == "code"]
  for now, then in zip(cells, (cell for cell in stored["cells"] if cell["cell_type"] == "code"), strict=True):
    assert [output.output_type for output in now.outputs] == [output["output_type"] for output in then["outputs"]]
  again = next(cell for cell in cells if cell.source.startswith("ltjax.run("))
  assert again.outputs[-1].data["text/plain"] == "True" and "step" not in again.outputs[0].text


def test_the_stored_outputs_are_those_of_any_machine(stored):
  outputs = [output for cell in stored["cells"] for output in cell.get("outputs", ())]
  text = json.dumps([output for output in outputs if output["output_type"] != "display_data"])
  assert len(outputs) >= 9 and "Error" not in text
  assert str(tour.ROOT) not in text and "/tmp" not in text
