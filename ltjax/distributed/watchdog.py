"""Who of a run's processes is missing: each keeps a TCP connection to process 0, apart from all that JAX does.

JAX's own answer to a lost process is an abort or a wait of minutes, neither of which says who it was. Here every
process says every two seconds what it is doing. One that is killed is known by its closed connection, one that is
stopped by its silence; then all others end within seconds, with its name and exit code 69. JAX's abort is the backstop.
"""

import ctypes
import json
import math
import os
import queue
import signal
import socket
import sys
import threading
import time
from typing import Any, NamedTuple

EXIT_MISSING = 69
FAILED = "failed: "
_MEND = "The last committed checkpoint is intact: run the same command on all processes again to continue."
_GRACE = 3.0  # seconds that a process gets to end by itself after another has failed, as by the same wrong config
_CLOSE = 6.0  # seconds that process 0 stays after it has failed: JAX aborts the others when it goes


class Timing(NamedTuple):
  """Seconds: between beats, of silence, and of a main thread without progress."""

  interval: float
  heartbeat: float
  stall: float


class Link:
  """A connection to another process, and what is known of it."""

  def __init__(self, number: int, name: str, connection: socket.socket):
    self.number, self.name, self.connection = number, name, connection
    self.heard, self.closed, self.beat = time.monotonic(), False, dict(phase="start", count=0, end=None)
    self.inbox, self._ended = queue.SimpleQueue(), 0.0
    self.lock = threading.Lock()
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

  def send(self, message: dict, patience: float = -1) -> None:
    """Sends `message`, if the line is free within `patience` seconds (-1: ever); what is lost is noticed by reading."""
    if self.lock.acquire(timeout=patience):
      try:
        self.connection.sendall(json.dumps(message).encode() + b"\n")
      except OSError:
        pass
      finally:
        self.lock.release()

  def read(self, receive) -> None:
    """Calls `receive(message)` with everything that comes until the connection is closed; a thread of its own."""
    rest = []
    while True:
      try:
        data = self.connection.recv(1 << 16)
      except OSError:
        data = b""
      if not data:
        break
      self.heard = time.monotonic()
      *lines, last = data.split(b"\n")
      for line in lines:
        receive(json.loads(b"".join((*rest, line))))
        rest = []
      rest.append(last)
    self.heard, self.closed = time.monotonic(), True

  def trouble(self, heartbeat: float) -> str | None:
    """What is wrong with the process, in words, once that is sure."""
    end, silent = self.beat["end"] or "", time.monotonic() - self.heard
    if end.startswith(FAILED):
      return f"{self.name} {end}" if time.monotonic() - self._ended > _GRACE else None
    if self.closed and not end:
      return f"{self.name} has ended without a word, killed or crashed; it was last known at: {self.beat['phase']}."
    if silent > heartbeat and not self.closed:
      return f"{self.name} has been silent for {silent:.0f} s; it was last known at: {end or self.beat['phase']}."
    return None

  def take(self, beat: dict) -> bool:
    """Takes note of a beat; whether it is the last."""
    last = bool(beat["end"]) and not self.beat["end"]
    if last:
      self._ended = time.monotonic()
    self.beat = beat
    return last


