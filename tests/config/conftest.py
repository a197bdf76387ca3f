import functools

import pytest

from ltjax.config import check
from ltjax.data import sources


@pytest.fixture(autouse=True)
def no_data(monkeypatch):
  """Fails a test in which a check of a config reads images."""
  def read(*args, **kwargs):
    raise AssertionError("the data were read")

  for name in ("_cifar_binary", "_cifar_tfds", "_counts"):
    monkeypatch.setattr(sources, name, read)


@pytest.fixture(scope="package", autouse=True)
def traced_once():
  """Traces each network once: hundreds of configs here have the same few networks."""
  traced, kept = check.parameter_shapes, {}

  @functools.wraps(traced)
  def shapes(stage, model, image_shape=()):
    key = repr(model), stage.size, image_shape
    if key not in kept:
      kept[key] = traced(stage, model, image_shape)
    return kept[key]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(check, "parameter_shapes", shapes)
    yield
