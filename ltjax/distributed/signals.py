"""SIGTERM, SIGINT and SIGUSR1: how a run is asked to stop, at any moment, and what it exits with.

Imports nothing that takes time, so that the program can listen before it imports all else.
"""

import os
import signal
import socket
import sys
import threading
import time

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
EXIT_STOPPED = 75  # EX_TEMPFAIL: the same command again continues
GRACE = 25.0  # seconds; who preempts a machine gives it 30


class StopRequest:
  """Turns the first signal into a request to stop after the step in flight; a second one ends the program at once.

  A thread listens, since the main thread may be compiling for minutes. As long as nobody has asked whether to stop,
  nothing has been trained by this process: then the program ends there and then. Later it ends when it has saved, or
  after `GRACE` without anybody asking, at the newest checkpoint.
  """

  def __init__(self):
    self._signal, self._asked = None, None
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

  def _listen(self) -> None:
    while True:
      for number in self._sockets[0].recv(16):
        if number in NUMBERS:
          self._received(signal.Signals(number))

  def _received(self, number: signal.Signals) -> None:
    if self._signal is not None:
      print(f"\n{number.name} again: ending without saving", file=sys.stderr, flush=True)
      os._exit(128 + number)
    self._signal = number
    if self._asked is None:
      self._end(f"{number.name}: stopped before the first step; run the same command again")
    print(f"\n{number.name}: saving after this step ...", file=sys.stderr, flush=True)
    threading.Thread(target=self._end_unless_asked, args=(time.monotonic(),), name="grace", daemon=True).start()

  def _end_unless_asked(self, since: float) -> None:
    time.sleep(GRACE)
    if self._asked < since:
      self._end(f"{self._signal.name}: no step ended in {GRACE:.0f} s; the run continues from its newest checkpoint")

  def _end(self, message: str) -> None:
    print(f"\n{message}", file=sys.stderr, flush=True)
    os._exit(EXIT_STOPPED)
