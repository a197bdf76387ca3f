"""Runs of real local processes: each runs `python -m tests.test_processes CASE`."""

import contextlib
import json
import os
import signal
import socket
import sys
import time

import jax
import numpy as np
import pytest

from ltjax import errors
from ltjax.distributed import processes, rendezvous, sharding, signals, watchdog
from tests.processes import Processes, free_port

SHORT = dict(LTJAX_HEARTBEAT="3", LTJAX_INIT_TIMEOUT="20")
MODULE = "tests.test_processes"

# -- the processes' programs -------------------------------------------------------------------------------------------


def say(**found) -> None:
  print(json.dumps(found))


def case_together() -> None:
  """The values that process 0 sends to the others, and the step at which all stop."""
  me = jax.process_index()
  say(me=me, first=processes.is_first(), count=jax.process_count())
  values = dict(w=np.float32([-0.0, np.nan, np.inf, 1e-45]), n=np.int64(2**60), e=np.zeros((0, 3)),
                b=jax.numpy.arange(3, dtype="bfloat16"),
                big=np.random.default_rng(0).integers(0, 256, 2**24 + 5, "uint8"))
  found = processes.from_first(lambda: dict(values, plain=[1, None, "é"], pair=(True, 2.5)))
  same = {key: found[key].tobytes() == np.asarray(value).tobytes() and found[key].dtype == value.dtype and
          found[key].shape == value.shape for key, value in values.items()}
  say(same=same, plain=found["plain"], tuple=isinstance(found["pair"], tuple), pair=found["pair"],
      called=processes.from_first(lambda: jax.process_index()),
      gathered=processes.gather({"of": me}))
  for error in (errors.WorkdirError("--workdir: größer"), OSError(28, "No space left"), None):
    def fail(error=error):
      if error:
        raise error
      return object()
    try:
      processes.from_first(fail)
    except Exception as caught:
      say(error=type(caught).__name__, text=str(caught))

  mesh, asked = sharding.data_mesh(), []
  agreement = processes.Agreement(lambda: me == 1 and len(asked) == 5, mesh)
  step = jax.jit(lambda state: state * 0.5 + 1, out_shardings=sharding.replicated(mesh), donate_argnums=0)
  state = sharding.replicate(np.ones(4, np.float32), mesh)
  with jax.transfer_guard("disallow"):
    while len(asked) < 50:
      state = step(state)
      asked.append(None)
      processes.report_progress(f"step {len(asked)}")
      if agreement(state):
        break
    say(stopped_at=len(asked), now=[agreement(state, lag=0) for _ in range(2)])


def case_loop() -> None:
  """Steps that need all processes, for as long as they live."""
  mesh = sharding.data_mesh()
  agreement = processes.Agreement(lambda: False, mesh)
  add = jax.jit(lambda rows: rows + rows.sum(), out_shardings=sharding.split(mesh))
  rows = sharding.place(np.zeros(len(mesh.local_devices), np.float32), mesh)
  try:
    for step in range(10**6):
      processes.report_progress(f"step {step}")
      rows = add(rows)
      agreement(rows)
      print(f"step {step}")
      time.sleep(0.02)
  except (ValueError, jax.errors.JaxRuntimeError) as error:
    processes.find_lost(error)
    raise


def case_watch() -> None:
  """The watch alone, without JAX."""
  number, count = int(os.environ["LTJAX_PROCESS_ID"]), int(os.environ["LTJAX_PROCESSES"])
  timing = watchdog.Timing(0.2, float(os.environ["LTJAX_HEARTBEAT"]), float(os.environ.get("LTJAX_STALL", 1800)))
  print("here")
  try:
    watch = rendezvous.meet(os.environ["LTJAX_COORDINATOR"], number, count, timing,
                            float(os.environ["LTJAX_INIT_TIMEOUT"]), os.environ.get("LTJAX_TOKEN", ""))
  except errors.MissingProcess as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(watchdog.EXIT_MISSING)
  print("met")
  what = os.environ.get(f"DOES_{number}", "waits")
  for step in range(20 if what == "lags" else 30):
    watch.report_progress(f"phase {step}")
    time.sleep(0.01)
  if what == "ends":
    say(well=watch.leave("finished"))
  elif what == "ends late":
    time.sleep(1.5)
    say(well=watch.leave("finished"))
  elif what == "fails":
    watch.leave("failed: no such image")
    os._exit(2)
  else:
    time.sleep(60)


