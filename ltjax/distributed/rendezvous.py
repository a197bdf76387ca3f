"""Where the processes of a run meet: at process 0's address, before JAX uses it, which aborts where one is missing."""

import json
import math
import os
import socket
import sys
import time
from typing import NoReturn

from ltjax.distributed.watchdog import Link, Timing, Watch
from ltjax.errors import MissingProcess

_HELLO = 4096  # bytes
_PATIENCE = 10.0  # seconds without a word of waiting


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
    links = [_join(host, int(port), number, count, timing, deadline, timeout)]
  return Watch(number, count, links, timing)


def _own_name(number: int) -> str:
  return f"process {number} (host {socket.gethostname()}, pid {os.getpid()})"


def _receive_all(port: int, count: int, deadline: float, timeout: float) -> list[Link]:
  found, patient = {}, time.monotonic() + _PATIENCE
  with _listener(port, min(deadline, time.monotonic() + 30)) as listener:
    while missing := [number for number in range(1, count) if number not in found]:
      left = deadline - time.monotonic()
      gone = [link.name for link in found.values() if _is_closed(link.connection)]
      names = ", ".join(map(str, missing))
      if gone:
        _refuse(found, f"{gone[0]} came and has ended before all others were there; look at its log, and start all "
                "processes again.")
      if left <= 0:
        _refuse(found, f"{len(missing)} of {count} processes did not come within {timeout:.0f} s: process {names}; "
                "start it, or look at its own log, and start all of them again.")
      if time.monotonic() > patient:
        print(f"waiting for process {names} of {count} ...", file=sys.stderr, flush=True)
        patient = math.inf
      for link in found.values():
        link.send(dict(wait=missing), 1.0)
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


def _refuse(found: dict[int, Link], sentence: str) -> NoReturn:
  """Ends the meeting for all who have come."""
  for link in found.values():
    link.send(dict(refused=sentence), 1.0)
  raise MissingProcess(sentence)


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


def _join(host: str, port: int, number: int, count: int, timing: Timing, deadline: float, timeout: float) -> Link:
  heard = False
  while (left := deadline - time.monotonic()) > 0:
    try:
      connection = socket.create_connection((host, port), timeout=min(left, 5.0))
      connection.sendall(json.dumps(dict(number=number, count=count, name=_own_name(number))).encode() + b"\n")
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
