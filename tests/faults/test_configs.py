"""F11: every key of every shipped config misspelt, and with a value that it cannot have, as a run meets it.

tests/config/test_check.py asks more of the messages.
"""


import pytest

from ltjax.data import listing, longtail, records, sources, tables
from ltjax.errors import ConfigError
from tests import tiny
from tests.config import trees


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


@pytest.mark.parametrize("name", trees.SHIPPED)
def test_a_changed_key_stops_the_run_before_anything_is_done(name, tmp_path):
  for path, _ in trees.nodes(trees.tree(name)):
    for misspell in (True, False):
      found = trees.tree(name)
      block = trees.parent(found, path)
      value = block.pop(path[-1])
      block |= {path[-1] + "x": value} if misspell else {path[-1]: 1j}  # no key takes a complex number
      with pytest.raises(ConfigError) as caught:
        tiny.run(trees.config(found), tmp_path / "run")
      assert path[-1] in str(caught.value) and "\n" not in str(caught.value)
  assert not list(tmp_path.iterdir())
