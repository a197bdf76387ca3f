"""The model of a finished run predicts the classes of images, by name, and is evaluated on any of them."""

import csv
import importlib
import io
import json
import os
import pathlib
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict

from ltjax.commands import evaluate, predict
from ltjax.config import spec
from ltjax.errors import ConfigError, DataError, WorkdirError
from ltjax.report import predictions
from tests import photographs, tiny

pytestmark = pytest.mark.usefixtures("no_pictures")
COUNTS = dict(bee=12, cat=6, dog=4)
OF_STAGE = predictions.of_stage  # before it is left out with the pictures


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
  assert predictions.logit_scale(made) == scale


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


# -- evaluate -------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_predictions(monkeypatch):
  monkeypatch.setattr(predictions, "of_stage", OF_STAGE)


def test_the_own_test_set_gives_the_accuracy_of_the_run_again(run, tmp_path, with_predictions):
  workdir, config, results = run
  before = contents(workdir)
  found = evaluate.evaluate(workdir, out=tmp_path / "out")
  assert found["final"] == results["final"] and found["evaluated_on"] == "its test images"
  accuracy = results["stages"]["classifier"]["per_class"]
  assert found["priors"]["uniform"] == pytest.approx(np.mean(accuracy))
  weights = 10.0 ** -np.array([0, 0.5, 1])  # bee, cat, dog: from the largest to the smallest
  assert found["priors"]["forward 10"] == pytest.approx(np.average(accuracy, weights=weights))
  assert found["priors"]["backward 10"] == pytest.approx(np.average(accuracy, weights=weights[::-1]))
  assert json.loads((tmp_path / "out" / "results.json").read_text()) == found
  assert {"index.html", "classes.csv", "predictions.csv"} <= {path.name for path in (tmp_path / "out").iterdir()}
  assert "Other priors" in (tmp_path / "out" / "index.html").read_text()
  assert contents(workdir) == before


def test_a_folder_a_table_and_a_list_of_the_same_images_give_the_same(run, tmp_path, with_predictions):
  workdir, _, _ = run
  paths = photographs.write_tree(tmp_path / "new", dict(dog=2, cat=3), first=50)
  rows = [(path, path.split("/")[0]) for path in paths]
  photographs.write_lines(tmp_path / "new.csv", "path,label", *(f"{path},{name}" for path, name in rows))
  photographs.write_lines(tmp_path / "new.txt", *(f"{path} {sorted(COUNTS).index(name)}" for path, name in rows))
  found = [evaluate.evaluate(workdir, str(data), root, out=tmp_path / "out") for data, root in (
      (tmp_path / "new", ""), (tmp_path / "new.csv", str(tmp_path / "new")), (tmp_path / "new.txt",
                                                                             str(tmp_path / "new")))]
  assert found[0]["data"]["test_images"] == 5 and found[0]["stages"]["classifier"]["per_class"][0] is None
  assert found[0]["metrics"] == found[1]["metrics"] == found[2]["metrics"]
  names = [row.path for row in predict.predict(workdir, [str(tmp_path / "new" / path) for path in paths], top=1)]
  right = [row.class_name == path.split("/")[0] for row, path in zip(
      predict.predict(workdir, names, top=1), paths, strict=True)]
  assert found[0]["final"]["overall"] == np.mean(right)


def test_priors_of_a_file(run, tmp_path, with_predictions):
  workdir, _, results = run
  prior = pathlib.Path(photographs.write_lines(tmp_path / "prior.csv", "class,weight", "dog,1", "cat,3"))
  found = evaluate.evaluate(workdir, prior=prior, out=tmp_path / "out")
  _, cat, dog = results["stages"]["classifier"]["per_class"]
  assert found["priors"]["prior.csv"] == pytest.approx(dog / 4 + 3 * cat / 4)


def test_classes_are_grouped_by_index(run, tmp_path, with_predictions):
  workdir, _, results = run
  found = evaluate.evaluate(workdir, groups="2", out=tmp_path / "out")
  bird, cat, dog = results["stages"]["classifier"]["per_class"]
  assert found["regrouped"] == pytest.approx({"0:2": (bird + cat) / 2, "2:3": dog})
  text = evaluate.table(found)
  assert "of classes by index" in text and "2:3" in text
  assert evaluate.table(found | dict(regrouped={})).count("by index") == 0


@pytest.mark.parametrize(("arguments", "message"), [
    (("{run}", "--regroup=2,1"), "--regroup: expected rising indices between 1 and 2, at which a group"),
    (("{run}", "--regroup=3"), "got '3'"), (("{run}", "--regroup=a"), "got 'a'"),
    (("{run}", "--split=held_out"), "--split: the run holds out no images; there are train, test"),
    (("{run}", "--data={tmp}/none"), "none: no such folder or file"),
    (("{run}", "--data={tmp}/strange"), "the run knows no class 'dogs' (did you mean 'dog'?)"),
    (("{run}", "--prior={tmp}/prior.csv"), "prior.csv:2: expected a weight of at least 0, got '-1'"),
    (("{tmp}",), "is not a run of ltjax")])
def test_evaluate_exits_with_2_after_one_line(run, tmp_path, capsys, arguments, message):
  photographs.write_tree(tmp_path / "strange", dict(dogs=1))
  photographs.write_lines(tmp_path / "prior.csv", "cat,1", "dog,-1")
  with pytest.raises(SystemExit) as stopped:
    evaluate.main([*(text.format(run=run[0], tmp=tmp_path) for text in arguments), f"--out={tmp_path / 'out'}"])
  err = capsys.readouterr().err
  assert stopped.value.code == 2 and message in err and err.count("\n") == 1
  assert not (tmp_path / "out").exists()
