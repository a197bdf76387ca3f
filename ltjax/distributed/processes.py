"""Runs of several processes: how they start, what process 0 sends to the others, and how all stop at the same step.

Local processes and those of Kubernetes read their number from LTJAX_COORDINATOR=host:port, LTJAX_PROCESSES=N and
LTJAX_PROCESS_ID=0..N-1; Slurm steps and TPU pods are recognised. Only process 0 touches the work folder.
"""

import collections
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from ltjax.distributed import sharding, signals
from ltjax.distributed.rendezvous import local_address, meet
from ltjax.distributed.watchdog import FAILED, Timing, Watch
from ltjax.errors import ConfigError, LtjaxError

_NAMES = ("LTJAX_COORDINATOR", "LTJAX_PROCESSES", "LTJAX_PROCESS_ID")
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_CHUNK = 2**24  # bytes sent at a time
_EXPLAIN = 8.0  # seconds; the watch names a process that has ended sooner than this
_SILENT = 8.0  # seconds of silence, four beats, after which a process is worth naming
_watch: Watch | None = None  # one per process, like JAX's own state


def start(environment: Mapping[str, str] = os.environ, *, init_timeout: float = 300) -> None:
  """Joins this process to the others of its run, if there are any; call it before JAX has a backend.

  Environment variables set the limits. A process counts as lost after LTJAX_HEARTBEAT (20) seconds of silence. This
  process ends the run after LTJAX_STALL (1800) seconds without progress. It waits for the others for LTJAX_INIT_TIMEOUT
  seconds (default: `init_timeout`). LTJAX_TOKEN is a secret, the same for all processes of the run.

  Raises:
    ConfigError: the environment describes the processes incompletely, or switches compilation off.
    MissingProcess: a process did not come in time, or one ended meanwhile.
  """
  global _watch
  if jax.config.jax_disable_jit:
    raise ConfigError("JAX_DISABLE_JIT: ltjax trains with compiled steps only; unset it, and look into a step with "
                      "`python -m ltjax debug_step`")
  init_timeout = _seconds(environment, "LTJAX_INIT_TIMEOUT", init_timeout)
  run = _named(environment) or _recognised(environment, init_timeout)
  if not run or run[1] == 1:
    return
  heartbeat = _seconds(environment, "LTJAX_HEARTBEAT", 20.0)
  timing = Timing(min(2.0, heartbeat / 5), heartbeat, _seconds(environment, "LTJAX_STALL", 1800.0))
  address, count, number, devices = run
  _watch = meet(address, number, count, timing, init_timeout, environment.get("LTJAX_TOKEN", ""))
  signals.tell_others = lambda sentence: _watch.stop(f"process {number} was asked to stop: {sentence}")
  # All are there. JAX waits 10 seconds longer than the watch, so that the watch names a lost process before JAX aborts.
  late = math.ceil(heartbeat) + 10
  # The service would catch SIGTERM itself.
  jax.config.update("jax_enable_preemption_service", False)
  host, port = address.rsplit(":", 1)
  own = local_address(host.strip("[]")) if number == 0 else ""
  bind = f"{f'[{own}]' if ':' in own else own}:{port}" if own else None  # None: all addresses
  jax.distributed.initialize(address, count, number, local_device_ids=devices, cluster_detection_method="deactivate",
                             coordinator_bind_address=bind, initialization_timeout=math.ceil(init_timeout),
                             heartbeat_timeout_seconds=late)
  _connect()


def _connect() -> None:
  """Runs a first sum over all devices while all processes are waiting for it.

  The first sum connects the processes, and Gloo gives up after 30 seconds if one of them is late. During the run a
  process may well be late, because each compiles at its own pace; once connected, they wait for each other.
  """
  mesh = sharding.data_mesh()
  rows = sharding.place(np.ones(len(mesh.local_devices), np.float32), mesh)
  gather(None)
  jax.block_until_ready(jax.jit(jnp.sum, out_shardings=sharding.replicated(mesh))(rows))


def _named(environment: Mapping[str, str]) -> tuple | None:
  """(address, processes, number, None) from the environment variables; None where they are not set."""
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
    raise ConfigError(f"LTJAX_PROCESSES: expected the number of processes, got {count!r}")
  if not number.isdecimal() or int(number) >= int(count):
    raise ConfigError(f"LTJAX_PROCESS_ID: expected 0 to {int(count) - 1}, got {number!r}")
  return address, int(count), int(number), None


def _recognised(environment: Mapping[str, str], timeout: float) -> tuple | None:
  """(address, processes, number, ids of local devices) of a Slurm step or a TPU pod; None elsewhere."""
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
  # Our only use of a private part of JAX. jax.distributed.initialize() does the same but hides the address; we need
  # it, to meet there first and name the processes that do not come.
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
  """Tells the watch that the main thread has reached `phase`, such as "representation step 120"; costs nothing."""
  if _watch:
    _watch.report_progress(phase)


