"""What `ltjax predict` makes of a model beside its first guess: temperatures, priors, post-hoc methods, pictures."""

import csv
import io
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from ltjax import bridge
from ltjax.commands import evaluate, export, posthoc, predict
from ltjax.commands.deploy import readouts, targets
from ltjax.config import load
from ltjax.errors import ConfigError, WorkdirError
from ltjax.report import readout
from tests import tiny
from tests.photographs import write_crops

pytestmark = pytest.mark.usefixtures("no_pictures")
COUNTS = {"=1+1": 16, "a|b $x$ <b>": 10, "k\udce4fer": 8}
NAMES = sorted(COUNTS)
HELD_OUT = 7  # a quarter of each class, without its test images


@pytest.fixture(scope="module")
def finished(tmp_path_factory, no_pictures):
  """(work folder, paths of images) of a finished run that holds images out, on classes with hostile names."""
  folder = tmp_path_factory.mktemp("photographs")
  paths = write_crops(folder / "images", COUNTS)
  config = load.read("configs/gcl_folder.py:resnet10,size=32,batch_size=8,epochs=1,retrain_epochs=1")
  config.dataset.root, config.stages = str(folder / "images"), ("classifier",)
  with config.unlocked(), config.ignore_type():
    del config.representation
    config.dataset.holdout, config.backbone, config.head = 0.25, tiny.ONE_CONV, dict(name="Linear")
    config.classifier.adjust, config.classifier.loss = None, dict(name="cross_entropy")
    config.classifier.sampler, config.classifier.train = dict(name="instance"), (".*",)
  tiny.run(config, folder / "run")
  return folder / "run", paths


@pytest.fixture
def run(finished, tmp_path):
  """The same with a work folder of its own."""
  return shutil.copytree(finished[0], tmp_path / "run"), finished[1]


def probabilities(workdir, paths, **asked) -> np.ndarray:
  """[n c], in the order of the classes."""
  rows = list(predict.predict(workdir, paths, **asked))
  found = {(row.path, row.class_name): row.probability for row in rows}
  return np.array([[found[path, name] for name in NAMES] for path in paths])


# -- temperature and priors -------------------------------------------------------------------------------------------


def test_the_temperature_is_the_best_on_held_out_images_and_stays(run):
  workdir, paths = run
  plain, calibrated = probabilities(workdir, paths[:4]), probabilities(workdir, paths[:4], calibrated=True)
  stored = json.loads((workdir / "calibration.json").read_text())[""]
  assert stored["images"] == HELD_OUT
  assert stored["negative_log_likelihood"]["after"] < stored["negative_log_likelihood"]["before"]
  logits = np.log(plain) / stored["temperature"]
  np.testing.assert_allclose(calibrated, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), atol=1e-5)
  images, labels = evaluate.own_split(workdir, "held_out", NAMES)
  stage, variables = bridge.finished(workdir)
  shift = readout.shift(readout.assumed_prior(stage), stage.class_counts)
  np.testing.assert_allclose(shift, 0, atol=1e-6)  # trained on what is there, so there is nothing to correct
  held_out = stage.extractor(variables)(images, "logits")["logits"]

  def loss(temperature):
    found = np.asarray(readout.Readout(1.0, temperature)(None, held_out))
    return -np.mean(np.log(found[np.arange(len(labels)), labels]))

  assert loss(stored["temperature"]) <= min(map(loss, (0.5, 1.0, 2.0, stored["temperature"] * 1.1))) + 1e-6
  shutil.move(paths[0], f"{paths[0]}.away")  # it is read from the file from now on
  try:
    np.testing.assert_allclose(probabilities(workdir, paths[1:4], calibrated=True), calibrated[1:], atol=1e-6)
  finally:
    shutil.move(f"{paths[0]}.away", paths[0])


def test_a_temperature_of_another_model_or_of_other_data_is_none(run):
  workdir, paths = run
  (workdir / "calibration.json").write_text(json.dumps({"": dict(temperature=9.0, weights_sha256="other")}))
  (row,) = predict.predict(workdir, paths[:1], top=1, calibrated=True)
  assert json.loads((workdir / "calibration.json").read_text())[""]["temperature"] != 9.0 and row.rank == 1
  (workdir / "calibration.json").unlink()
  shutil.move(paths[0], f"{paths[0]}.away")
  try:
    with pytest.raises(WorkdirError, match="the data of its config are not those that the run was trained on: "):
      list(predict.predict(workdir, paths[1:2], calibrated=True))
  finally:
    shutil.move(f"{paths[0]}.away", paths[0])


