"""The model of a finished run predicts the classes of images, by name."""

import csv
import importlib
import io
import os
import pathlib
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict

from ltjax.commands import predict
from ltjax.config import spec
from ltjax.errors import ConfigError, DataError, WorkdirError
from tests import photographs, tiny

pytestmark = pytest.mark.usefixtures("no_pictures")
COUNTS = dict(bee=12, cat=6, dog=4)


@pytest.fixture(scope="module")
def run(tmp_path_factory, no_pictures):
  """(work folder, config, results) of a finished run of one stage on a folder of images."""
  folder = tmp_path_factory.mktemp("run")
  photographs.write_tree(folder / "images", COUNTS)
  config = importlib.import_module("configs.gcl_folder").get_config(
      "resnet10,size=16,batch_size=8,epochs=1,retrain_epochs=1")
  config.dataset.root, config.eval_batch_size, config.classifier.adjust.scale = str(folder / "images"), 3, 7.0
  config.stages = ("classifier",)  # one stage takes half the time
  with config.unlocked(), config.ignore_type():
    del config.representation
    config.backbone = tiny.ONE_CONV
  results = tiny.run(config, folder / "mine")
  return folder / "mine", config, results


def contents(folder):
  return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_predictions_of_the_test_set_have_the_accuracy_of_the_run(run, monkeypatch):
  workdir, config, results = run
  before = contents(workdir)
  monkeypatch.setattr(predict, "_BATCHES", 1)  # several rounds
  files, labels = spec.dataset(config.dataset)[0]().test
  names = [files.name(place) for place in range(len(files))]
  assert len(names) > config.eval_batch_size
  found = list(predict.predict(workdir, names, top=1))
  assert [row.path for row in found] == names and {row.rank for row in found} == {1}
  right = [row.class_name == sorted(COUNTS)[label] for row, label in zip(found, labels, strict=True)]
  assert np.mean(right) == results["final"]["overall"]
  assert contents(workdir) == before


def test_classes_are_ranked_by_their_probability(run):
  workdir, config, _ = run
  names = predict.images([f"{config.dataset.root}/cat"])
  found = list(predict.predict(workdir, names, top=9))
  for place, name in enumerate(names):
    rows = found[3 * place : 3 * place + 3]
    assert [(row.path, row.rank) for row in rows] == [(name, 1), (name, 2), (name, 3)]
    assert {row.class_name for row in rows} == set(COUNTS)
    probabilities = [row.probability for row in rows]
    assert probabilities == sorted(probabilities, reverse=True) and abs(sum(probabilities) - 1) < 1e-6
    # Cosines are at most 2 apart.
    assert probabilities[0] < np.exp(2 * 7.0) * probabilities[-1]
  assert list(predict.predict(workdir, names, top=2))[:2] == found[:2]


@pytest.mark.parametrize(("adjust", "scale"), [
    ({}, 7.0), (dict(name="kps"), 15.0), (dict(name="logit_adjustment"), 1.0), (None, 1.0),
    (dict(name="gcl", scale=dict(name="linear", start=1.0, end=9.0)), 9.0)], ids=str)
def test_logits_are_scaled_as_in_the_last_stage(run, adjust, scale):
  changed = run[1].copy_and_resolve_references()
  changed.classifier.epochs = 4
  if adjust != {}:
    with changed.classifier.ignore_type():
      changed.classifier.adjust = adjust and ConfigDict(adjust)
  (made,) = tiny.stages(changed).values()
  assert predict.logit_scale(made) == scale


def test_images_of_files_and_folders(run, tmp_path):
  photographs.write_tree(tmp_path, {"b/deep": 2, "a": 1})
  (tmp_path / "notes.txt").write_text("x")
  single = str(tmp_path / "b/deep/001.jpg")
  assert predict.images([single, str(tmp_path)]) == [
      single, *(str(tmp_path / name) for name in ("a/000.jpg", "b/deep/000.jpg", "b/deep/001.jpg"))]
  (tmp_path / "none").mkdir()
  for name, message in (("none", "none: no image in this folder"), ("x.jpg", "x.jpg: no such image")):
    with pytest.raises(DataError, match=message):
      predict.images([single, str(tmp_path / name)])


def test_a_bad_image_is_an_error_or_left_out(run, tmp_path):
  workdir, _, _ = run
  names = [str(tmp_path / name) for name in ("0.jpg", "1.jpg", "2.jpg")]
  for number, name in enumerate(names):
    pathlib.Path(name).write_bytes(photographs.jpeg(number) if number != 1 else b"<html>")
  with pytest.raises(DataError, match=r"1\.jpg: the image cannot be decoded: it is not an image of a known kind"):
    list(predict.predict(workdir, names))
  bad = {}
  assert [row.path for row in predict.predict(workdir, names, top=1, bad=bad)] == [names[0], names[2]]
  assert list(bad) == [names[1]] and "it is not an image" in bad[names[1]]