class Watch:
  """The watch of process `number` of `count`: a thread that beats and judges, and one for each connection."""

  def __init__(self, number: int, count: int, links: list[Link], timing: Timing):
    self.number, self.count, self._timing = number, count, timing
    self._links = {link.number: link for link in links}
    self._beat, self._progress, self._judging = dict(phase="start", count=0, end=None), time.monotonic(), True
    self._table, self._ending = {}, threading.Lock()
    _delay_aborts()
    for link in links:
      threading.Thread(target=self._read, args=(link,), daemon=True, name=f"watch {link.number}").start()
    threading.Thread(target=self._run, daemon=True, name="watch").start()

  def report_progress(self, phase: str) -> None:
    """The main thread has got to `phase`."""
    self._beat, self._progress = dict(phase=phase, count=self._beat["count"] + 1, end=None), time.monotonic()

  def send(self, value: Any) -> None:
    """Sends a value of JSON's from process 0 to all others, or from one of them to process 0."""
    for link in self._links.values():
      link.send(dict(value=value))

  def receive(self, number: int) -> Any:
    """The next value that process `number` has sent, however long it takes: the watch sees to it that it is alive."""
    return self._links[number].inbox.get()

  def leave(self, words: str) -> bool:
    """Says this process's last words; whether all processes end well.

    It waits for the others, as long as they live, unless it has failed.
    """
    failed = words.startswith(FAILED)
    self._judging = not failed
    self._beat = self._beat | dict(end=words)
    self._tell(patience=1.0)
    deadline = time.monotonic() + (math.inf if not failed else 0 if self.number else _CLOSE)
    links = self._links.values()
    while time.monotonic() < deadline:
      closed, beats = [link for link in links if link.closed], self._beats().values()
      if failed:
        if len(closed) == len(links):
          break
      elif len(beats) == self.count and all(beat["end"] for beat in beats):
        self._tell(patience=1.0)
        return not closed and not any(beat["end"].startswith(FAILED) for beat in beats)
      elif closed and all(link.beat["end"] for link in links):
        break  # of one that is closed without a word, the watch speaks
      time.sleep(0.02)
    return False

  # -- the threads ----------------------------------------------------------------------------------------------------

  def _read(self, link: Link) -> None:
    def receive(message):
      if "beat" in message:
        self._table = message.get("table", {})
        if link.take(message["beat"]) and self.number == 0:
          self._tell(patience=1.0)
      if "value" in message:
        link.inbox.put(message["value"])
      if "verdict" in message and self._judging:
        self._end(message["verdict"])

    link.read(receive)
    self._judge()

  def _run(self) -> None:
    before = time.monotonic()
    while True:
      self._tell(patience=0.1)
      time.sleep(self._timing.interval)
      now = time.monotonic()
      if now - before > 3 * self._timing.interval + 1:  # it was this process that slept
        for link in self._links.values():
          link.heard = now
      before = now
      self._judge()

  def _judge(self) -> None:
    if not self._judging:
      return
    found = [trouble for link in self._links.values() if (trouble := link.trouble(self._timing.heartbeat))]
    if found:
      self._end(" ".join(found))
    idle = time.monotonic() - self._progress
    if idle > self._timing.stall and not self._beat["end"]:
      self._end(f"process {self.number} has made no progress for {idle:.0f} s at: {self._beat['phase']}; "
                f"{self._behind()}.")

  def _behind(self) -> str:
    beats = self._beats()
    furthest = max(beat["count"] for beat in beats.values())
    behind = [f"process {number} is behind, at: {beat['phase']}" for number, beat in sorted(beats.items())
              if beat["count"] < furthest]
    return ", ".join(behind) or "all processes have got as far"

  def _beats(self) -> dict[int, dict]:
    """The last beat of every process that is known."""
    table = {int(number): beat for number, beat in self._table.items()}
    return table | {number: link.beat for number, link in self._links.items()} | {self.number: self._beat}

  def _tell(self, patience: float) -> None:
    message = dict(beat=self._beat)
    if self.number == 0:
      message["table"] = self._beats()
    for link in self._links.values():
      link.send(message, patience)

  def _end(self, sentence: str) -> None:
    """Ends this process because of another, and tells the others why."""
    with self._ending:  # only one thread gets to speak
      if self._judging:
        for link in self._links.values():
          link.send(dict(verdict=sentence, beat=self._beat), 0.5)
        print(f"error: {sentence} {_MEND}", file=sys.stderr, flush=True)
        os._exit(EXIT_MISSING)


def _delay_aborts() -> None:
  """JAX aborts within milliseconds of the loss of process 0: lets the watch speak first.

  The thread that aborts sleeps in the handler, which is the C function itself, called with the signal's number, 6, as
  the seconds; then it aborts.
  """
  libc = ctypes.CDLL(None)
  libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
  libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))
