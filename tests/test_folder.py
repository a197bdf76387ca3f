"""The work folder keeps the config of its run, and is refused to every other one."""

import json
import pathlib
import types

import numpy as np
import pytest
from ml_collections import ConfigDict

from ltjax.errors import WorkdirError
from ltjax.workdir import folder, lock
from tests import tiny

CONFIG = tiny.config()
DATA = tiny.dataset(CONFIG)


def start(config: ConfigDict, workdir: pathlib.Path) -> None:
  """The checks and files of a run before it trains."""
  with folder.held(config, workdir, "command", DATA):
    pass


def names(path: pathlib.Path) -> list[str]:
  return sorted(entry.name for entry in path.rglob("*"))


def test_the_folder_keeps_the_config_and_takes_it_again(tmp_path):
  workdir = tmp_path / "below" / "run"
  assert not folder.check_before_data(CONFIG, workdir)
  assert not workdir.parent.exists()
  start(CONFIG, workdir)
  assert names(workdir) == [lock.NAME, "config.json", "identity.json"]
  assert json.loads((workdir / "config.json").read_text()) == json.loads(CONFIG.to_json())
  start(CONFIG, workdir)
  assert folder.check_before_data(CONFIG, workdir)
  assert names(workdir) == [lock.NAME, "config.json", "identity.json"]


def test_a_config_comes_back_as_it_was(tmp_path):
  start(CONFIG, tmp_path / "run")
  assert folder.load(tmp_path / "run").to_dict() == CONFIG.to_dict()
  assert folder.load(tmp_path / "run").to_json() == CONFIG.to_json()


def test_another_config_is_refused_with_the_keys_that_differ(tmp_path):
  start(CONFIG, tmp_path)
  other = CONFIG.copy_and_resolve_references()
  other.classifier.lr.base, other.seed = 0.5, 3
  other.classifier.loss = ConfigDict(dict(name="cross_entropy", label_smoothing=0.1))
  with pytest.raises(WorkdirError, match="written by another config") as caught:
    start(other, tmp_path)
  message = str(caught.value)
  for part in ("classifier.lr.base was 0.002, is 0.5", "seed was 0, is 3", "classifier.loss.gamma was 1.0, is 'absent'",
               "classifier.loss.label_smoothing was 'absent', is 0.1"):
    assert part in message
  assert "momentum" not in message
  assert json.loads((tmp_path / "config.json").read_text()) == json.loads(CONFIG.to_json())


@pytest.mark.parametrize("key", [*(key for key in folder.FREE if "." not in key), "dataset.on_bad_image",
                                 *(f"dataset.{key}" for key in folder.PATHS)])
def test_keys_that_change_no_number_may_differ(tmp_path, key):
  start(CONFIG, tmp_path)
  other = CONFIG.copy_and_resolve_references()
  block = other.dataset if key.startswith("dataset.") else other
  with other.unlocked(), other.ignore_type(), block.ignore_type():
    block[key.removeprefix("dataset.")] = (dict(name="logit_adjustment"),) if key == "posthoc" else 77
  assert folder.check(other, tmp_path)


def test_a_key_that_is_left_out_is_its_default(tmp_path):
  start(CONFIG, tmp_path)
  other = CONFIG.copy_and_resolve_references()
  with other.dataset.unlocked(), other.classifier.loss.unlocked():
    other.dataset.pipeline = "resident"
    other.classifier.loss.label_smoothing = 0.0
    del other.dataset.subset_seed
  defaults = {"dataset.pipeline": "resident", "dataset.subset_seed": 0, "classifier.loss.label_smoothing": 0.1}
  with pytest.raises(WorkdirError) as caught:
    folder.check(other, tmp_path, defaults)
  assert "config: classifier.loss.label_smoothing was 'absent', is 0.0. Give" in str(caught.value)
  defaults["classifier.loss.label_smoothing"] = 0.0
  assert folder.check(other, tmp_path, defaults)


def test_a_folder_of_ltjax_0_1_is_refused_by_that_name(tmp_path):
  start(CONFIG, tmp_path)
  old = json.loads(CONFIG.to_json()) | dict(augment=dict(crop_padding=4, flip=True))
  (tmp_path / "config.json").write_text(json.dumps(old))
  with pytest.raises(WorkdirError, match="was written by ltjax 0.1, whose configs had other keys"):
    folder.check(CONFIG, tmp_path)


def test_other_data_are_refused(tmp_path):
  start(CONFIG, tmp_path)
  other = DATA._replace(selected=DATA.selected + 1, class_names=tuple("abcdefghij"))
  with pytest.raises(WorkdirError, match="was started with other data: .* give another --workdir to start afresh"), (
      folder.held(CONFIG, tmp_path, "command", other)):
    pass


def test_a_config_without_keys_that_came_later_is_taken(tmp_path):
  start(CONFIG, tmp_path)
  old = json.loads(CONFIG.to_json())
  for key in ("skip_limit", "on_nonfinite", "steps_per_call"):
    del old[key]
  (tmp_path / "config.json").write_text(json.dumps(old))
  assert folder.check(CONFIG, tmp_path) and folder.load(tmp_path).to_dict() == CONFIG.to_dict()


