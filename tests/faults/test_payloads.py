"""F16: nothing that data hold is ever run. Files that would make a canary if they were, at every door, and the source.

The config .py that the user names on the command line is the only code.
"""

import ast
import functools
import io
import json
import os
import pathlib
import pickle
import shutil
import zipfile

import numpy as np
import pytest

from ltjax.data import archives, cache, decode, photos, records, sources, tables
from ltjax.data.files import Paths
from ltjax.errors import LtjaxError
from ltjax.models import import_torch
from ltjax.workdir import folder as run_folder
from ltjax.workdir import log as journal
from tests import photographs, tiny
from tests.data.test_sources import PROFILE

ROOT = pathlib.Path(__file__).parents[2]


class Canary:
  """Makes a folder when it is unpickled."""

  def __init__(self, path: pathlib.Path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (str(self.path),)


def npz(canary: pathlib.Path) -> bytes:
  """An .npz of object arrays under the names that our caches have."""
  data = io.BytesIO()
  objects = np.array([Canary(canary)], object)
  np.savez(data, paths=objects, labels=objects, names=objects, folders=objects, times=objects)
  return data.getvalue()


def pth(pickled: bytes) -> bytes:
  data = io.BytesIO()
  with zipfile.ZipFile(data, "w") as file:
    file.writestr("archive/data.pkl", pickled)
    file.writestr("archive/version", "3")
  return data.getvalue()


def payloads(canary: pathlib.Path) -> dict[str, bytes]:
  pickled, code = pickle.dumps(Canary(canary)), f"__import__('os').mkdir({str(canary)!r})"
  header = json.dumps({"conv1.weight": dict(dtype=code, shape=[1], data_offsets=[0, 4])}).encode()
  return {
      "pickle": pickled, "old pickle": pickle.dumps(Canary(canary), 0), "npz": npz(canary), "pth": pth(pickled),
      "python": code.encode(), "python lines": f"a/0.jpg {code}\nb/1.jpg 1\n".encode(),
      "csv": f"a.jpg,{code}\n".encode(),
      "json": json.dumps({"name": code, "__reduce__": code, "image": code, "reason": code, "step": code}).encode(),
      "json object": json.dumps({"py/object/apply": "os.mkdir", "py/reduce": [code]}).encode() + b"\n",
      "yaml": f"!!python/object/apply:os.mkdir [{str(canary)!r}]\n".encode(),
      "template": f"{{{{{code}}}}} ${{{code}}} $(mkdir {canary}) `mkdir {canary}`\n".encode(),
      "safetensors": sized(header) + bytes(4), "nested": b"[" * 100_000 + b"\n", "sized": sized(b"[" * 100_000)}


def sized(header: bytes) -> bytes:
  """As a .safetensors begins."""
  return len(header).to_bytes(8, "little") + header


def written(path: pathlib.Path, data: bytes) -> pathlib.Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data)
  return path


def as_class_folders(folder, data):
  """A cached listing, and an image."""
  photographs.write_tree(folder / "images", dict(a=2, b=2))
  read = functools.partial(photos.folder, root=str(folder / "images"), cache=folder / "cache")
  read()
  for kept in (folder / "cache").iterdir():
    kept.write_bytes(data)
  assert read().class_names == ("a", "b")


def as_cifar(folder, data):
  for name in ("data_batch_1.bin", "train.bin", "fine_label_names.txt"):
    written(folder / name, data)
  for read in (sources.cifar10, sources.cifar100):
    with pytest.raises(LtjaxError):
      read(imbalance=10.0, **PROFILE, dir=str(folder))


def as_cifar_python(folder, data):
  for name in ("cifar-10-batches-py/data_batch_1", "cifar-10-batches-py/batches.meta", "cifar-100-python/train",
               "cifar-100-python/meta"):
    written(folder / name, data)
  for read, below in ((sources.cifar10, "cifar-10-batches-py"), (sources.cifar100, "cifar-100-python")):
    for where in (folder, folder / below):
      with pytest.raises(LtjaxError, match="holds CIFAR's Python version, pickles, which could run anything"):
        read(imbalance=10.0, **PROFILE, dir=str(where))


def as_image(folder, data):
  for name in ("a.jpg", "a.png", "a.gif"):
    written(folder / name, data)
    images = decode.Images(Paths(str(folder), [name]), log := decode.BadImages())
    images.open(0)
    with pytest.raises(LtjaxError, match="cannot be decoded"):
      log.check()


def as_exif(folder, data):
  exif = decode.Image.Exif()
  exif[0x010E], exif[0x9286] = data, data
  image = io.BytesIO()
  decode.Image.new("RGB", (8, 8)).save(image, "JPEG", exif=exif if len(data) < 60_000 else b"")
  decode.plain_jpeg_size(image.getvalue())
  decode.pillow(image.getvalue())


def as_archive(folder, data):
  for name in ("a.tar", "a.zip", "a.tar.gz"):
    archives.extract(written(folder / name, data), folder / "out")


def as_workdir(folder, data):
  written(folder / "run" / "config.json", data)
  run_folder.check(tiny.config("ce_digits"), folder / "run")


