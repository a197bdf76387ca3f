"""F5: a run that is stopped in all its phases is, in the end, the run that never was."""

import numpy as np

from tests.faults import stops


def test_stopped_in_every_phase(tmp_path, cache, expected):
  rng, stopped, seen = np.random.default_rng(0), stops.Stopped(tmp_path, cache, expected), set()
  for number, phase in enumerate(("import", "start", "train", "save", "evaluate", "stage change", "report")):
    trial = stopped.stop(rng, phase, ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")[number % 4])
    if trial:
      seen.add(trial.note.removeprefix("in "))
  stopped.finish()
  assert stopped.finished and len(seen) > 4, seen
