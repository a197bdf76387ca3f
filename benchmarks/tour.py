"""Runs the notebook docs/tour.ipynb and writes it with its outputs: python benchmarks/tour.py"""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
PATH = ROOT / "docs" / "tour.ipynb"


def execute(environment: dict[str, str]):
  """The notebook after all of its cells have run, in the folder of the notebook and with this environment.

  Raises:
    CellExecutionError: a cell has failed.
  """
  import nbformat
  from nbclient import NotebookClient

  notebook = nbformat.read(PATH, as_version=4)
  resources = dict(metadata=dict(path=str(PATH.parent)))
  NotebookClient(notebook, timeout=600, coalesce_streams=True, resources=resources).execute(env=environment)
  for cell in notebook.cells:
    cell.metadata.pop("execution", None)  # the times
  return notebook


if __name__ == "__main__":
  import os

  import nbformat

  nbformat.write(execute(dict(os.environ, PYTHONPATH=str(ROOT))), PATH)
  print(f"written: {PATH}", file=sys.stderr)
