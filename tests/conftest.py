import gc
import os

from tests.processes import flags

# Before JAX starts: most of the suite's time is LLVM's otherwise. Processes that tests start inherit it.
os.environ["XLA_FLAGS"] = f"{flags()} {os.environ.get('XLA_FLAGS', '')}"

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from ltjax.commands import predict
from ltjax.distributed import signals
from ltjax.report import activation_maps, figures, predictions

# A tenth of the suite's time is garbage collection otherwise: tracing makes many objects that live on.
gc.set_threshold(50_000, 20, 50)


def pytest_xdist_auto_num_workers():
  """One more worker than cores: a quarter of the time, a test waits for programs that it has started."""
  return (os.cpu_count() or 1) + 1


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish():
  """Keeps pytest's five last collections, of all that JAX and TensorFlow hold, from taking a quarter of a minute."""
  gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
  """Keeps compiled programs for the session: most tests run the same few steps, and XLA takes seconds over each.

  All of pytest's processes, and the programs that tests start, share them.
  """
  base = tmp_path_factory.getbasetemp()
  folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"
  os.environ["XDG_CACHE_HOME"] = str(folder)  # of programs without JAX's variables: never the user's own folder
  kept = dict(jax_compilation_cache_dir=str(folder), jax_persistent_cache_min_compile_time_secs=0,
              jax_persistent_cache_min_entry_size_bytes=-1)
  for name, value in kept.items():
    os.environ[name.upper()] = str(value)
    jax.config.update(name, value)
  compilation_cache.reset_cache()  # programs compiled during collection have fixed that there is no cache


@pytest.fixture(scope="session", autouse=True)
def signals_end_no_test_process():
  """Commands that tests call would listen for signals for ever, and the next signal would end all tests at once."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(signals, "listen", lambda: lambda: False)
    yield


@pytest.fixture(scope="module", autouse=True)
def own_jit_caches():
  """Each file starts with empty jit caches: all files use the same bounded caches, and some tests count entries."""
  jax.clear_caches()


@pytest.fixture(scope="module")
def no_pictures():
  """Leaves out a report's pictures and their data: they take more than half of the time of a tiny run."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(figures, "of_run", lambda *args: [])
    patch.setattr(predictions, "of_stage", lambda *args: None)
    patch.setattr(activation_maps, "of_stage", lambda *args: None)
    yield


@pytest.fixture
def command(capsys):
  """(exit code, stdout, stderr) of a command line, of `ltjax predict` by default."""

  def run(*arguments, main=predict.main) -> tuple[int, str, str]:
    code = 0
    try:
      main([str(argument) for argument in arguments])
    except SystemExit as error:
      code = error.code
    return code, *capsys.readouterr()

  return run
