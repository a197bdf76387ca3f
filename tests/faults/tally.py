"""The outcomes of faults: trials, and their table."""

import dataclasses
import statistics
from typing import NamedTuple


class Trial(NamedTuple):
  """A fault that was survived: seconds until recovery, lost steps of work, and other counts."""

  seconds: float
  lost: int = 0
  note: str = ""


@dataclasses.dataclass
class Tally:
  """All trials of one kind."""

  injected: int = 0
  survived: int = 0
  lost: int = 0
  seconds: list = dataclasses.field(default_factory=list)
  notes: dict = dataclasses.field(default_factory=dict)
  problems: list = dataclasses.field(default_factory=list)

  def add(self, trial: Trial) -> None:
    """Counts a trial."""
    self.injected += 1
    self.survived += not trial.lost
    self.lost += trial.lost
    self.seconds.append(trial.seconds)
    if trial.note:
      self.notes[trial.note] = self.notes.get(trial.note, 0) + 1

  def fail(self, problem: str) -> None:
    """Counts a fault that was not survived."""
    self.injected += 1
    self.problems.append(problem)

  def row(self, name: str) -> str:
    """A line of the table."""
    times = f"{statistics.median(self.seconds):.2g}, {max(self.seconds):.2g}" if self.seconds else "-"
    notes = "; ".join(f"{count} {note}" for note, count in sorted(self.notes.items()))
    return f"| {name} | {self.injected} | {self.survived} | {self.lost} | {times} | {notes} |"
