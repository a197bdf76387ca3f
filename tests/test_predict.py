"""Predictions with the names of classes, by the model that a run leaves."""

import csv
import importlib
import io
import pathlib
import shutil
import sys

import numpy as np
import pytest

from ltjax.commands import predict
from ltjax.config import bind as build
from ltjax.errors import ConfigError, DataError, WorkdirError
from tests import photographs, tiny

COUNTS = dict(bee=12, cat=6, dog=4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """(work folder, config, results) of a finished run on a folder of images."""
  folder = tmp_path_factory.mktemp("run")
  photographs.write_tree(folder / "images", COUNTS)
  config = importlib.import_module("configs.gcl_folder").get_config(
      "resnet10,size=16,batch_size=8,epochs=1,retrain_epochs=1")
  config.dataset.root, config.eval_batch_size, config.classifier.adjust.scale = str(folder / "images"), 3, 7.0
  config.stages = ("classifier",)  # one takes half the time
  with config.unlocked():
    del config.representation
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(build, "model", tiny.one_conv)
    results = tiny.run(config, folder / "mine")
  return folder / "mine", config, results


@pytest.fixture(autouse=True)
def small(monkeypatch):
  monkeypatch.setattr(build, "model", tiny.one_conv)


def contents(folder):
  return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_test_set_is_predicted_as_the_run_was_tested(run, monkeypatch):
  workdir, config, results = run
  before = contents(workdir)
  monkeypatch.setattr(predict, "_BATCHES", 1)  # several rounds
  files, labels = build.dataset(config)().test
  names = [files.name(place) for place in range(len(files))]
  assert len(names) > config.eval_batch_size
  found = list(predict.predict(workdir, names, top=1))
  assert [row.path for row in found] == names and {row.rank for row in found} == {1}
  right = [row.class_name == sorted(COUNTS)[label] for row, label in zip(found, labels, strict=True)]
  assert np.mean(right) == results["final"]["overall"]
  assert contents(workdir) == before


def test_all_classes_in_the_order_of_their_probability(run):
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


def test_the_scale_is_that_of_the_stage(run):
  _, config, _ = run
  assert predict._scale(config, "classifier") == 7.0
  changed = config.copy_and_resolve_references()
  changed.classifier.adjust = dict(name="kps")
  assert predict._scale(changed, "classifier") == 15.0
  changed.classifier.adjust = dict(name="logit_adjustment")
  assert predict._scale(changed, "classifier") == 1.0
  changed.classifier.adjust = None
  assert predict._scale(changed, "classifier") == 1.0


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


def test_a_bad_image_stops_or_is_left_out_as_in_the_run(run, tmp_path, capsys):
  workdir, config, _ = run
  names = [str(tmp_path / name) for name in ("0.jpg", "1.jpg", "2.jpg")]
  for number, name in enumerate(names):
    pathlib.Path(name).write_bytes(photographs.jpeg(number) if number != 1 else b"<html>")
  with pytest.raises(DataError, match=r"1\.jpg: the image cannot be decoded: it is not an image of a known kind"):
    list(predict.predict(workdir, names))
  lenient = tmp_path / "lenient"
  shutil.copytree(workdir, lenient)
  text = (lenient / "config.json").read_text()
  (lenient / "config.json").write_text(text.replace('"dataset": {', '"dataset": {"on_bad_image": "substitute",'))
  assert [row.path for row in predict.predict(lenient, names, top=1)] == [names[0], names[2]]
  assert f"left out: 1 images that cannot be decoded:\n  {names[1]}: it is not an image" in capsys.readouterr().err


def test_what_is_no_finished_run_on_photographs_is_named(run, tmp_path):
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
  digits.mkdir()
  (digits / "config.json").write_text(tiny.config("ce_digits").to_json())
  shutil.copy(workdir / "results.json", digits)
  with pytest.raises(ConfigError, match="the images of 'digits' have one size and are no photographs"):
    list(predict.predict(digits, image))


def test_the_command(run, tmp_path, monkeypatch, capsys):
  workdir, config, _ = run

  def command(*arguments) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["predict", *map(str, arguments)])
    code = 0
    try:
      predict._main()
    except SystemExit as error:
      code = error.code
    return code, *capsys.readouterr()

  folder, output = f"{config.dataset.root}/dog", tmp_path / "predictions.csv"
  code, out, err = command(f"--workdir={workdir}", folder, "--top=2")
  assert code == 0, err
  rows = list(csv.DictReader(io.StringIO(out)))
  assert [row["rank"] for row in rows] == ["1", "2"] * 4 and {row["class"] for row in rows} <= set(COUNTS)
  assert all(0 < float(row["probability"]) < 1 for row in rows)
  assert command(f"--workdir={workdir}", folder, "--top=2", f"--output={output}")[:2] == (0, f"written: {output}\n")
  assert output.read_text() == out
  bad = tmp_path / "bad.jpg"
  bad.write_bytes(b"")
  for arguments, message in (((f"--workdir={workdir}", bad, f"--output={tmp_path / 'no.csv'}"), "the file is empty"),
                             ((f"--workdir={workdir}", folder, "--top=0"), "--top: expected at least 1, got 0"),
                             ((f"--workdir={tmp_path}", folder), "is not a run of ltjax"),
                             ((f"--workdir={workdir}", folder, f"--output={tmp_path}/x/y.csv"), "No such file")):
    code, out, err = command(*arguments)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and message in err, err
  assert not (tmp_path / "no.csv").exists()
