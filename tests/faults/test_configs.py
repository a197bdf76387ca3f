"""F11: every key of every shipped config misspelt, and with a value that it cannot have, as a run meets it.

tests/test_config.py asks more of the messages.
"""

import importlib
import time

import pytest
from ml_collections import ConfigDict

from ltjax.data import listing, longtail, records, sources, tables
from ltjax.errors import ConfigError
from tests import test_config, tiny

SLOWEST = 2.0  # seconds


@pytest.fixture(autouse=True)
def no_data(monkeypatch):
  """No data set is looked for."""
  def read(*args, **kwargs):
    raise AssertionError("the data were read")

  for module, names in ((sources, ("_cifar_binary", "_cifar_tfds")), (records, ("open_split",)),
                        (longtail, ("long_tailed_subset",)), (listing, ("existing_folder",)),
                        (tables, ("read_bytes",))):
    for name in names:
      monkeypatch.setattr(module, name, read)


@pytest.mark.parametrize("name", test_config.SHIPPED)
def test_a_changed_key_stops_the_run_before_anything_is_done(name, tmp_path):
  shipped = importlib.import_module(f"configs.{name}").get_config().to_dict()
  for path, _ in test_config.nodes(shipped):
    for misspell in (True, False):
      found = ConfigDict(shipped).to_dict()
      block = test_config.parent(found, path)
      value = block.pop(path[-1])
      block |= {path[-1] + "x": value} if misspell else {path[-1]: 1j}  # no key takes a complex number
      began = time.process_time()
      with pytest.raises(ConfigError) as caught:
        tiny.run(ConfigDict(found), tmp_path / "run")
      assert time.process_time() - began < SLOWEST
      assert path[-1] in str(caught.value) and "\n" not in str(caught.value)
  assert not list(tmp_path.iterdir())