def test_a_folder_that_is_not_a_finished_run_on_images_is_named(run, tmp_path):
  workdir, _, _ = run
  image = [str(tmp_path / "0.jpg")]
  (tmp_path / "0.jpg").write_bytes(photographs.jpeg(0))
  with pytest.raises(WorkdirError, match="is not a run of ltjax"):
    list(predict.predict(tmp_path / "nowhere", image))
  unfinished = tmp_path / "unfinished"
  unfinished.mkdir()
  shutil.copy(workdir / "config.json", unfinished)
  with pytest.raises(WorkdirError, match=r"unfinished: the run is not finished, as there is no results\.json"):
    list(predict.predict(unfinished, image))
  for content in ("{", "[]", '{"data": {}}', '{"data": {"class_names": ["a"], "class_counts": "x"}}'):
    (unfinished / "results.json").write_text(content)
    with pytest.raises(WorkdirError, match=r"results\.json: not the results of a run"):
      list(predict.predict(unfinished, image))
  digits = tmp_path / "digits"
  tiny.run(tiny.config("ce_digits", epochs=1, backbone=tiny.ONE_CONV), digits)
  with pytest.raises(ConfigError, match="digits: the run was trained on arrays of one size, not on image files"):
    list(predict.predict(digits, image))


@pytest.fixture
def command(capsys):
  """(exit code, stdout, stderr) of a command line."""

  def run(*arguments) -> tuple[int, str, str]:
    code = 0
    try:
      predict.main([str(argument) for argument in arguments])
    except SystemExit as error:
      code = error.code
    return code, *capsys.readouterr()

  return run


def test_the_command_writes_a_table(run, tmp_path, command):
  workdir, config, _ = run
  folder, output = f"{config.dataset.root}/dog", tmp_path / "predictions.csv"
  code, out, err = command(f"--workdir={workdir}", folder, "--top=2")
  assert code == 0, err
  rows = list(csv.DictReader(io.StringIO(out)))
  assert [row["rank"] for row in rows] == ["1", "2"] * 4 and {row["class"] for row in rows} <= set(COUNTS)
  assert all(0 < float(row["probability"]) < 1 for row in rows)
  assert command(f"--workdir={workdir}", folder, "--top=2", f"--output={output}")[:2] == (0, f"written: {output}\n")
  assert output.read_text() == out


def test_an_output_that_is_no_file_is_written_to_and_not_replaced(run, tmp_path, command):
  workdir, config, _ = run
  fifo = tmp_path / "fifo"
  os.mkfifo(fifo)
  reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
  image = f"{config.dataset.root}/dog/000.jpg"
  assert command(f"--workdir={workdir}", image, "--top=1", f"--output={fifo}")[0] == 0
  assert os.read(reading, 10**4).decode().startswith("path,rank,class,probability\n") and not fifo.is_file()
  os.close(reading)


def test_where_no_image_can_be_decoded_the_table_is_empty(run, tmp_path, command):
  (tmp_path / "bad.jpg").write_bytes(b"")
  code, out, _ = command(f"--workdir={run[0]}", tmp_path / "bad.jpg")
  assert (code, out) == (1, "path,rank,class,probability\n")


def test_the_command_lists_bad_images_and_exits_with_1(run, tmp_path, command):
  workdir, config, _ = run
  (tmp_path / "bad.jpg").write_bytes(b"")
  code, out, err = command(f"--workdir={workdir}", tmp_path / "bad.jpg", f"{config.dataset.root}/dog", "--top=1")
  assert code == 1 and len(out.splitlines()) == 5
  assert err.startswith("1 image cannot be decoded and has no prediction:") and "bad.jpg: the file is empty" in err


@pytest.mark.parametrize(("arguments", "message"), [
    (("--workdir={workdir}", "{bad}", "--on-bad-image=error", "--output={tmp}/no.csv"), "the file is empty"),
    (("--workdir={workdir}", "{dogs}", "--top=0"), "--top: expected at least 1, got 0"),
    (("--workdir={tmp}", "{dogs}"), "is not a run of ltjax"),
    (("--workdir={workdir}", "{dogs}", "--output={tmp}/x/y.csv"), "--output: no folder '{tmp}/x'; make it")])
def test_the_command_exits_with_2_after_one_line(run, tmp_path, command, arguments, message):
  workdir, config, _ = run
  bad = tmp_path / "bad.jpg"
  bad.write_bytes(b"")
  code, _, err = command(*(argument.format(workdir=workdir, tmp=tmp_path, bad=bad, dogs=f"{config.dataset.root}/dog")
                           for argument in arguments))
  assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and message.format(tmp=tmp_path) in err, err
  assert not (tmp_path / "no.csv").exists()
