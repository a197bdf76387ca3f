"""Where compiled programs are kept between runs, so that the second start of a config compiles nothing."""

import hashlib
import os
import pathlib
import platform

import jax
from jax.experimental.compilation_cache import compilation_cache

from ltjax.errors import WorkdirError

NONE = "none"


def keep(folder: str = "") -> pathlib.Path | None:
  """Keeps what is compiled from now on; returns the folder, None where nothing is kept.

  Args:
    folder: to keep it in; `none` keeps nothing. Where empty, `ltjax/programs` in the user's cache folder, unless JAX
      has a folder already (JAX_COMPILATION_CACHE_DIR) or this is one of several processes, which may share no folder.

  Raises:
    WorkdirError: a folder that cannot be made.
  """
  if folder == NONE:
    jax.config.update("jax_enable_compilation_cache", False)
    return None
  if not folder and (jax.config.jax_compilation_cache_dir or jax.process_count() > 1):
    return None
  path = pathlib.Path(folder).expanduser() if folder else _users() / "ltjax" / "programs" / _machine()
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    if not folder:
      return None  # a home that cannot be written to costs the time of compiling, no more
    raise WorkdirError(f"--compilation_cache: {folder} cannot be made ({error.strerror}); give another folder, or "
                       f"--compilation_cache={NONE}") from error
  jax.config.update("jax_compilation_cache_dir", str(path))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  compilation_cache.reset_cache()  # what was compiled before has fixed that there is none
  return path


def _users() -> pathlib.Path:
  return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")


def _machine() -> str:
  """A name for processors of one kind: machines that share a home must not run each other's programs."""
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
  except OSError:
    features = platform.processor()
  return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"
