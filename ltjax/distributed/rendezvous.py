"""The processes of a run meet at process 0's address before JAX uses it, because JAX aborts where one is missing.

Anybody who reaches the port may connect. Strangers are turned away and delay nobody: all connections are read side by
side, each for at most `_PATIENCE` seconds and `_HELLO` bytes. If LTJAX_TOKEN is set, only processes that know it are
let in.
"""

import hmac
import ipaddress
import json
import math
import os
import selectors
import socket
import sys
import time
from typing import NoReturn

from ltjax.distributed.watchdog import Link, Timing, Watch
from ltjax.errors import MissingProcess

_HELLO = 4096  # bytes
_PATIENCE = 10.0  # seconds before the first report of missing processes, and the longest that a stranger may stay
_STRANGERS = 256  # connections that have not said who they are


def meet(address: str, number: int, count: int, timing: Timing, timeout: float, token: str = "") -> Watch:
  """Waits until all processes have come to `address`, which is then free for JAX.

  Args:
    address: host:port of process 0.
    number: this process's number.
    count: the number of processes.
    timing: the watch's intervals.
    timeout: seconds.
    token: the secret of the run; "" lets everybody in.

  Raises:
    MissingProcess: a process did not come in time; the message names it.
  """
  host, port = address.rsplit(":", 1)
  host, deadline = host.strip("[]"), time.monotonic() + timeout
  if number == 0:
    with _listener(host, int(port), min(deadline, time.monotonic() + 30)) as listener:
      links = _Meeting(listener, count, token).run(deadline, timeout)
  else:
    links = [_join(host, int(port), number, count, token, timing, deadline, timeout)]
  return Watch(number, count, links, timing)


def local_address(host: str) -> str:
  """The address of this machine that `host` resolves to, so as to listen there alone; "" for all addresses.

  All are needed where the others may resolve `host` differently from this machine: a machine's own name is often
  127.0.1.1 to itself, and a service's address belongs to no machine.
  """
  try:
    families = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    address = min((info[4][0].partition("%")[0] for info in families), key=lambda text: ":" in text)
    loopback = ipaddress.ip_address(address).is_loopback
    if loopback and host != "localhost" and host != address:
      return ""
    with socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET):
      return address
  except (OSError, ValueError):
    return ""


def _own_name(number: int) -> str:
  return f"process {number} (host {socket.gethostname()}, pid {os.getpid()})"