def test_priors_multiply_the_probabilities(run, tmp_path):
  workdir, paths = run
  stage, _ = bridge.finished(workdir)
  plain, counts = probabilities(workdir, paths[:5]), stage.class_counts
  np.testing.assert_allclose(probabilities(workdir, paths[:5], prior="train"), plain, atol=1e-6)
  uniform = plain / counts
  np.testing.assert_allclose(probabilities(workdir, paths[:5], prior="uniform"),
                             uniform / uniform.sum(axis=1, keepdims=True), atol=1e-5)
  with open(tmp_path / "prior.csv", "w", newline="", errors="surrogateescape") as file:
    csv.writer(file).writerows([(NAMES[0], 1), (NAMES[2], 3)])
  found = probabilities(workdir, paths[:5], prior=str(tmp_path / "prior.csv"))
  expected = plain / counts * [1, 0, 3]
  np.testing.assert_allclose(found, expected / expected.sum(axis=1, keepdims=True), atol=1e-5)


def test_the_temperature_of_made_up_logits():
  generator = np.random.default_rng(0)
  logits = generator.normal(size=(4000, 3))
  chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  labels = np.array([generator.choice(3, p=row) for row in chance])
  assert readout.temperature(5 * logits, labels)[0] == pytest.approx(5, rel=0.1)
  shift = np.array([1.0, 0.0, -1.0])
  assert readout.temperature(3 * (logits - shift), labels, shift)[0] == pytest.approx(3, rel=0.1)


# -- post-hoc methods -------------------------------------------------------------------------------------------------


def test_methods_run_without_training_and_predict(run, capsys):
  workdir, paths = run
  posthoc.main([str(workdir)])
  out = capsys.readouterr().out
  entries = {entry["name"]: entry for entry in json.loads((workdir / "posthoc.json").read_text())}
  assert set(entries) == set(posthoc.CANDIDATES) and "classifier + tau_normalize(tau=" in out
  assert all(entry["selection"]["images"] == HELD_OUT for entry in entries.values())
  test = evaluate.own_split(workdir, "test", NAMES)
  names = [test[0].name(k) for k in range(len(test[1]))]
  for name, entry in entries.items():
    found = probabilities(workdir, names, method=name)
    assert np.mean(found.argmax(axis=1) == test[1]) == pytest.approx(entry["test"]["overall"]), name
  assert probabilities(workdir, paths[:2], method="tau_normalize", calibrated=True).shape == (2, 3)
  assert set(json.loads((workdir / "calibration.json").read_text())) == {"tau_normalize"}


@pytest.mark.parametrize("method", posthoc.CANDIDATES)
def test_a_method_is_exported(run, tmp_path, method):
  workdir, _ = run
  posthoc.run(workdir, [method])
  export.export(workdir, "stablehlo", tmp_path / "out", method=method)
  images, _ = evaluate.own_split(workdir, "test", NAMES)
  stage, variables = bridge.finished(workdir)
  found = readouts.make(workdir, stage, variables, method=method)
  outputs = stage.extractor(variables)(images, "features", "logits")
  pixels = predict.evaluate.pixels(images, np.arange(len(images)), stage.augmentation)
  np.testing.assert_allclose(targets.load("stablehlo", tmp_path / "out")(pixels),
                             found(outputs["features"], outputs["logits"]), atol=1e-5)


def test_candidates_of_ones_own(run):
  workdir, _ = run
  (entry,) = posthoc.run(workdir, ["dict(name='tau_normalize', tau=(0.5, 0.7))"])
  assert [each["tau"] for each in entry["selection"]["candidates"]] == [0.5, 0.7]
  (fixed,) = posthoc.run(workdir, ["dict(name='tau_normalize', tau=0.3)"])
  assert fixed["hyper_parameters"] == dict(tau=0.3)
  assert [found["hyper_parameters"] for found in json.loads((workdir / "posthoc.json").read_text())] == [dict(tau=0.3)]


@pytest.mark.parametrize(("arguments", "message"), [
    (("--method=tau_normalise",), "there is no post-hoc method 'tau_normalise' (did you mean 'tau_normalize'?)"),
    (("--method=dict(name='tau_normalize', tau=-1)",), "tau"),
    (("--method=(1,)",), "expected a name or dict(name=...")])
def test_posthoc_exits_with_2_after_one_line(finished, capsys, arguments, message):
  with pytest.raises(SystemExit) as stopped:
    posthoc.main([str(finished[0]), *arguments])
  err = capsys.readouterr().err
  assert stopped.value.code == 2 and message in err and err.count("\n") == 1 and not (
      finished[0] / "posthoc.json").exists()


