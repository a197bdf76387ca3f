"""F20: after the loss of a process the others end and name it, and the run continues from its checkpoint."""

import numpy as np

from tests.faults import peers


def test_each_is_lost_once(tmp_path, cache):
  rng, two = np.random.default_rng(0), peers.Peers(tmp_path, cache)
  assert two.lose(rng, 1, "train", "SIGKILL").note == "process 1 killed"
  # Saves are short, so that a run may end before one is met; the next is another run.
  tries = (two.lose(rng, 0, "save", "SIGSTOP") for _ in range(3))
  assert next(filter(None, tries)).note == "process 0 stopped"
  two.finish(compare=False)  # tests/test_elastic.py compares, and the soak
