import pytest

from tests.faults import runs


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
  """Compiled programs, for all runs of these tests."""
  return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def expected(cache):
  """The outcome of the run that nothing happens to."""
  return runs.straight(cache)