DOORS = {
    "kept listing": as_class_folders,
    "cache": lambda folder, data: cache.load_arrays(written(folder / "a.npz", data), "paths", "labels"),
    "list": lambda folder, data: tables.split_list(str(written(folder / "a.txt", data)), "train_list"),
    "packed list": lambda folder, data: tables.split_list(str(written(folder / "a.txt.xz", data)), "train_list"),
    "table": lambda folder, data: tables.table(str(written(folder / "a.csv", data)), "train_csv"),
    "class names": lambda folder, data: tables.class_names(str(written(folder / "a.txt", data))),
    "CIFAR": as_cifar, "CIFAR in Python's layout": as_cifar_python, "image": as_image, "what an image tells": as_exif,
    "archive": as_archive, "config of a run": as_workdir,
    "bad images": lambda folder, data: decode.BadImages("substitute", 9, written(folder / "bad_images.jsonl", data)),
    "log": lambda folder, data: journal.read(written(folder / "metrics.jsonl", data)),
    "pth": lambda folder, data: import_torch.into({}, str(written(folder / "w.pth", data))),
    "safetensors": lambda folder, data: import_torch.into({}, str(written(folder / "w.safetensors", data))),
    "TFDS": lambda folder, data: records.open_split("imagenet2012", "train", str(
        written(folder / "imagenet2012/1.0.0/dataset_info.json", data).parents[2])),
}
NOT_OURS = {"log", "TFDS", "config of a run"}  # other tests cover their errors


@pytest.mark.parametrize("door", DOORS)
def test_nothing_is_run(door, tmp_path):
  canary = tmp_path / "canary"
  for number, (kind, data) in enumerate(payloads(canary).items()):
    folder = tmp_path / str(number)
    folder.mkdir()
    try:
      DOORS[door](folder, data)
    except LtjaxError as error:
      assert "\n" not in str(error)
    except Exception:
      if door not in NOT_OURS:
        raise
    assert not canary.exists(), kind


def test_the_payloads_would_make_the_canary(tmp_path):
  canary = tmp_path / "canary"
  made = payloads(canary)
  runs = {"pickle": pickle.loads, "old pickle": pickle.loads, "python": eval,
          "npz": lambda data: np.load(io.BytesIO(data), allow_pickle=True)["paths"],
          "pth": lambda data: pickle.loads(zipfile.ZipFile(io.BytesIO(data)).read("archive/data.pkl"))}
  for kind, run in runs.items():
    assert not canary.exists()
    run(made[kind])
    assert canary.exists(), kind
    canary.rmdir()


@pytest.mark.usefixtures("no_pictures")
def test_a_work_folder_of_payloads_runs_nothing(tmp_path):
  config = tiny.config("ce_digits", epochs=1, backbone=tiny.ONE_CONV)
  canary, run = tmp_path / "canary", tmp_path / "run"
  tiny.run(config, run)
  found = [path.relative_to(run) for path in run.rglob("*") if path.is_file() and path.parent.name != "report"]
  files = {"values" if path.parent.name == "d" else path.name: path for path in found if path.name != "config.json"}
  files |= {name: pathlib.Path(name) for name in ("bad_images.jsonl", "events.jsonl", "not_finite.json")}
  assert len(files) > 8
  for path in files.values():
    copy = tmp_path / path.name
    shutil.copytree(run, copy)
    written(copy / path, payloads(canary)["pickle"])
    try:
      tiny.run(config, copy)
    except LtjaxError as error:
      assert "\n" not in str(error)
    assert not canary.exists(), path


# -- the source --------------------------------------------------------------------------------------------------------


RUNNERS = {"eval", "exec", "compile", "__import__", "execfile"}
UNPICKLERS = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle", "yaml"}
SHELLS = {("os", "system"), ("os", "popen"), ("subprocess", "getoutput"), ("subprocess", "getstatusoutput")}


def dangers(source: str) -> list[str]:
  """The calls in Python source that could run their input."""
  found = []
  for node in ast.walk(ast.parse(source)):
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else (
        [node.module or ""] if isinstance(node, ast.ImportFrom) else [])
    found += [f"import {name}" for name in names if name.split(".")[0] in UNPICKLERS]
    if not isinstance(node, ast.Call):
      continue
    called, given = node.func, {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if isinstance(called, ast.Name) and called.id in RUNNERS:
      found.append(called.id)
    if given.get("allow_pickle", "False") != "False" or given.get("shell", "False") != "False":
      found.append(ast.unparse(node))
    if isinstance(called, ast.Attribute):
      owner = ast.unparse(called.value)
      unsafe = owner == "torch" and called.attr == "load" and given.get("weights_only") != "True"
      if unsafe or called.attr in ("extractall", "unpack_archive") or (owner, called.attr) in SHELLS:
        found.append(ast.unparse(node))
  return found


@pytest.mark.parametrize("source", [
    "eval(x)", "exec(x)", "import pickle", "from pickle import loads", "import yaml", "np.load(f, allow_pickle=True)",
    "np.load(f, allow_pickle=x)", "subprocess.run(c, shell=True)", "torch.load(f)", "torch.load(f, weights_only=False)",
    "tar.extractall(p)", "shutil.unpack_archive(f)", "os.system(c)", "__import__(x)", "compile(x, 'a', 'exec')"])
def test_a_dangerous_function_is_found(source):
  assert dangers(source)


@pytest.mark.parametrize("source", [
    "np.load(f, allow_pickle=False)", "torch.load(f, weights_only=True)", "subprocess.run([c])", "ast.literal_eval(x)",
    "re.compile(x)", "model.eval()"])
def test_a_safe_function_passes(source):
  assert not dangers(source)


def test_the_source_has_no_dangerous_function():
  files = sorted((ROOT / "ltjax").rglob("*.py")) + sorted((ROOT / "configs").rglob("*.py"))
  assert len(files) > 100
  assert not {str(path): found for path in files if (found := dangers(path.read_text()))}
