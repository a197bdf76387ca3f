"""Finds out which process of a run is missing, over TCP connections to process 0 that are independent of JAX.

When a process is lost, JAX aborts or waits for minutes, and names nobody. Here every process reports every two seconds
what it is doing. A closed connection means that a process was killed, silence that it was stopped; all others then end
within seconds, with its name and exit code 69. JAX's abort is the backstop.
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

from ltjax.distributed.signals import EXIT_STOPPED

EXIT_MISSING = 69
FAILED = "failed: "
_ADVICE = "The last committed checkpoint is intact: run the same command on all processes again to continue."
_GRACE = 3.0  # seconds for a process to end by itself after another has failed, as when both read the same bad config
_CLOSE = 6.0  # seconds that process 0 stays after it has failed: JAX aborts the others when it goes
_LONGEST = 2**26  # bytes of a message


class Timing(NamedTuple):
  """Seconds between beats, seconds of silence and seconds without progress; the last two end the run."""

  interval: float
  heartbeat: float
  stall: float


class Link:
  """A connection to another process, and its last known state."""

  def __init__(self, number: int, name: str, connection: socket.socket):
    self.number, self.name, self.connection = number, name, connection
    self.heard, self.closed, self.beat = time.monotonic(), False, dict(phase="start", count=0, end=None)
    self.inbox, self._ended = queue.SimpleQueue(), 0.0
    self.lock = threading.Lock()
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

  def send(self, message: dict, patience: float = -1) -> None:
    """Sends `message`, unless another thread is sending for longer than `patience` seconds (-1: waits forever).

    A lost connection raises nothing here: the reading thread notices it.
    """
    if self.lock.acquire(timeout=patience):
      try:
        self.connection.sendall(json.dumps(message).encode() + b"\n")
      except OSError:
        pass
      finally:
        self.lock.release()

  def read(self, receive) -> None:
    """Calls `receive(message)` for every message until the connection is closed; runs in its own thread.

    Anything that is not one of our messages, or is too long, ends the connection.
    """
    rest = []
    while sum(map(len, rest)) <= _LONGEST:
      try:
        data = self.connection.recv(1 << 16)
      except OSError:
        data = b""
      if not data:
        break
      self.heard = time.monotonic()
      *lines, last = data.split(b"\n")
      try:
        for line in lines:
          receive(json.loads(b"".join((*rest, line))))
          rest = []
      except (ValueError, RecursionError):
        break
      rest.append(last)
    self.heard, self.closed = time.monotonic(), True

  def trouble(self, heartbeat: float) -> str | None:
    """A sentence about the process's failure, once it is certain; None before."""
    end, silent = self.beat["end"] or "", time.monotonic() - self.heard
    if end.startswith(FAILED):
      return f"{self.name} {end}" if time.monotonic() - self._ended > _GRACE else None
    if self.closed and not end:
      return f"{self.name} has ended without a word, killed or crashed; it was last known at: {self.beat['phase']}."
    if silent > heartbeat and not self.closed:
      return f"{self.name} has been silent for {silent:.0f} s; it was last known at: {end or self.beat['phase']}."
    return None

  def take(self, beat: dict) -> bool:
    """Stores a beat; returns whether it is the last."""
    last = bool(beat["end"]) and not self.beat["end"]
    if last:
      self._ended = time.monotonic()
    self.beat = beat
    return last


class Watch:
  """Watches the other processes for process `number` of `count`: one thread beats and judges, one reads each link."""

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
    """Notes that the main thread has reached `phase`."""
    self._beat, self._progress = dict(phase=phase, count=self._beat["count"] + 1, end=None), time.monotonic()

  def send(self, value: Any) -> None:
    """Sends a JSON value from process 0 to all others, or from one of them to process 0."""
    for link in self._links.values():
      link.send(dict(value=value))

  def receive(self, number: int) -> Any:
    """The next value from process `number`, however long it takes: the watch makes sure that it is alive."""
    return self._links[number].inbox.get()

  def leave(self, words: str) -> bool:
    """Sends this process's last words; returns whether all processes end well.

    Waits for the others as long as they live, unless this process has failed.
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
        break  # the watch names a process that has ended without a word
      time.sleep(0.02)
    return False

  def stop(self, sentence: str) -> None:
    """Tells the others to end with exit code 75, as this process is about to do without another step."""
    with self._ending:
      self._judging = False
      for link in self._links.values():
        link.send(dict(stopped=sentence), 0.5)
      # JAX aborts the others when process 0 goes.
      deadline = time.monotonic() + (0 if self.number else _CLOSE)
      while time.monotonic() < deadline and not all(link.closed for link in self._links.values()):
        time.sleep(0.02)

  def unheard(self, seconds: float) -> str:
    """Names the processes that have been silent for longer than `seconds`; "" if there are none."""
    return ", ".join(f"{link.name}, silent for {silent:.0f} s" for link in self._links.values()
                     if (silent := time.monotonic() - link.heard) > seconds)

  # -- the threads ----------------------------------------------------------------------------------------------------

  def _read(self, link: Link) -> None:
    def receive(message):
      if "beat" in message:
        self._table = message.get("table", {})
        if link.take(message["beat"]) and self.number == 0:
          self._tell(patience=1.0)
      if "value" in message:
        link.inbox.put(message["value"])
      if "stopped" in message and self._judging:
        print(f"\n{message['stopped']}", file=sys.stderr, flush=True)
        self.stop(message["stopped"])
        os._exit(EXIT_STOPPED)
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
      if now - before > 3 * self._timing.interval + 1:  # this process was paused, so the others only seem silent
        for link in self._links.values():
          link.heard = now
      before = now
      self._judge()

  def _judge(self) -> None:
    if not self._judging:
      return
    troubles = [trouble for link in self._links.values() if (trouble := link.trouble(self._timing.heartbeat))]
    if troubles:
      self._end(" ".join(troubles))
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
    """The last beat of every known process."""
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
    with self._ending:  # only one thread may print
      if self._judging:
        for link in self._links.values():
          link.send(dict(verdict=sentence, beat=self._beat), 0.5)
        print(f"error: {sentence} {_ADVICE}", file=sys.stderr, flush=True)
        os._exit(EXIT_MISSING)


def _delay_aborts() -> None:
  """Gives the watch time to report, because JAX aborts within milliseconds of the loss of process 0.

  The handler of SIGABRT becomes the C function `sleep`. It is called with the signal's number, so the thread that
  aborts first sleeps for 6 seconds.
  """
  libc = ctypes.CDLL(None)
  libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
  libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))
