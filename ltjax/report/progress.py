"""How far a stage is, on standard error: a bar on a terminal; else a line for each evaluation, and in long silence."""

import math
import os
import sys
import time

from tqdm import tqdm

_SHOWN = ("loss", "accuracy", "test", "held_out")
_EIGHTHS = " ▏▎▍▌▋▊▉█"


class Progress:
  """Shows the steps of a stage; a context manager.

  In a file, a pipe or a notebook a bar would be printed again for each of its states, so there is none.
  """

  SILENCE, _SHARE = 60.0, 0.05  # seconds without a line, and their share in the time so far, after which one is due

  def __init__(self, name: str, *, steps: int, done: int, epochs: int, batch_size: int, shown: bool = True):
    """
    Args:
      name: of the stage.
      steps: of the complete stage.
      done: the step where this start of the stage begins.
      epochs: of the complete stage.
      batch_size: examples a step.
      shown: False for all processes of a run but the first.
    """
    self._name, self._steps, self._done, self._epochs, self._batch_size = name, steps, done, epochs, batch_size
    self._latest, self._first, self._began = {}, None, time.perf_counter()
    self._printed = self._began
    terminal = sys.stderr is not None and sys.stderr.isatty()
    self._lines = shown and not terminal
    self._bar = tqdm(total=steps * batch_size, initial=done * batch_size, unit="img", unit_scale=True, desc=name,
                     smoothing=0, disable=not (shown and terminal), **_width())

  def __enter__(self) -> "Progress":
    return self

  def __exit__(self, *error) -> None:
    self._bar.close()

  def advance(self, count: int) -> None:
    """`count` more steps are done, or at least given to the devices."""
    self._done += count
    self._bar.update(count * self._batch_size)
    if self._first is None:  # the first call has waited for the compiler, and says nothing of the time left
      now = time.perf_counter()
      self._first = self._done, now
      if not self._bar.disable:
        self._bar.initial, self._bar.start_t = self._bar.n, time.time()
      self._print(f"step {self._done:,} of {self._steps:,} after {now - self._began:.0f} s")

  def trained(self, loss: float, accuracy: float) -> None:
    """Shows the means over the latest training steps."""
    self._show(loss=f"{loss:.3f}", accuracy=f"{accuracy:.1%}")

  def evaluated(self, **accuracies: float) -> None:
    """Shows the accuracy on the splits test and held_out; outside a terminal, all that is known in one line."""
    self._show(**{split: f"{accuracy:.1%}" for split, accuracy in accuracies.items()})
    self._print(f"epoch {self._done * self._epochs / self._steps:.4g} of {self._epochs}{self._known()}{self._left()}")

  def waited(self) -> None:
    """Outside a terminal, a line if there was none for a minute; after hours, for a twentieth of the time so far."""
    now = time.perf_counter()
    if now - self._printed >= max(self.SILENCE, self._SHARE * (now - self._began)):
      self._print(f"step {self._done:,} of {self._steps:,}{self._known()}{self._left()}")

  def _show(self, **values: str) -> None:
    self._latest |= values
    self._bar.set_postfix(self._latest)

  def _known(self) -> str:
    return "".join(f", {key.replace('_', ' ')} {self._latest[key]}" for key in _SHOWN if key in self._latest)

  def _print(self, text: str) -> None:
    if self._lines:
      self._printed = time.perf_counter()
      done = self._done / self._steps
      eighths = math.ceil(80 * done)
      bar = f"{'█' * (eighths // 8)}{_EIGHTHS[eighths % 8]}"[:10].ljust(10)
      bar = f"|{bar}|" if _can_write(sys.stderr, bar) else ""
      print(f"{self._name}: {done:4.0%}{bar} {text}", file=sys.stderr, flush=True)

  def _left(self) -> str:
    """The rate and the time left, by all steps of this start but the first call."""
    if self._first is None or self._done == self._first[0] or self._done == self._steps:
      return ""
    seconds = (time.perf_counter() - self._first[1]) / (self._done - self._first[0])
    left = seconds * (self._steps - self._done)
    amount, unit = next((left / size, unit) for size, unit in ((3600, "h"), (60, "min"), (1, "s"))
                        if left >= 2 * size or unit == "s")
    rate = self._batch_size / max(seconds, 1e-9)
    return f", {f'{rate:,.0f}' if rate >= 10 else f'{rate:.3g}'} images/s, {amount:.0f} {unit} left"


def _width() -> dict:
  """The bar's width: that of the terminal, or 80 columns where it says 0, as under `script` and in some containers."""
  try:
    columns = os.get_terminal_size(sys.stderr.fileno()).columns
  except (OSError, ValueError, AttributeError):  # no terminal
    return dict(dynamic_ncols=True)
  return dict(dynamic_ncols=True) if columns else dict(ncols=80, nrows=24)


def _can_write(stream, text: str) -> bool:
  try:
    text.encode(getattr(stream, "encoding", None) or "utf-8")
  except UnicodeEncodeError:
    return False
  return True
