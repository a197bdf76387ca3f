"""SIGTERM, SIGINT, SIGHUP and SIGUSR1: how a run is asked to stop, at any moment, and what it exits with.

Imports nothing that takes time, so that the program can listen before it imports all else.
"""

import os
import signal
import socket
import sys
import threading
import time

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
EXIT_STOPPED = 75  # EX_TEMPFAIL: the same command again continues
GRACE = 25.0  # seconds; who preempts a machine gives it 30
# Seconds after which a signal is a second one. systemd and Slurm signal every process of a unit, and launchers pass
# theirs on, so one request comes twice or more at once; a person presses Ctrl-C again after a moment.
AGAIN = {signal.SIGINT: 1.0}
AGAIN_OTHERS = 10.0


class StopRequest:
  """Turns the first signal into a request to stop after the step in flight; a second one ends the program at once.

  A thread listens, since the main thread may be compiling for minutes. As long as nobody has asked whether to stop,
  nothing has been trained by this process: then the program ends there and then. Later it ends when it has saved, or
  after `GRACE` without anybody asking, at the newest checkpoint. A process of several never ends by itself before its
  first step, since the others would miss it: they all stop together after it (`together`).
  """

  def __init__(self):
    self._signal, self._since, self._asked, self._together = None, 0.0, None, False
    listener, speaker = socket.socketpair()
    speaker.setblocking(False)
    self._sockets = listener, speaker
    for number in NUMBERS:
      signal.signal(number, lambda *_: None)  # Python writes the number to the socket, whatever the main thread does
    signal.set_wakeup_fd(speaker.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=self._listen, name="signals", daemon=True).start()

  def __call__(self) -> bool:
    """Whether a signal has come."""
    self._asked = time.monotonic()
    return self._signal is not None

  def together(self) -> None:
    """Says that this process is one of several."""
    self._together = True

  def _listen(self) -> None:
    while True:
      for number in self._sockets[0].recv(16):
        if number in NUMBERS:
          self._received(signal.Signals(number))

  def _received(self, number: signal.Signals) -> None:
    if self._signal is not None:
      if time.monotonic() - self._since < AGAIN.get(number, AGAIN_OTHERS):
        return
      print(f"\n{number.name} again: ending without saving", file=sys.stderr, flush=True)
      os._exit(128 + number)
    self._signal, self._since = number, time.monotonic()
    if self._asked is None and not self._together:
      self._end(f"{number.name}: stopped before the first step; run the same command again")
    print(f"\n{number.name}: saving after the steps in flight ...", file=sys.stderr, flush=True)
    threading.Thread(target=self._wait, args=(self._since,), name="grace", daemon=True).start()

  def _wait(self, since: float) -> None:
    """Ends the program where no step ends within `GRACE`, and says every few seconds that it waits."""
    while True:
      time.sleep(min(5.0, GRACE))
      waited = time.monotonic() - since
      if (self._asked or 0.0) < since and waited >= GRACE:
        self._end(f"{self._signal.name}: no step ended in {GRACE:.0f} s; the run continues from its newest checkpoint")
      print(f"\n{self._signal.name}: {waited:.0f} s, still waiting for the steps in flight and the save",
            file=sys.stderr, flush=True)

  def _end(self, message: str) -> None:
    print(f"\n{message}", file=sys.stderr, flush=True)
    os._exit(EXIT_STOPPED)