def case_stopped() -> None:
  """Processes of which some get a request to stop before their first step."""
  number, stop = int(os.environ["LTJAX_PROCESS_ID"]), signals.StopRequest()
  processes.start()
  if f"{number}" in os.environ["ASK"]:
    stop()  # the others may be compiling
  print("started")
  time.sleep(60)


def _work(case: str) -> None:
  if case == "stopped":
    case_stopped()
    return
  if case == "watch":
    case_watch()
    return
  try:
    processes.start(init_timeout=20)
  except errors.MissingProcess as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(watchdog.EXIT_MISSING)
  globals()[f"case_{case}"]()
  processes.leave(0, "finished")
  print("left")


# -- their ends --------------------------------------------------------------------------------------------------------


def said(text: str) -> dict:
  lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
  return {key: [line[key] for line in lines if key in line] for key in set().union(*lines)}


@pytest.mark.parametrize("count", [1, 2, 4])
def test_together(count):
  each = [{}] if count == 1 else None
  with Processes([MODULE, "together"], count, each=each) as run:
    ended = run.all_ended(90)
  found = [said(process.out) for process in ended]
  assert [process.code for process in ended] == [0] * count, ended
  assert all(process.out.splitlines()[-1] == "left" for process in ended)
  for number, process in enumerate(found):
    assert (process["me"], process["first"], process["count"]) == ([number], [number == 0], [count])
    assert all(process["same"][0].values()) and len(process["same"][0]) == 5
    assert process["plain"] == [[1, None, "é"]] and process["pair"] == [[True, 2.5]] and process["tuple"] == [True]
    assert process["called"] == [0]
    assert process["gathered"] == [[{"of": other} for other in range(count)]]
    assert process["error"][0] == "WorkdirError" and process["text"][0] == "--workdir: größer"
    assert process["error"][1] == ("LtjaxError" if number else "OSError")
    assert "No space left" in process["text"][1]
    assert count == 1 or "object cannot be sent" in process["text"][2]
    # Process 1 gets its request at step 5, and the answer lags two steps; a single process gets none.
    assert process["stopped_at"] == [50 if count == 1 else 7] and process["now"] == [[count > 1] * 2]


def test_one_process_stops_at_once_and_is_bounded():
  asked = iter([False, True])
  agreement, ones = processes.Agreement(lambda: next(asked), sharding.data_mesh()), jax.numpy.ones(3)
  assert [agreement(ones) for _ in range(2)] == [False, True]
  processes.report_progress("anything")
  assert processes.is_first() and processes.gather(1) == [1]


@pytest.mark.parametrize(("victim", "how"), [(0, "SIGKILL"), (1, "SIGSTOP")])  # the watch alone has the others below
def test_a_lost_process_ends_the_others_with_its_name(victim, how):
  with Processes([MODULE, "loop"], 2, environment=SHORT) as run:
    for number in range(2):
      run.wait_for(number, "step 50")
    run.send(victim, getattr(signal, how))
    other = run.ended(1 - victim, 40)
  assert other.code == watchdog.EXIT_MISSING, other
  sentence = next(line for line in other.err.splitlines() if line.startswith("error: "))
  assert sentence.startswith(f"error: process {victim} (host {socket.gethostname()}, pid ")
  assert ("silent for" if how == "SIGSTOP" else "killed or crashed") in sentence
  assert "last known at: step" in sentence and "checkpoint is intact" in sentence
  assert "Traceback" not in other.err, other.err


@pytest.mark.parametrize(("count", "ask", "victims"), [(3, "02", (1,)), (2, "1", (0, 1))])
def test_a_process_stopped_before_its_first_step_stops_all(count, ask, victims):
  with Processes([MODULE, "stopped"], count, environment=SHORT | dict(ASK=ask)) as run:
    for number in range(count):
      run.wait_for(number, "started")
    for number in victims:
      run.send(number, signal.SIGTERM)
    ended = run.all_ended(30)
  assert [process.code for process in ended] == [75] * count, ended
  assert "SIGTERM: stopped before the first step" in ended[victims[0]].err
  for other in set(range(count)) - set(victims):
    assert f"process {victims[0]} was asked to stop: SIGTERM: stopped before" in ended[other].err
  assert not any("without a word" in process.err or "Traceback" in process.err for process in ended), ended


