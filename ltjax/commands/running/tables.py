"""Tables of finished runs; every figure is from their results.json."""

import statistics
from collections.abc import Sequence

from ltjax.data import longtail

GROUPS = ("overall", *longtail.GROUPS)


def spread(values: Sequence[float | None]) -> str:
  """Mean +- standard deviation in per cent; a dash where nothing was measured.

  >>> spread([0.5, 0.52])
  '51.00 ± 1.41'
  """
  there = [100 * value for value in values if value is not None]
  if not there:
    return "-"
  return f"{statistics.mean(there):.2f}" + (f" ± {statistics.stdev(there):.2f}" if len(there) > 1 else "")


def one(values: Sequence) -> str:
  """What all `values` are; each, separated by commas, where they differ."""
  return ", ".join(dict.fromkeys(map(str, values)))


def minutes(found: Sequence[dict]) -> str:
  """Mean minutes of training a run."""
  return f"{statistics.mean(sum(stage['seconds'] for stage in each['stages'].values()) for each in found) / 60:.1f}"


def circumstances(found: Sequence[dict]) -> list[str]:
  """Cells that every table ends with: minutes a run, hardware, parameters, hash of the selection, commit."""
  return [minutes(found), one([each["hardware"]["device"] for each in found]),
          one([f"{each['parameters']:,}" for each in found]),
          one([f"`{each['data']['selected_sha256'][:12]}`" for each in found]),
          one([each["commit"][:12] for each in found])]


CIRCUMSTANCES = ("minutes a run", "hardware", "parameters", "selection", "commit")


def markdown(header: Sequence[str], rows: Sequence[Sequence]) -> list[str]:
  """A table's lines."""
  return [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}",
          *(f"| {' | '.join(map(str, row))} |" for row in rows)]
