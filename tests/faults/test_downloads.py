"""F18: ltjax fetches nothing itself; missing files are named with size and digest, incomplete ones are refused."""

import ast
import functools
import hashlib
import http.server
import pathlib
import tarfile
import threading

import pytest

from ltjax.data import archives, decode, photos, records, sources
from ltjax.errors import DataError
from tests import photographs
from tests.data.test_sources import PROFILE, write_cifar

ROOT = pathlib.Path(__file__).parents[2]
NETWORK = {"aiohttp", "ftplib", "gdown", "http", "httpx", "paramiko", "requests", "socket", "urllib", "urllib3", "wget"}
PAGE = b"<!DOCTYPE html><html><title>Quota exceeded</title><body>Too many users have viewed this file.</body></html>"
TEN = "cifar-10-binary.tar.gz .*170,052,171 bytes, SHA-256 c4a38c50.*unpack cifar-10-binary.tar.gz DIR"


def imported(path: pathlib.Path) -> set[str]:
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found |= {alias.name.split(".")[0] for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      found.add(node.module.split(".")[0])
  return found


@pytest.mark.parametrize("folder", ["ltjax/data", "ltjax/models", "configs"])
def test_nothing_that_reads_data_can_reach_the_network(folder):
  files = sorted((ROOT / folder).rglob("*.py"))
  assert files
  for path in files:
    assert not imported(path) & NETWORK, path


def cifar(folder):
  sources.cifar10(imbalance=10.0, **PROFILE, dir=str(folder))


@pytest.mark.parametrize(("content", "reason"), [
    (PAGE, rf"data_batch_1\.bin: {len(PAGE)} bytes, expected 30,730,000 .*the file is a web page: fetch it"),
    (b"\n  " + PAGE, "the file is a web page"), (b"", r"data_batch_1\.bin: 0 bytes, expected 30,730,000"),
    (bytes(3073 * 5000), r"data_batch_1\.bin: 15,365,000 bytes, expected 30,730,000 .*the file is truncated"),
    (None, r"data_batch_1\.bin: missing; expected a CIFAR-10 binary file of 30,730,000 bytes")])
def test_a_download_that_is_not_the_cifar_file_is_named(content, reason, tmp_path):
  if content is not None:
    (tmp_path / "data_batch_1.bin").write_bytes(content)
  with pytest.raises(DataError, match=f"{reason}.*{TEN}"):
    cifar(tmp_path)


def test_a_missing_or_still_packed_folder_is_named(tmp_path):
  with pytest.raises(DataError, match=f"no folder .*{TEN}"):
    cifar(tmp_path / "nowhere")
  (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"\x1f\x8b")
  with pytest.raises(DataError, match=rf"is an archive; unpack it with '{archives.COMMAND}', and give that DIR"):
    cifar(tmp_path / "cifar-10-binary.tar.gz")


@pytest.mark.parametrize("content", [
    PAGE, PAGE.replace(b">", b">\n"), b"", b"version https://git-lfs.github.com/spec/v1\n"])
@pytest.mark.parametrize("name", ["Places_LT_train.txt", "Places_LT_train.txt.xz"])
def test_a_download_that_is_not_the_list_is_named(content, name, tmp_path):
  (tmp_path / name).write_bytes(content)
  (tmp_path / "Places_LT_test.txt").write_text("a.jpg 0\n")
  with pytest.raises(DataError, match=rf"{name}:"):
    photos.places_lt(root=str(tmp_path), lists=str(tmp_path))


def test_an_image_that_is_a_web_page_is_named(tmp_path):
  photographs.write_tree(tmp_path, dict(a=2, b=2))
  (tmp_path / "a/000.jpg").write_bytes(PAGE)
  dataset, log = decode.opened(photos.folder(root=str(tmp_path)))
  for images, labels in (dataset.train, dataset.test):
    for place in range(len(labels)):
      images.open(place)
  with pytest.raises(DataError, match=r"a/000\.jpg: .*not an image of a known kind"):
    log.check()


def test_image_data_sets_of_tfds_are_never_downloaded(tmp_path, monkeypatch):
  tfds = pytest.importorskip("tensorflow_datasets")

  def refuse(*args, **kwargs):
    pytest.fail("TFDS was asked to download")

  for name in ("download", "download_and_extract"):
    monkeypatch.setattr(tfds.download.DownloadManager, name, refuse)
  monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", refuse)
  for folder in (tmp_path / "nowhere", tmp_path):
    for read in (lambda folder: photos.tfds(builder="imagenet2012", tfds_dir=str(folder)),
                 lambda folder: photos.inat2018(tfds_dir=str(folder)),
                 lambda folder: records.convert("imagenet2012", str(folder), str(tmp_path / "out"))):
      with pytest.raises(DataError, match="TFDS has no prepared .* in .*; prepare it with 'tfds build .*tfds_dir=DIR"):
        read(folder)
  assert not list(tmp_path.iterdir())


# -- TFDS's download of CIFAR, from a server that fails ----------------------------------------------------------------


class Server(http.server.BaseHTTPRequestHandler):
  """Answers with `data`, of which `sent` bytes come."""

  def __init__(self, data: bytes, sent: int, *args):
    self.data, self.sent = data, sent
    super().__init__(*args)

  def do_GET(self):
    self.send_response(200)
    self.send_header("Content-Length", str(len(self.data)))
    self.end_headers()
    self.wfile.write(self.data[: self.sent])

  def log_message(self, *args):
    pass


@pytest.fixture
def served(tmp_path, monkeypatch):
  """served(data, sent): makes CIFAR-10 come from a server of our own that sends this, instead of `packed`."""
  tfds = pytest.importorskip("tensorflow_datasets")
  write_cifar(tmp_path / "cifar", 10, 20)
  (tmp_path / "cifar/cifar-10-batches-bin/batches.meta.txt").write_text("\n".join(map(str, range(10))))
  with tarfile.open(tmp_path / "packed.tar.gz", "w:gz") as archive:
    archive.add(tmp_path / "cifar/cifar-10-batches-bin", "cifar-10-batches-bin")
  packed = (tmp_path / "packed.tar.gz").read_bytes()
  cifar10, started = tfds.builder_cls("cifar10"), []
  monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "tfds"))
  original = cifar10._cifar_info.fget

  def serve(data=packed, sent=None):
    handler = functools.partial(Server, data, len(data) if sent is None else sent)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    started.append(server)
    url = f"http://127.0.0.1:{server.server_port}/cifar-10-binary.tar.gz"
    known = tfds.download.checksums.UrlInfo(size=len(packed), checksum=hashlib.sha256(packed).hexdigest(),
                                            filename="cifar-10-binary.tar.gz")
    monkeypatch.setattr(cifar10, "_cifar_info", property(lambda self: original(self)._replace(url=url)))
    monkeypatch.setattr(cifar10, "url_infos", {url: known})

  yield serve, packed
  for server in started:
    server.shutdown()
    server.server_close()


def test_a_download_that_fails_is_one_error_and_can_be_repeated(served, tmp_path):
  serve, packed = served
  for data, sent in ((PAGE, None), (packed[:-1] + bytes([packed[-1] ^ 1]), None), (packed, len(packed) // 2)):
    serve(data, sent)
    with pytest.raises(DataError, match=f"CIFAR-10 could not be had from TFDS .*{TEN}") as caught:
      sources._cifar_tfds(10)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "tfds").rglob("*.bin")) and not list((tmp_path / "tfds").rglob("dataset_info.json"))
  serve()
  train, test, _ = sources._cifar_tfds(10)
  assert (len(train[1]), len(test[1])) == (100, 20)


def test_a_wrong_digest_is_reported_with_the_right_one(served):
  serve, packed = served
  serve(PAGE)
  with pytest.raises(DataError) as caught:
    sources._cifar_tfds(10)
  for part in (hashlib.sha256(packed).hexdigest(), hashlib.sha256(PAGE).hexdigest()):
    assert part in str(caught.value)