def watching(count, **environment):
  return Processes([MODULE, "watch"], count, environment=SHORT | environment)


@pytest.mark.parametrize(("absent", "sentence"), [
    ((2,), "1 of 3 processes did not come within 2 s: process 2;"),
    ((1, 2), "2 of 3 processes did not come within 2 s: process 1, 2;"),
    ((0,), "process 0 did not answer at localhost:"),
])
def test_a_process_that_never_comes_is_named(absent, sentence):
  with Processes([MODULE, "watch"], 3, environment=SHORT | dict(LTJAX_INIT_TIMEOUT="2"), absent=absent) as run:
    ended = run.all_ended(30)
  assert all(process.code == watchdog.EXIT_MISSING and sentence in process.err for process in ended), ended
  assert all("Traceback" not in process.err for process in ended)


def test_a_process_lost_while_the_others_wait_is_named():
  cases = {(0, "SIGKILL"): "process 0 at localhost:", (0, "SIGSTOP"): "process 0 at localhost:",
           (1, "SIGKILL"): "process 1 (host ",
           (1, "SIGSTOP"): "did not come within 5 s: process 2;"}  # process 1 has not been needed yet
  with contextlib.ExitStack() as stack:
    runs = {case: stack.enter_context(Processes([MODULE, "watch"], 3, absent=(2,), environment=SHORT | dict(
        LTJAX_INIT_TIMEOUT="5"))) for case in cases}
    for run in runs.values():
      for number in range(2):
        run.wait_for(number, "here")
    time.sleep(1)
    for (victim, how), run in runs.items():
      run.send(victim, getattr(signal, how))
    for (victim, how), run in runs.items():
      other = run.ended(1 - victim, 15)
      assert other.code == watchdog.EXIT_MISSING and "Traceback" not in other.err
      assert cases[victim, how] in other.err, other


@pytest.mark.parametrize(("second", "sentence"), [
    (dict(LTJAX_PROCESS_ID="1", LTJAX_PROCESSES="3"), "expects 3 processes, but process 0 expects 2"),
    (dict(LTJAX_PROCESS_ID="2", LTJAX_PROCESSES="2"), "has a number that is not its own"),
])
def test_a_process_of_another_run_is_refused(second, sentence):
  address = dict(LTJAX_COORDINATOR=f"localhost:{free_port()}")
  each = [address | dict(LTJAX_PROCESS_ID="0", LTJAX_PROCESSES="2"), address | second]
  with Processes([MODULE, "watch"], 2, environment=SHORT | dict(LTJAX_INIT_TIMEOUT="2"), each=each) as run:
    first, other = run.all_ended(30)
  assert other.code == watchdog.EXIT_MISSING and sentence in other.err, other
  assert first.code == watchdog.EXIT_MISSING and "did not come within 2 s: process 1;" in first.err, first


@pytest.mark.parametrize("which", [0, 2])
def test_a_failing_process_is_reported_by_the_others(which):
  with watching(3, **{f"DOES_{which}": "fails", "DOES_1": "ends"}) as run:
    ended = run.all_ended(30)
  failed = ended.pop(which)
  assert failed.code == 2 and "error" not in failed.err
  for other in ended:
    assert other.code == watchdog.EXIT_MISSING and f"process {which} (" in other.err, other
    assert "failed: no such image" in other.err


def test_a_process_lost_after_others_have_finished_is_named():
  with watching(3, DOES_0="ends", DOES_2="ends") as killed, watching(2, DOES_0="ends") as stopped:
    for run in (killed, stopped):
      run.wait_for(1, "met")
    time.sleep(1)
    killed.send(1, signal.SIGKILL)
    stopped.send(0, signal.SIGSTOP)
    first, _, last = killed.all_ended(30)
    other = stopped.ended(1, 30)
  assert first.code == last.code == other.code == watchdog.EXIT_MISSING
  assert "process 1 (" in first.err and "process 1 (" in last.err
  assert "process 0 (" in other.err and "silent for" in other.err


