"""Who of a run's processes is missing: each keeps a TCP connection to process 0, apart from all that JAX does.

JAX's own answer to a lost process is an abort or a wait of minutes, neither of which says who it was. Here every
process says every two seconds what it is doing. One that is killed is known by its closed connection, one that is
stopped by its silence; then all others end within seconds, with its name and exit code 69. JAX's abort is the backstop.
"""

import ctypes
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
from typing import Any, NamedTuple

from ltjax.errors import MissingProcess

EXIT_MISSING = 69
FAILED = "failed: "
_MEND = "The last committed checkpoint is intact: run the same command on all processes again to continue."
_GRACE = 3.0  # seconds that a process gets to end by itself after another has failed, as by the same wrong config
_LEAVE = 60.0  # seconds that a process which is done waits for the others to be done
_HELLO = 4096  # bytes


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
    if end:
      return None
    if self.closed:
      return f"{self.name} has ended without a word, killed or crashed; it was last known at: {self.beat['phase']}."
    if silent > heartbeat:
      return f"{self.name} has been silent for {silent:.0f} s; it was last known at: {self.beat['phase']}."
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

  def at(self, phase: str) -> None:
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
    """Says this process's last words; whether all processes end well, which it waits for unless it has failed."""
    self._beat = self._beat | dict(end=words)
    self._tell(patience=1.0)
    if words.startswith(FAILED):
      return False
    self._judging = False
    deadline = time.monotonic() + _LEAVE
    while time.monotonic() < deadline:
      ends, closed = [beat["end"] or "" for beat in self._beats().values()], any(
          link.closed for link in self._links.values())
      if len(ends) == self.count and all(ends):
        return not any(end.startswith(FAILED) for end in ends) and not closed
      if all(link.closed or link.beat["end"] for link in self._links.values()) and closed:
        return False
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
    if idle > self._timing.stall:
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


# -- the meeting ------------------------------------------------------------------------------------------------------


def meet(address: str, number: int, count: int, timing: Timing, timeout: float) -> Watch:
  """Waits until all processes have come to `address`, which is free for JAX then.

  Raises:
    MissingProcess: somebody has not come within `timeout` seconds; names who.
  """
  host, port = address.rsplit(":", 1)
  host, deadline = host.strip("[]"), time.monotonic() + timeout
  if number == 0:
    links = _receive_all(int(port), count, deadline, timeout)
  else:
    links = [_join(host, int(port), number, count, deadline, timeout)]
  return Watch(number, count, links, timing)


def _own_name(number: int) -> str:
  return f"process {number} (host {socket.gethostname()}, pid {os.getpid()})"


def _receive_all(port: int, count: int, deadline: float, timeout: float) -> list[Link]:
  found: dict[int, Link] = {}
  with _listener(port, min(deadline, time.monotonic() + 30)) as listener:
    while len(found) < count - 1:
      left = deadline - time.monotonic()
      found = {number: link for number, link in found.items() if not _is_closed(link.connection)}
      if left <= 0:
        missing = ", ".join(str(number) for number in range(1, count) if number not in found)
        sentence = (f"{count - 1 - len(found)} of {count} processes did not come within {timeout:.0f} s: process "
                    f"{missing}; start it, or look at its own log, and start all of them again.")
        for link in found.values():
          link.send(dict(refused=sentence), 1.0)
        raise MissingProcess(sentence)
      listener.settimeout(min(left, 1.0))
      try:
        connection, _ = listener.accept()
      except TimeoutError:
        continue
      if link := _hello(connection, count, found):
        found[link.number] = link
  for link in found.values():
    link.send(dict(go=_own_name(0)), 1.0)
  return list(found.values())


def _listener(port: int, deadline: float) -> socket.socket:
  """A listening socket on all addresses; waits for a port that the run before has not yet left."""
  both = socket.has_dualstack_ipv6()
  while True:
    try:
      return socket.create_server(("", port), family=socket.AF_INET6 if both else socket.AF_INET, backlog=1024,
                                  dualstack_ipv6=both)
    except OSError as error:
      if time.monotonic() > deadline:
        raise MissingProcess(f"process 0 cannot listen on port {port} ({error.strerror}); end the run that does, or "
                             "give another port") from error
    time.sleep(0.5)


def _is_closed(connection: socket.socket) -> bool:
  try:
    return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
  except BlockingIOError:
    return False
  except OSError:
    return True


def _hello(connection: socket.socket, count: int, found: dict[int, Link]) -> Link | None:
  """The process that has called, or None where it is none of this run, which is told so."""
  line = _line(connection, 2.0)
  if line is None or [type(line.get(key)) for key in ("number", "count", "name")] != [int, int, str]:
    connection.close()
    return None
  link, reason = Link(line["number"], line["name"], connection), None
  if line["count"] != count:
    reason = f"{link.name} expects {line['count']} processes, but process 0 expects {count}; give all the same number."
  elif not 0 < link.number < count:
    reason = f"{link.name} has a number that is not its own; give each process its own, from 0 to {count - 1}."
  elif link.number in found:
    reason = f"{link.name} has the number of {found[link.number].name}; give each process its own."
  if reason:
    link.send(dict(refused=reason), 1.0)
    connection.close()
    return None
  return link


def _join(host: str, port: int, number: int, count: int, deadline: float, timeout: float) -> Link:
  while (left := deadline - time.monotonic()) > 0:
    try:
      connection = socket.create_connection((host, port), timeout=min(left, 5.0))
      connection.sendall(json.dumps(dict(number=number, count=count, name=_own_name(number))).encode() + b"\n")
      answer = _line(connection, left + 5.0) or {}
    except OSError:
      answer = {}
    if "refused" in answer:
      raise MissingProcess(answer["refused"])
    if "go" in answer:
      return Link(0, answer["go"], connection)
    time.sleep(0.2)
  raise MissingProcess(f"process 0 did not answer at {host}:{port} within {timeout:.0f} s; start it, or look at its "
                       "own log, and start all processes again.")


def _line(connection: socket.socket, timeout: float) -> dict | None:
  """The first line that comes, a JSON object; None where something else comes, or nothing."""
  deadline, data = time.monotonic() + timeout, b""
  try:
    while not data.endswith(b"\n") and len(data) < _HELLO:
      connection.settimeout(max(deadline - time.monotonic(), 0.01))
      # Byte by byte: what follows the line is for whoever reads next.
      byte = connection.recv(1)
      if not byte:
        return None
      data += byte
    found = json.loads(data)
  except (OSError, ValueError):
    return None
  return found if isinstance(found, dict) else None
