import pytest

from ltjax.data import sources


@pytest.fixture(autouse=True)
def no_data(monkeypatch):
  """Fails a test in which a check of a config reads images."""
  def read(*args, **kwargs):
    raise AssertionError("the data were read")

  for name in ("_cifar_binary", "_cifar_tfds", "_counts"):
    monkeypatch.setattr(sources, name, read)