# -- output -----------------------------------------------------------------------------------------------------------


def test_json_lines_have_an_object_for_each_image(run, tmp_path, command):
  workdir, paths = run
  (tmp_path / "bad.png").write_bytes(b"<html>")
  code, out, err = command(f"--workdir={workdir}", *paths[:2], tmp_path / "bad.png", "--top=2", "--format=jsonl")
  assert code == 1 and "bad.png: it is not an image of a known kind" in err
  rows = [json.loads(line) for line in out.splitlines()]
  assert len(rows) == 2 and rows[0]["path"] == paths[0] and set(rows[0]) == {"path", "classes"}
  assert {row["class"] for each in rows for row in each["classes"]} <= {"=1+1", "a|b $x$ <b>", r"k\xe4fer"}
  assert all(each["classes"][0]["probability"] >= each["classes"][1]["probability"] for each in rows)


def test_no_class_name_runs_in_a_spreadsheet(run, command):
  workdir, paths = run
  code, out, _ = command(f"--workdir={workdir}", paths[0])
  assert code == 0
  assert {row["class"] for row in csv.DictReader(io.StringIO(out))} == {"'=1+1", "a|b $x$ <b>", r"k\xe4fer"}


def test_an_explanation_lies_over_its_image(run, tmp_path, command):
  workdir, paths = run
  code, out, err = command(f"--workdir={workdir}", paths[-1], paths[0], "--top=2", f"--explain={tmp_path / 'maps'}")
  assert code == 0, err
  rows = list(csv.DictReader(io.StringIO(out)))
  files = [row["explanation"] for row in rows if row["rank"] == "1"]
  assert [os.path.basename(file) for file in files] == ["00001_7.png", "00002_0.png"]
  stage, _ = bridge.finished(workdir)
  images = predict.decode.Images(predict._Named([paths[-1], paths[0]]), predict.decode.BadImages("error", 2))
  for file, image in zip(files, predict.evaluate.pixels(images, np.arange(2), stage.augmentation), strict=True):
    with Image.open(file) as picture:
      heat = np.asarray(picture, float) - 0.45 * image
    assert heat.min() >= -1 and heat.max() <= 0.55 * 255 + 1 and np.ptp(heat) > 100
  assert command(f"--workdir={workdir}", paths[0], f"--explain={tmp_path / 'maps'}")[0] == 2  # not empty


@pytest.mark.parametrize(("arguments", "message"), [
    (("--prior=unifrom",), "--prior: 'unifrom' is no file (did you mean 'uniform'?)"),
    (("--posthoc=tau_normalize",), "has no results of 'tau_normalize'; there are none; `python -m ltjax posthoc ")])
def test_the_command_exits_with_2_after_one_line(finished, command, arguments, message):
  code, out, err = command(f"--workdir={finished[0]}", finished[1][0], *arguments)
  assert (code, out, err.count("\n")) == (2, "", 1) and message in err


@pytest.mark.parametrize(("module", "example"), [
    (predict, "python -m ltjax predict --workdir=runs/mine"), (posthoc, "python -m ltjax posthoc runs/mine")])
def test_help_has_an_example(capsys, module, example):
  with pytest.raises(SystemExit) as stopped:
    module.main(["--help"])
  assert stopped.value.code == 0 and example in capsys.readouterr().out


def test_without_held_out_images_there_is_no_temperature(tmp_path):
  paths = write_crops(tmp_path / "images", {"a": 6, "b": 5})
  config = load.read("configs/gcl_folder.py:resnet10,size=32,batch_size=8,epochs=1,retrain_epochs=1")
  config.dataset.root, config.stages = str(tmp_path / "images"), ("classifier",)
  with config.unlocked(), config.ignore_type():
    del config.representation
    config.backbone = tiny.ONE_CONV
  tiny.run(config, tmp_path / "run")
  with pytest.raises(ConfigError, match=r"--calibrated: .*run holds out no images that a temperature could be fitted "
                     r"on; train with --config\.dataset\.holdout=0\.1$"):
    list(predict.predict(tmp_path / "run", paths, calibrated=True))
  found = posthoc.run(tmp_path / "run")
  assert {entry["name"]: entry["selection"] for entry in found} == dict.fromkeys(posthoc.CANDIDATES)
  with pytest.raises(ConfigError, match="--prior: what nearest_class_mean assumes of the classes is not known"):
    list(predict.predict(tmp_path / "run", paths, method="nearest_class_mean", prior="uniform"))