@pytest.mark.parametrize("change", [
    lambda found: "{", lambda found: "[]", lambda found: "{}", lambda found: json.dumps(found | dict(examples=3)),
    lambda found: json.dumps(found | dict(examples=dict(train="x"))),
    lambda found: json.dumps(found | dict(examples=dict(train=None))),
    lambda found: json.dumps(found | dict(class_names=None))])
def test_a_damaged_identity_is_refused(tmp_path, change):
  start(CONFIG, tmp_path)
  path = tmp_path / "identity.json"
  path.write_text(change(json.loads(path.read_text())))
  with pytest.raises(WorkdirError, match="identity.json is not the identity of a run"):
    start(CONFIG, tmp_path)


@pytest.mark.parametrize("content", ["{", "", "\x00\xff", "[1]", "3", "null"])
def test_a_damaged_config_json_is_refused(tmp_path, content):
  (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
  with pytest.raises(WorkdirError, match="config.json is not"):
    folder.check_before_data(CONFIG, tmp_path)
  if content != "{":
    with pytest.raises(WorkdirError, match="is not the config of a run"):
      folder.load(tmp_path)


def test_unusable_folders_are_refused(tmp_path):
  file, full, below = tmp_path / "file", tmp_path / "full", tmp_path / "folder"
  file.write_text("x")
  full.mkdir()
  (full / "thesis.tex").write_text("x")
  (below / "config.json").mkdir(parents=True)
  for workdir, message in ((file, "is a file"), (file / "below" / "it", "file is a file"),
                           (full, "is not empty and has no config.json"), (below, "Is a directory")):
    with pytest.raises(WorkdirError, match=message) as caught:
      folder.check_before_data(CONFIG, workdir)
    assert str(workdir) in str(caught.value) or str(file) in str(caught.value)
  assert names(tmp_path) == ["config.json", "file", "folder", "full", "thesis.tex"]


@pytest.mark.parametrize("path", ["gs://bucket/run", "s3://bucket", "file:/tmp/x", pathlib.Path("gs://bucket/run")])
def test_an_address_is_not_a_folder(path):
  with pytest.raises(WorkdirError, match="--workdir: .* is an address, expected a folder of this machine"):
    folder.check_local(path)


def test_a_name_that_is_not_utf_8_is_refused_before_training():
  with pytest.raises(WorkdirError, match="cannot be written in UTF-8, which checkpoints need"):
    folder.check_local("runs/caf\udce9")
  for path in ("runs/größer", "a:b/c", "C:", "/data/x:/y"):
    folder.check_local(path)


def test_a_run_has_one_name_and_a_folder_of_an_older_release_none(tmp_path):
  names_of = []
  for _ in range(2):
    with folder.held(CONFIG, tmp_path / "new", "command", DATA) as name:
      names_of.append(name)
  assert len(set(names_of)) == 1 and len(names_of[0]) == 32
  start(CONFIG, tmp_path / "old")
  (tmp_path / "old" / "identity.json").unlink()
  for _ in range(2):
    with folder.held(CONFIG, tmp_path / "old", "command", DATA) as name:
      assert name == ""


@pytest.mark.parametrize("key", ["root", "test_root"])
def test_a_folder_inside_the_images_is_refused(tmp_path, key):
  config = types.SimpleNamespace(dataset={key: str(tmp_path)})
  with pytest.raises(WorkdirError, match=f"lies inside dataset.{key}="):
    folder.check_before_data(config, tmp_path / "runs" / "mine")


@pytest.mark.parametrize("function", ["exists", "mkdir", "write_text", "replace"])
def test_a_folder_without_permission_is_refused(tmp_path, monkeypatch, function):
  def refuse(*args, **kwargs):
    raise PermissionError(13, "Permission denied")

  with monkeypatch.context() as patch:
    patch.setattr(pathlib.Path, function, refuse)
    with pytest.raises(WorkdirError, match="cannot be used .Permission denied."):
      folder.check(CONFIG, tmp_path / "run")
      start(CONFIG, tmp_path / "run")
  assert not list(tmp_path.rglob("config*"))


def test_a_folder_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr("os.access", lambda *args: False)
  with pytest.raises(WorkdirError, match="may not be read and written"):
    folder.check(CONFIG, tmp_path)


def test_a_start_that_crashed_while_writing_the_config_can_be_repeated(tmp_path):
  for name in folder.PARTIALS:
    (tmp_path / name).write_text(json.dumps({}) if name.endswith("json") else "{")
  (tmp_path / "identity.json").unlink()
  start(CONFIG, tmp_path)
  assert names(tmp_path) == [lock.NAME, "config.json", "identity.json"]


def test_the_identity_of_a_folder_is_its_data(tmp_path):
  assert folder.read_identity(tmp_path) is None
  start(CONFIG, tmp_path)
  found = folder.read_identity(tmp_path)
  assert found["class_names"] == list(DATA.class_names)
  np.testing.assert_array_equal(found["class_counts"], DATA.class_counts)
