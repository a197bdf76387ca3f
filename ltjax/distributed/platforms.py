"""The platform that programs are built for: JAX's own, or the one that a plan compiles for."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_planned = contextvars.ContextVar("planned", default="")


def target() -> str:
  """One of cpu, gpu and tpu."""
  return _planned.get() or jax.default_backend()


@contextlib.contextmanager
def planned(name: str) -> Iterator[None]:
  """Within this context, programs are built for platform `name`, whatever this machine has."""
  token = _planned.set(name)
  try:
    yield
  finally:
    _planned.reset(token)