class _Meeting:
  """Process 0's side of the meeting: waits for the others."""

  def __init__(self, listener: socket.socket, count: int, token: str):
    self._listener, self._count, self._token = listener, count, token
    self._links, self._selector, self._strangers = {}, selectors.DefaultSelector(), {}
    listener.setblocking(False)  # a caller may be gone by the time it is accepted
    self._selector.register(listener, selectors.EVENT_READ)

  def run(self, deadline: float, timeout: float) -> list[Link]:
    """The links to all others."""
    patient = time.monotonic() + _PATIENCE
    try:
      while missing := [number for number in range(1, self._count) if number not in self._links]:
        left, names = deadline - time.monotonic(), ", ".join(map(str, missing))
        if gone := [link.name for link in self._links.values() if _is_closed(link.connection)]:
          self._refuse(f"{gone[0]} came and has ended before all others were there; look at its log, and start all "
                       "processes again.")
        if left <= 0:
          self._refuse(f"{len(missing)} of {self._count} processes did not come within {timeout:.0f} s: process "
                       f"{names}; start it, or look at its own log, and start all of them again.")
        if time.monotonic() > patient:
          print(f"waiting for process {names} of {self._count} ...", file=sys.stderr, flush=True)
          patient = math.inf
        for link in self._links.values():  # a sign of life: the others give up after a heartbeat without one
          link.send(dict(wait=missing), 1.0)
        self._serve(min(left, 1.0))
    finally:
      for connection in list(self._strangers):
        self._turn_away(connection)
      self._selector.close()
    for link in self._links.values():
      link.send(dict(go=_own_name(0)), 1.0)
    return list(self._links.values())

  def _serve(self, seconds: float) -> None:
    """Accepts and reads whatever has come; returns after `seconds`, or when a process has come."""
    until, known = time.monotonic() + seconds, len(self._links)
    while len(self._links) == known and (left := until - time.monotonic()) > 0:
      for key, _ in self._selector.select(left):
        if key.fileobj is self._listener:
          self._accept()
        elif key.fileobj in self._strangers:
          self._read(key.fileobj)
      for connection, (since, _) in list(self._strangers.items()):
        if time.monotonic() - since > _PATIENCE:
          self._turn_away(connection)

  def _accept(self) -> None:
    try:
      connection, _ = self._listener.accept()
    except OSError:
      return
    if len(self._strangers) >= _STRANGERS:
      self._turn_away(next(iter(self._strangers)))  # the one that has been silent for longest
    connection.setblocking(False)
    self._strangers[connection] = time.monotonic(), b""
    self._selector.register(connection, selectors.EVENT_READ)

  def _read(self, connection: socket.socket) -> None:
    since, data = self._strangers[connection]
    try:
      more = connection.recv(_HELLO)
    except BlockingIOError:
      return
    except OSError:
      more = b""
    data += more
    self._strangers[connection] = since, data
    if data.endswith(b"\n") and data.count(b"\n") == 1:  # a process says one line and waits
      self._selector.unregister(connection)
      del self._strangers[connection]
      if link := self._hello(connection, _parse(data)):
        self._links[link.number] = link
    elif not more or b"\n" in data or len(data) >= _HELLO:
      self._turn_away(connection)

  def _turn_away(self, connection: socket.socket) -> None:
    self._selector.unregister(connection)
    del self._strangers[connection]
    connection.close()

  def _hello(self, connection: socket.socket, line: dict | None) -> Link | None:
    """The process that has called; None, after telling it why, if it does not belong to this run."""
    # `type` and not `isinstance`, for which True is an int.
    if line is None or [type(line.get(key)) for key in ("number", "count", "name", "token")] != [int, int, str, str]:
      connection.close()
      return None
    link, reason = Link(line["number"], line["name"], connection), None
    # In constant time, so that nobody can guess the token letter by letter.
    if not hmac.compare_digest(line["token"].encode("utf-8", "replace"), self._token.encode("utf-8", "replace")):
      reason = f"{link.name} has another LTJAX_TOKEN than process 0; give all processes of the run the same."
    elif line["count"] != self._count:
      reason = (f"{link.name} expects {line['count']} processes, but process 0 expects {self._count}; give all the "
                "same number.")
    elif not 0 < link.number < self._count:
      reason = f"{link.name} has a number that is not its own; give each process its own, from 0 to {self._count - 1}."
    elif link.number in self._links:
      reason = f"{link.name} has the number of {self._links[link.number].name}; give each process its own."
    if reason:
      link.send(dict(refused=reason), 1.0)
      connection.close()
      return None
    return link

  def _refuse(self, sentence: str) -> NoReturn:
    """Ends the meeting for all who have come."""
    for link in self._links.values():
      link.send(dict(refused=sentence), 1.0)
    raise MissingProcess(sentence)


def _listener(host: str, port: int, deadline: float) -> socket.socket:
  """A listening socket; waits if the previous run still holds the port."""
  address = local_address(host)
  family = socket.AF_INET6 if ":" in address or not address and socket.has_dualstack_ipv6() else socket.AF_INET
  while True:
    try:
      return socket.create_server((address, port), family=family, backlog=1024,
                                  dualstack_ipv6=not address and family == socket.AF_INET6)
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


def _join(host: str, port: int, number: int, count: int, token: str, timing: Timing, deadline: float,
          timeout: float) -> Link:
  heard, hello = False, json.dumps(dict(number=number, count=count, name=_own_name(number), token=token))
  while (left := deadline - time.monotonic()) > 0:
    try:
      connection = socket.create_connection((host, port), timeout=min(left, 5.0))
      connection.sendall(hello.encode() + b"\n")
    except OSError:
      answer = None
    else:
      while "wait" in (answer := _line(connection, timing.heartbeat) or {}):
        heard = True
      if "refused" in answer:
        raise MissingProcess(answer["refused"])
      if "go" in answer:
        return Link(0, answer["go"], connection)
      connection.close()
    if heard:
      raise MissingProcess(f"process 0 at {host}:{port} was there, but has ended or stopped before all others were; "
                           "look at its log, and start all processes again.")
    time.sleep(0.2)
  raise MissingProcess(f"process 0 did not answer at {host}:{port} within {timeout:.0f} s; start it, or look at its "
                       "own log, and start all processes again.")


def _line(connection: socket.socket, timeout: float) -> dict | None:
  """The first line received, a JSON object; None for anything else, or nothing."""
  deadline, data = time.monotonic() + timeout, b""
  try:
    while not data.endswith(b"\n") and len(data) < _HELLO:
      connection.settimeout(max(deadline - time.monotonic(), 0.01))
      byte = connection.recv(1)  # one at a time: bytes after the line belong to the next reader
      if not byte:
        return None
      data += byte
  except OSError:
    return None
  return _parse(data)


def _parse(data: bytes) -> dict | None:
  try:
    message = json.loads(data)
  except (ValueError, RecursionError):
    return None
  return message if isinstance(message, dict) else None