def test_a_process_that_ends_well_is_not_reported():
  with watching(3, DOES_0="ends", DOES_1="ends late", DOES_2="ends") as run:
    ended = run.all_ended(30)
  assert [(process.code, said(process.out)["well"], process.err) for process in ended] == [(0, [True], "")] * 3


def test_a_stall_is_reported_with_the_process_that_is_behind():
  with watching(3, DOES_1="lags", LTJAX_STALL="2") as run:
    ended = run.all_ended(30)
  assert all(process.code == watchdog.EXIT_MISSING for process in ended), ended
  assert any("process 1 is behind, at: phase 19" in process.err for process in ended), ended
  assert all("made no progress for 2 s" in process.err for process in ended), ended


# -- strangers at the meeting -----------------------------------------------------------------------------------------


def greeting(**entries) -> bytes:
  return json.dumps(dict(number=1, count=2, name="somebody", token="") | entries).encode() + b"\n"


def test_strangers_neither_block_nor_break_nor_join_the_meeting():
  port = free_port()
  address = dict(LTJAX_COORDINATOR=f"localhost:{port}", LTJAX_PROCESSES="2", LTJAX_TOKEN="secret")
  lines = (b"[" * 4000 + b"\n", b"{" * 10**6, b"\xff\n", b"[]\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b'{"a": ',
           greeting(number=True, token="secret"), greeting(count="2", token="secret"), greeting())
  with contextlib.ExitStack() as stack:
    run = stack.enter_context(Processes([MODULE, "watch"], 2, absent=(1,), each=[address | dict(
        LTJAX_PROCESS_ID=str(number), DOES_0="ends", DOES_1="ends") for number in range(2)], environment=SHORT))
    run.wait_for(0, "here")
    answers = []
    for line in (*[b""] * 20, *lines):  # those that say nothing come first, and stay
      stranger = stack.enter_context(_connection(port))
      with contextlib.suppress(OSError):  # turned away before it has sent everything
        stranger.sendall(line)
      if line in lines[-1:]:
        answers.append(stranger.recv(10**4))
    second = stack.enter_context(Processes([MODULE, "watch"], 2, absent=(0,), environment=SHORT, each=[address | dict(
        LTJAX_PROCESS_ID=str(number), DOES_0="ends", DOES_1="ends") for number in range(2)]))
    ended = [run.ended(0, 30), second.ended(1, 30)]
  assert [(process.code, said(process.out)["well"]) for process in ended] == [(0, [True])] * 2, ended
  assert b"somebody has another LTJAX_TOKEN" in answers[0]


def _connection(port: int) -> socket.socket:
  for _ in range(200):
    with contextlib.suppress(OSError):
      return socket.create_connection(("127.0.0.1", port), timeout=10)
    time.sleep(0.05)
  raise AssertionError("process 0 does not listen")


def test_a_collective_that_timed_out_is_a_missing_process(monkeypatch):
  class Watch:
    def unheard(self, seconds):
      return "process 2 (host a, pid 3), silent for 31 s"

  monkeypatch.setattr(processes, "_EXPLAIN", 0)
  late = RuntimeError("INTERNAL: Gloo all-reduce failed: Timed out waiting 30000ms for recv")
  assert processes.find_lost(late) == ""  # a single process waits for nobody
  monkeypatch.setattr(processes, "_watch", Watch())
  assert "came too late for it: process 2 (host a, pid 3), silent for 31 s; the newest" in processes.find_lost(late)
  assert processes.find_lost(ValueError("shapes differ")) == ""


def test_a_step_of_slurm_is_recognised():
  port = 65535 - 2**12 + 1
  job = next(job for job in range(2**12) if not _taken(port + job))
  each = [dict(SLURM_JOB_ID=str(job), SLURM_STEP_NODELIST="localhost", SLURM_NTASKS="2", SLURM_PROCID=str(number),
               SLURM_LOCALID=str(number), SLURM_STEP_NUM_NODES="1") for number in range(2)]
  with Processes([MODULE, "together"], 2, each=each) as run:
    ended = run.all_ended(90)
  assert [said(process.out)["count"] for process in ended] == [[2], [2]], ended


def _taken(port: int) -> bool:
  try:
    socket.create_server(("", port)).close()
  except OSError:
    return True
  return False


if __name__ == "__main__":
  _work(sys.argv[1])
