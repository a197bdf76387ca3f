"""Runs of several processes: their start, what process 0 tells the others, and the moment when all of them stop.

Local processes and Kubernetes say who they are by LTJAX_COORDINATOR=host:port, LTJAX_PROCESSES=N and
LTJAX_PROCESS_ID=0..N-1; Slurm steps and TPU pods are recognised. Only process 0 touches the work folder.
"""

import collections
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils

from ltjax.distributed import console, sharding
from ltjax.distributed.rendezvous import meet
from ltjax.distributed.watchdog import FAILED, Timing, Watch
from ltjax.errors import ConfigError, LtjaxError

_NAMES = ("LTJAX_COORDINATOR", "LTJAX_PROCESSES", "LTJAX_PROCESS_ID")
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_CHUNK = 2**24  # bytes of a broadcast that are on the devices at a time
_EXPLAIN = 8.0  # seconds: more than the watch takes to name a process that has ended
_watch: Watch | None = None  # like JAX's own state, one for the process


def start(environment: Mapping[str, str] = os.environ, *, init_timeout: float = 300) -> None:
  """Joins this process to the others of its run, if there are any; to be called before JAX has a backend.

  LTJAX_HEARTBEAT (20) is after how many seconds of silence a process is given up, LTJAX_STALL (1800) after how many
  without progress this one is, LTJAX_INIT_TIMEOUT how long all are waited for, in place of `init_timeout`.

  Raises:
    ConfigError: the environment names processes incompletely.
    MissingProcess: not all have come in time, or one has ended meanwhile.
  """
  global _watch
  init_timeout = _seconds(environment, "LTJAX_INIT_TIMEOUT", init_timeout)
  place = _named(environment) or _recognised(environment, init_timeout)
  if not place or place[1] == 1:
    return
  heartbeat = _seconds(environment, "LTJAX_HEARTBEAT", 20.0)
  timing = Timing(min(2.0, heartbeat / 5), heartbeat, _seconds(environment, "LTJAX_STALL", 1800.0))
  address, count, number, devices = place
  _watch = meet(address, number, count, timing, init_timeout)
  # All are there: whoever is lost from here on is named by the watch, before JAX aborts.
  late = math.ceil(heartbeat) + 10
  # It would take SIGTERM for itself, which is ours to answer.
  jax.config.update("jax_enable_preemption_service", False)
  jax.distributed.initialize(address, count, number, local_device_ids=devices, cluster_detection_method="deactivate",
                             initialization_timeout=2 * late, heartbeat_timeout_seconds=late)
  # Gloo gives a peer 30 s to come to the first collective, which on a busy machine is too short: all come to it
  # together, after a meeting that waits as long as the start does.
  distributed.global_state.client.wait_at_barrier("ltjax start", int(1000 * init_timeout))
  multihost_utils.sync_global_devices("ltjax start")


def _named(environment: Mapping[str, str]) -> tuple | None:
  """(address, processes, number, None) of the environment variables."""
  given = {name: environment[name] for name in _NAMES if environment.get(name)}
  if not given:
    return None
  if missing := [name for name in _NAMES if name not in given]:
    raise ConfigError(f"{missing[0]}: not set, although {next(iter(given))} is; set all of {', '.join(_NAMES)}, "
                      "or none")
  address, count, number = (given[name].strip() for name in _NAMES)
  host, _, port = address.rpartition(":")
  if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
    raise ConfigError(f"LTJAX_COORDINATOR: expected host:port of process 0, as in 10.0.0.1:1234, got {address!r}")
  if not count.isdecimal() or int(count) < 1:
    raise ConfigError(f"LTJAX_PROCESSES: expected how many processes there are, got {count!r}")
  if not number.isdecimal() or int(number) >= int(count):
    raise ConfigError(f"LTJAX_PROCESS_ID: expected 0 to {int(count) - 1}, got {number!r}")
  return address, int(count), int(number), None


