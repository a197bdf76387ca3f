"""How SIGTERM, SIGINT, SIGUSR1 or SIGHUP stops a run at any moment, and with which exit code.

The first signal is a request. The loop sees it after the step that it is about to start, waits for the calls that the
devices already have, however long they take, saves, and exits with 75: no step is lost. While it waits it says so every
5 seconds. A run outside its loop, while it compiles, has `GRACE` seconds to get there; then it ends at its newest
checkpoint, because a scheduler that preempts a machine kills its processes soon after. One request often arrives more
than once: systemd and Slurm signal a launcher and its children, and the launcher passes the signal on. So signals
within `AGAIN` seconds of the first count as the same request. A later one ends the program without saving, as does
Ctrl-C pressed again after `AGAIN_BY_HAND` seconds.

Imports nothing slow, so that the program can listen before any other import.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from typing import NoReturn

from ltjax.distributed import console

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
EXIT_STOPPED = 75  # EX_TEMPFAIL: the same command again continues
GRACE = 25.0  # seconds; preempted machines get 30
AGAIN, AGAIN_BY_HAND = 10.0, 1.0  # seconds
REPORT = 5.0  # seconds between two reports that the run waits


def tell_others(sentence: str) -> None:
  """Called before this process exits because of a signal; `processes.start` puts another function in its place."""


def leave(code: int) -> NoReturn:
  """Ends the program at once, after its last line is out.

  On the usual way out Python stops its threads first, and TensorFlow, which is decoding the next batch, reports that as
  an error behind the program's last words.
  """
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError, AttributeError):  # its reader has gone; it is closed; there is none
      stream.flush()
  os._exit(code)


def listen() -> "StopRequest":
  """Listens for signals, and keeps a closed output from ending the run; for programs only."""
  console.protect()
  return StopRequest()


class StopRequest:
  """Turns the first signal into a request to stop, as the module describes; call it to ask whether one has come.

  A thread listens, since the main thread may be compiling for minutes. Until the first call this process has trained
  nothing, so a signal ends it at once, and with it the other processes of its run.
  """

  def __init__(self):
    self._signal, self._since, self._asked = None, 0.0, None
    listener, speaker = socket.socketpair()
    speaker.setblocking(False)
    self._sockets = listener, speaker
    for number in NUMBERS:
      # nohup has SIGHUP ignored, so that a run survives its terminal.
      if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, lambda *_: None)  # Python still writes the number to the socket, which the thread reads
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
      after = time.monotonic() - self._since
      if after >= (AGAIN_BY_HAND if number == self._signal == signal.SIGINT else AGAIN):
        print(f"\n{number.name} again: ending without saving", file=sys.stderr, flush=True)
        os._exit(128 + number)
      return
    self._signal, self._since = number, time.monotonic()
    if self._asked is None:
      self._end(f"{number.name}: stopped before the first step; run the same command again")
    again = AGAIN_BY_HAND if number == signal.SIGINT else AGAIN
    print(f"\n{number.name}: saving after the steps in flight ... (again after {again:.0f} s: end without saving)",
          file=sys.stderr, flush=True)
    threading.Thread(target=self._wait, name="grace", daemon=True).start()

  def _wait(self) -> None:
    """Says every few seconds that the run waits, and ends it if no step ends within `GRACE`."""
    while True:
      time.sleep(REPORT)
      waited = time.monotonic() - self._since
      if self._asked < self._since and waited >= GRACE:
        self._end(f"{self._signal.name}: no step ended in {GRACE:.0f} s; the run continues from its newest checkpoint")
      print(f"\n{self._signal.name}: {waited:.0f} s, still waiting for the steps in flight and the save",
            file=sys.stderr, flush=True)

  def _end(self, sentence: str) -> None:
    print(f"\n{sentence}", file=sys.stderr, flush=True)
    tell_others(sentence)
    os._exit(EXIT_STOPPED)
