"""Where process 0 listens, and which variables a run of several processes needs."""

import socket

import jax
import pytest

from ltjax import errors
from ltjax.distributed import processes, rendezvous, watchdog
from tests.processes import free_port


@pytest.mark.parametrize(("host", "address"), [
    ("127.0.0.1", "127.0.0.1"), ("localhost", "127.0.0.1"), ("0.0.0.0", "0.0.0.0"), ("192.0.2.7", ""),
    ("no.such.host.invalid", "")])
def test_process_0_listens_only_on_its_address(host, address):
  assert rendezvous.local_address(host) == address


def test_only_the_given_address_is_bound():
  with rendezvous._listener("127.0.0.1", port := free_port(), 0) as listener:
    assert listener.getsockname() == ("127.0.0.1", port)


def test_compilation_switched_off_is_one_error():
  with jax.disable_jit(), pytest.raises(errors.ConfigError, match="^JAX_DISABLE_JIT: .* unset it"):
    processes.start({})


def test_a_port_in_use_is_reported():
  with socket.create_server(("", 0)) as taken, pytest.raises(errors.MissingProcess, match="cannot listen on port"):
    rendezvous.meet(f"localhost:{taken.getsockname()[1]}", 0, 2, watchdog.Timing(1, 1, 1), 0.3)


NAMED = dict(LTJAX_COORDINATOR="localhost:1234", LTJAX_PROCESSES="2", LTJAX_PROCESS_ID="0")


@pytest.mark.parametrize("key", NAMED)
@pytest.mark.parametrize("value", ["", "x", "-1", "2.5", "a:b", ":1"])
def test_a_wrong_environment_is_named(key, value):
  with pytest.raises(errors.ConfigError, match=f"^{key}: "):
    processes.start(NAMED | {key: value})


@pytest.mark.parametrize("key", ["LTJAX_HEARTBEAT", "LTJAX_STALL", "LTJAX_INIT_TIMEOUT"])
@pytest.mark.parametrize("value", ["x", "0", "-1", "inf", "nan"])
def test_a_wrong_time_is_named(key, value):
  with pytest.raises(errors.ConfigError, match=f"^{key}: expected seconds"):
    processes.start(NAMED | {key: value})
