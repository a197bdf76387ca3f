"""The platform that programs are built for: JAX's own, or the one that a plan compiles for."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_planned = contextvars.ContextVar("planned", default="")


def target() -> str:
  """One of cpu, gpu and tpu."""
  return _planned.get() or jax.default_backend()


def compiler_options() -> dict[str, str] | None:
  """The compiler's options for training steps: on a CPU, XLA leaves out the pass that removes barriers."""
  return dict(xla_disable_hlo_passes="cse_barrier_expander") if target() == "cpu" else None


@contextlib.contextmanager
def planned(name: str) -> Iterator[None]:
  """Within this context, programs are built for platform `name`, whatever this machine has."""
  token = _planned.set(name)
  try:
    yield
  finally:
    _planned.reset(token)