def _recognised(environment: Mapping[str, str], timeout: float) -> tuple | None:
  """(address, processes, number, ids of local devices) of a Slurm step or a TPU pod, as JAX sees it."""
  if all(name in environment for name in _SLURM) and environment["SLURM_NTASKS"] != "1":
    method = "slurm"
  elif environment.get("TPU_ML_PLATFORM") != "JAX" or "tpu" not in environment.get("JAX_PLATFORMS", "tpu"):
    return None  # JAX sets the variable where it sees a TPU
  elif {"TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"} & set(environment):
    method = "gketpu"
  elif "TPU_SKIP_MDS_QUERY" not in environment:
    method = "gcetpu"
  else:
    return None
  # The only use of what JAX keeps to itself: jax.distributed.initialize() does the same, but does not say where it will
  # wait, so that nobody else could wait there and see who does not come.
  from jax._src import clusters

  return clusters.ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, method, math.ceil(timeout))


def _seconds(environment: Mapping[str, str], name: str, default: float) -> float:
  try:
    value = float(environment.get(name) or default)
  except ValueError:
    value = math.nan
  if not 0 < value < math.inf:
    raise ConfigError(f"{name}: expected seconds, got {environment[name]!r}")
  return value


# -- the watch --------------------------------------------------------------------------------------------------------


def is_first() -> bool:
  """Whether this is process 0."""
  return _watch is None or _watch.number == 0


def report_progress(phase: str) -> None:
  """The main thread has got to `phase`, as in "representation step 120": progress, which costs nothing to report."""
  if _watch:
    _watch.report_progress(phase)


def find_lost() -> None:
  """After an error that the loss of another process may have caused: does not return where one is lost.

  A collective fails at once where a connection closes, as a ValueError or JaxRuntimeError; a moment later the watch
  knows whose it was, says so and ends this process. It returns after some seconds where all are there.
  """
  if _watch:
    time.sleep(_EXPLAIN)


def protect_output() -> None:
  """Keeps a closed pipe or a full disk behind standard output from ending a run."""
  console.protect()


def are_several() -> bool:
  """Whether this process has joined others."""
  return _watch is not None


def leave(code: int, words: str) -> None:
  """This process is about to exit with `code`; `words` tell the others why, where they are not "finished" or "stopped".

  Waits for the others where all is well, and does not return where it is not.
  """
  if not _watch:
    return
  well = code in (0, 75)
  if _watch.leave(words if well else FAILED + words):
    # Nobody misses this process any more; what JAX still has to say to the others must not keep it.
    timer = threading.Timer(20.0, _exit, (code,))
    timer.daemon = True
    timer.start()
    jax.distributed.shutdown()
    timer.cancel()
  else:
    _exit(code)


def _exit(code: int) -> None:
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


# -- from process 0 to all --------------------------------------------------------------------------------------------


def from_first(function: Callable[[], Any]) -> Any:
  """Calls `function` on process 0 alone and gives its result to all processes.

  It returns dicts with string keys, lists and tuples of JSON's values and arrays; arrays come as NumPy's.

  Raises:
    LtjaxError: the same, of the same class, on all processes; where `function` raises something else, process 0 raises
      that, and the others say so.
  """
  if not _watch:
    return function()
  arrays = []
  if is_first():
    try:
      packed = _pack(function(), arrays)
    except Exception as error:
      text = str(error) if isinstance(error, LtjaxError) else f"process 0 failed: {type(error).__name__}: {error}"
      _watch.send(dict(error=type(error).__name__, text=text))
      raise
    _watch.send(dict(packed=packed))
  else:
    message = _watch.receive(0)
    if "error" in message:
      raise _error_class(message["error"])(message["text"])
    packed = message["packed"]
  return _unpack(packed, iter(_shared(arrays, _specs(packed))))


def gather(value: Any) -> list:
  """`value` of every process, on all of them: what JSON can hold, without arrays; to be called by all."""
  if not _watch:
    return [value]
  if not is_first():
    _watch.send(value)
  return from_first(lambda: [value, *(_watch.receive(number) for number in range(1, _watch.count))])