def find_lost(error: Exception) -> str:
  """Call it after an `error` that the loss of another process may have caused; does not return if one is lost.

  A collective fails as soon as a connection closes, with a ValueError or JaxRuntimeError; a moment later the watch
  knows which process closed it, says so and ends this process. If all are there, this returns after some seconds: a
  sentence to print before exit code 69 if a collective gave up waiting for a slow or paused process, "" if `error` has
  another cause.
  """
  if not _watch:
    return ""
  late = _watch.unheard(_SILENT)
  time.sleep(_EXPLAIN)
  if re.search("[Gg]loo|DEADLINE_EXCEEDED|[Tt]imed out", str(error)):
    return (f"a sum over all processes failed ({' '.join(str(error).split())[:200]}), as one of them came too late for "
            f"it{f': {late}' if late else ''}; the newest checkpoint is intact: run the same command on all processes "
            "again to continue")
  return ""


def leave(code: int, words: str) -> None:
  """Call it before this process exits with `code`; `words` tell the others why, unless it finished or was stopped.

  Waits for the others if all is well, and does not return otherwise.
  """
  if not _watch:
    return
  well = code in (0, 75)
  if _watch.leave(words if well else FAILED + words):
    # No other process waits for this one any more, so JAX's own shutdown must not delay it for long.
    timer = threading.Timer(20.0, signals.leave, (code,))
    timer.daemon = True
    timer.start()
    jax.distributed.shutdown()
    timer.cancel()
  else:
    signals.leave(code)


# -- from process 0 to all --------------------------------------------------------------------------------------------


def from_first(function: Callable[[], Any]) -> Any:
  """Calls `function` on process 0 alone and returns its result on all processes.

  The result consists of dicts with string keys, lists, tuples, JSON values and arrays; arrays arrive as NumPy arrays.

  Raises:
    LtjaxError: `function` raised it, and now all processes do. Any other error is raised by process 0; the others raise
      an LtjaxError that quotes it.
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
  """The `value` of every process, on every process; all must call it. For JSON values, without arrays."""
  if not _watch:
    return [value]
  if not is_first():
    _watch.send(value)
  return from_first(lambda: [value, *(_watch.receive(number) for number in range(1, _watch.count))])


def _pack(value: Any, arrays: list[np.ndarray]) -> dict:
  """A description of `value` in JSON; its arrays are appended to `arrays` instead."""
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
  """(type, shape) of each array of a description, in order."""
  (kind, value), = packed.items()
  if kind == "array":
    return [(np.dtype(value[0]), tuple(value[1]))]
  items = value.values() if kind == "mapping" else value if kind in ("list", "tuple") else ()
  return [spec for item in items for spec in _specs(item)]


def _shared(arrays: list[np.ndarray], specs: list[tuple]) -> list[np.ndarray]:
  """The arrays of process 0 on all processes, which know their types and shapes."""
  # As bytes, because JAX sends by summing the processes' values, which turns -0.0 into 0.0. Each array starts at a
  # multiple of 64 bytes, so that any type can view it.
  sizes = [math.prod(shape) * kind.itemsize for kind, shape in specs]
  starts = np.cumsum([0, *(math.ceil(size / 64) * 64 for size in sizes)])
  joined = np.zeros(starts[-1], np.uint8)
  parts = [joined[start : start + size] for start, size in zip(starts, sizes, strict=False)]
  for part, array in zip(parts, arrays, strict=False):
    part[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
  for first in range(0, len(joined), _CHUNK):
    with jax.transfer_guard("allow"):
      joined[first : first + _CHUNK] = multihost_utils.broadcast_one_to_all(joined[first : first + _CHUNK])
  return [part.view(kind).reshape(shape) for part, (kind, shape) in zip(parts, specs, strict=True)]


def _error_class(name: str) -> type[LtjaxError]:
  """The subclass of LtjaxError with that name, or LtjaxError."""
  known, by_name = [LtjaxError], {}
  while known:
    error = known.pop()
    by_name[error.__name__] = error
    known += error.__subclasses__()
  return by_name.get(name, LtjaxError)


# -- stopping together ------------------------------------------------------------------------------------------------


class Agreement:
  """Tells all processes at the same step whether any of them has been asked to stop, without waiting for the devices.

  One object serves all loops of a run. It also keeps the host at most `lag` calls ahead of the devices, so that a
  request is answered soon.
  """

  def __init__(self, asked: Callable[[], bool], mesh: jax.sharding.Mesh):
    """`asked` says whether this process has been asked to stop."""
    self._asked, self._pending, self._stop = asked, collections.deque(), False
    local = len(mesh.local_devices)
    self._flags = {flag: sharding.place(np.full(local, flag), mesh) for flag in (False, True)}
    # `after` is unused, but the sum cannot run before it has been computed.
    self._any = jax.jit(lambda flags, after: jnp.any(flags), keep_unused=True,
                        out_shardings=sharding.replicated(mesh))

  def __call__(self, after: jax.Array, *, lag: int = 2) -> bool:
    """Whether the run stops now; all processes call it after the same steps.

    Args:
      after: a result of the step, an array of any shape on all devices.
      lag: the answer comes from this many calls ago, so it is known by now; 0 waits for the answer of this call.
    """
    asked = bool(self._asked())
    self._pending.append(self._any(self._flags[asked], after))
    while len(self._pending) > lag:
      self._stop |= bool(jax.device_get(self._pending.popleft()))
    return self._stop or (_watch is None and asked)