def _pack(value: Any, arrays: list[np.ndarray]) -> dict:
  """A description of `value` in JSON, without the arrays in it, which are appended to `arrays`."""
  if isinstance(value, Mapping):
    return dict(mapping={key: _pack(item, arrays) for key, item in value.items()})
  if isinstance(value, list | tuple):
    return {type(value).__name__: [_pack(item, arrays) for item in value]}
  if isinstance(value, np.ndarray | np.generic | jax.Array):
    arrays.append(np.asarray(jax.device_get(value)))
    return dict(array=[arrays[-1].dtype.name, arrays[-1].shape])
  if value is not None and not isinstance(value, str | int | float):
    raise TypeError(f"{type(value).__name__} cannot be sent to other processes")
  return dict(json=value)


def _unpack(packed: dict, arrays: Iterator[np.ndarray]) -> Any:
  (kind, value), = packed.items()
  if kind == "mapping":
    return {key: _unpack(item, arrays) for key, item in value.items()}
  if kind in ("list", "tuple"):
    return dict(list=list, tuple=tuple)[kind](_unpack(item, arrays) for item in value)
  return next(arrays) if kind == "array" else value


def _specs(packed: dict) -> list[tuple]:
  """(type, shape) of the arrays of a description, in order."""
  (kind, value), = packed.items()
  if kind == "array":
    return [(np.dtype(value[0]), tuple(value[1]))]
  items = value.values() if kind == "mapping" else value if kind in ("list", "tuple") else ()
  return [spec for item in items for spec in _specs(item)]


def _shared(arrays: list[np.ndarray], specs: list[tuple]) -> list[np.ndarray]:
  """The arrays of process 0, byte by byte, on all processes, which know their types and shapes."""
  # Bytes, since what sums the processes' values would turn -0.0 into 0.0; each array aligned to 64 of them.
  sizes = [math.prod(shape) * kind.itemsize for kind, shape in specs]
  starts = np.cumsum([0, *(math.ceil(size / 64) * 64 for size in sizes)])
  whole = np.zeros(starts[-1], np.uint8)
  parts = [whole[start : start + size] for start, size in zip(starts, sizes, strict=False)]
  for part, array in zip(parts, arrays, strict=False):
    part[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
  for first in range(0, len(whole), _CHUNK):
    with jax.transfer_guard("allow"):
      whole[first : first + _CHUNK] = multihost_utils.broadcast_one_to_all(whole[first : first + _CHUNK])
  return [part.view(kind).reshape(shape) for part, (kind, shape) in zip(parts, specs, strict=True)]


def _error_class(name: str) -> type[LtjaxError]:
  """The error of ours of that name, or their base."""
  known, found = [LtjaxError], {}
  while known:
    error = known.pop()
    found[error.__name__] = error
    known += error.__subclasses__()
  return found.get(name, LtjaxError)


# -- stopping together ------------------------------------------------------------------------------------------------


class Agreement:
  """Whether any process has been asked to stop, known to all at the same step, without waiting for the devices.

  One object serves all loops of a run. It also keeps the host at most `lag` calls ahead of the devices, so that a
  request is answered soon.
  """

  def __init__(self, asked: Callable[[], bool], mesh: jax.sharding.Mesh):
    """`asked` says whether this process has been asked."""
    self._asked, self._pending, self._stop = asked, collections.deque(), False
    local = len(mesh.local_devices)
    self._flags = {flag: sharding.place(np.full(local, flag), mesh) for flag in (False, True)}
    # Unused, `after` still has to be there before this can run.
    self._any = jax.jit(lambda flags, after: jnp.any(flags), keep_unused=True,
                        out_shardings=sharding.replicated(mesh))

  def __call__(self, after: jax.Array, *, lag: int = 2) -> bool:
    """Whether the run stops now; to be called by all processes after the same steps.

    Args:
      after: what the step has computed, an array of any shape on all devices.
      lag: the answer is that of so many calls ago, which is known by then; 0 waits for the one of this call.
    """
    asked = bool(self._asked())
    self._pending.append(self._any(self._flags[asked], after))
    while len(self._pending) > lag:
      self._stop |= bool(jax.device_get(self._pending.popleft()))
    return self._stop or (_watch is None and asked)
