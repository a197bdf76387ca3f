"""A run's model in files that need no ltjax: the same probabilities, read by the format's own runtime."""

import importlib.util
import json
import pathlib
import re
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from ltjax import bridge
from ltjax.commands import evaluate, export, predict
from ltjax.commands.deploy import targets
from ltjax.config import load
from ltjax.errors import ConfigError, WorkdirError
from ltjax.report import readout
from tests import tiny
from tests.photographs import write_crops

pytestmark = pytest.mark.usefixtures("no_pictures")
ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCS = (ROOT / "docs" / "export.md").read_text()
NAMES = ["=1+1", "a|b $x$ <b>", "k\udce4fer"]


def installed(target: str):
  missing = [package for module, package in targets.TARGETS[target].needs if not importlib.util.find_spec(module)]
  if target == "savedmodel" and jax.__version_info__ >= (0, 11):
    missing = ["a TensorFlow that reads what jax 0.11 writes"]
  return pytest.param(target, marks=pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}"))


TARGETS = [installed(target) for target in targets.TARGETS]


@pytest.fixture(scope="module", autouse=True)
def short_measurements():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(export, "_SECONDS", 0.01)
    yield


@pytest.fixture(scope="module")
def digits(tmp_path_factory, no_pictures):
  """(work folder, test images) of a finished run on arrays."""
  folder = tmp_path_factory.mktemp("digits") / "run"
  config = tiny.config("gcl_digits", epochs=1)
  config.stages = ("representation",)
  with config.unlocked():
    del config.classifier
  tiny.run(config, folder)
  return folder, tiny.dataset(config).test[0]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory, no_pictures):
  """(work folder, paths of images) of a finished run on crops of real photographs, in classes with hostile names."""
  folder = tmp_path_factory.mktemp("photographs")
  paths = write_crops(folder / "images", dict(zip(NAMES, (9, 6, 4), strict=True)))
  config = load.read("configs/gcl_folder.py:resnet10,size=32,batch_size=8,epochs=1,retrain_epochs=1")
  config.dataset.root, config.stages = str(folder / "images"), ("classifier",)
  with config.unlocked(), config.ignore_type():
    del config.representation
    config.backbone = dict(name="ResNetCIFAR", depth=8, widths=(4, 4, 8))
  tiny.run(config, folder / "run")
  return folder / "run", paths


@pytest.mark.parametrize("target", TARGETS)
def test_arrays_have_the_probabilities_of_the_run(digits, tmp_path, target):
  workdir, images = digits
  found = export.export(workdir, target, tmp_path / "out")
  stage, variables = bridge.finished(workdir)
  read, call = readout.of_stage(stage), targets.load(target, tmp_path / "out")
  assert read.scale == 30.0  # cosines without their scale would pass a comparison of argmax alone
  for some in (images[:1], images[:7]):  # any number of images
    outputs = stage.extractor(variables, 7)(some, "features", "logits")
    np.testing.assert_allclose(call(some), read(outputs["features"], outputs["logits"]), atol=1e-5)
  stored = json.loads((tmp_path / "out" / "model.json").read_text())
  assert stored == json.loads(json.dumps(found))
  assert stored["bytes"] > 1000 and set(stored["latency_ms"]) == {"1", "32"} and min(stored["latency_ms"].values()) > 0
  assert stored["input"]["shape"] == ["batch", 8, 8, 1] and stored["output"]["shape"] == ["batch", 10]
  assert json.loads((tmp_path / "out" / "classes.json").read_text()) == list(stage.dataset.class_names)


@pytest.mark.parametrize("target", TARGETS)
def test_the_example_of_the_docs_predicts_a_photograph(photographs, tmp_path, target):
  """Without ltjax, in ten lines; its own resize of the image may round otherwise than ours."""
  workdir, paths = photographs
  out = tmp_path / "out"
  export.export(workdir, target, out)
  blocks = [re.search(rf"<!-- {name} -->\n```python\n(.*?)```", DOCS, re.DOTALL)[1] for name in ("image", target)]
  assert "ltjax" not in "".join(blocks) and all(len(block.splitlines()) <= 10 for block in blocks)
  (tmp_path / "example.py").write_text("".join(blocks) + "print(ascii(probabilities[0].tolist()))\n")
  done = subprocess.run([sys.executable, "-I", "example.py", str(out), paths[0]], cwd=tmp_path, capture_output=True,
                        text=True, timeout=120, errors="backslashreplace")
  assert done.returncode == 0, done.stderr[-2000:]
  probabilities = json.loads(done.stdout.splitlines()[-1])
  ours = {row.class_name: row.probability for row in predict.predict(workdir, [paths[0]])}
  names = json.loads((out / "classes.json").read_text())
  np.testing.assert_allclose(probabilities, [ours[name] for name in names], atol=0.02)


def test_a_tensorflow_that_is_too_old_for_jax_is_named(digits, tmp_path, monkeypatch):
  tf = pytest.importorskip("tensorflow")

  def refuse(images):
    raise tf.errors.InvalidArgumentError(None, None, "Cannot deserialize computation: unregistered operation")

  monkeypatch.setattr(tf.saved_model, "load", lambda path: types.SimpleNamespace(predict=refuse))
  with pytest.raises(ConfigError, match=rf"TensorFlow {tf.__version__} is too old to read what jax "):
    export.export(digits[0], "savedmodel", tmp_path / "out")
  assert not list(tmp_path.iterdir())


def test_a_prior_is_inside(digits, tmp_path):
  workdir, images = digits
  stage, _ = bridge.finished(workdir)
  plain, uniform = (targets.load("stablehlo", tmp_path / name) for name, prior in (("a", ""), ("b", "uniform"))
                    if export.export(workdir, "stablehlo", tmp_path / name, prior=prior))
  corrected = plain(images[:9]) / readout.assumed_prior(stage)
  np.testing.assert_allclose(uniform(images[:9]), corrected / corrected.sum(axis=1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize(("changes", "expected"), [
    ({}, [0.9, 0.1]), (dict(sampler=dict(name="class_balanced")), [0.5, 0.5]),
    (dict(sampler=dict(name="class_aware")), [0.5, 0.5]), (dict(adjust=dict(name="logit_adjustment")), [0.5, 0.5]),
    (dict(adjust=dict(name="logit_adjustment", tau=0.5)), [0.75, 0.25]),
    (dict(class_weights=dict(name="inverse_frequency")), [0.5, 0.5])], ids=str)
def test_what_a_stage_assumes_of_its_classes(changes, expected):
  config = tiny.config("ce_digits", backbone=tiny.ONE_CONV, **{
      f"representation__{key}": value for key, value in changes.items()})
  (stage,) = tiny.stages(config).values()
  stage.class_counts = np.array([90, 10])
  np.testing.assert_allclose(readout.assumed_prior(stage), expected, atol=1e-6)


def test_a_class_of_prior_0_is_never_predicted():
  found = readout.Readout(1.0, shift=readout.shift(np.array([1, 1]), np.array([1, 0])))(None, np.array([[0.0, 99.0]]))
  np.testing.assert_allclose(found, [[1, 0]])


def test_hostile_names_come_through(photographs, tmp_path):
  out = tmp_path / "out"
  export.export(photographs[0], "stablehlo", out)
  assert json.loads((out / "classes.json").read_text()) == sorted(NAMES)
  assert sorted(path.name for path in out.iterdir()) == ["classes.json", "model.json", "model.stablehlo"]


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "message"), [
    (("{run}", "--to=onxx"), "--to: there is no format 'onxx' (did you mean 'onnx'?); there are stablehlo, "),
    (("{tmp}", "--to=stablehlo"), "is not a run of ltjax"),
    (("{run}", "--to=stablehlo", "--out={tmp}"), "exists; remove it, or give another folder"),
    (("{run}", "--to=stablehlo", "--prior=unifrom"), "--prior: 'unifrom' is no file (did you mean 'uniform'?)")])
def test_the_command_exits_with_2_after_one_line(digits, tmp_path, capsys, arguments, message):
  with pytest.raises(SystemExit) as stopped:
    export.main([text.format(run=digits[0], tmp=tmp_path) for text in arguments])
  out, err = capsys.readouterr()
  assert (stopped.value.code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1, err
  assert message in err
  assert not list(tmp_path.iterdir())


def test_a_missing_package_is_one_command(digits, tmp_path, monkeypatch):
  monkeypatch.setattr(targets.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ConfigError, match=r"--to=onnx needs jax2onnx<0\.14 and onnxruntime, which are not installed: "
                     r"pip install 'jax2onnx<0\.14' onnxruntime$"):
    export.export(digits[0], "onnx", tmp_path / "out")
  assert not list(tmp_path.iterdir())


def test_a_converter_that_fails_or_is_wrong_leaves_nothing(digits, tmp_path, monkeypatch):
  def fail(model, folder):
    raise NotImplementedError("no such\n  operation")

  good = targets.TARGETS["stablehlo"]
  monkeypatch.setitem(targets.TARGETS, "stablehlo", good._replace(write=fail))
  with pytest.raises(ConfigError, match=r"cannot express this model \(NotImplementedError: no such operation\)"):
    export.export(digits[0], "stablehlo", tmp_path / "out")
  monkeypatch.setitem(targets.TARGETS, "stablehlo", good._replace(load=lambda folder: lambda images: np.zeros((2, 10))))
  with pytest.raises(ConfigError, match=r"the converted model's probabilities differ from the run's by 0\.\d+, so it "
                     "is not kept"):
    export.export(digits[0], "stablehlo", tmp_path / "out")
  assert not list(tmp_path.iterdir())


def test_a_run_on_features_or_under_way_has_no_model_of_images(digits, tmp_path):
  tiny.features(tmp_path / "features.safetensors")
  config = load.read("configs/frozen.py")
  config.dataset.root, config.classifier.epochs = str(tmp_path / "features.safetensors"), 1
  tiny.run(config, tmp_path / "run")
  with pytest.raises(ConfigError, match="run: the run was trained on a file of features, not on images"):
    export.export(tmp_path / "run", "stablehlo", tmp_path / "out")
  with pytest.raises(ConfigError, match="run: the run was trained on a file of features, not on images"):
    list(predict.predict(tmp_path / "run", ["a.jpg"]))
  (tmp_path / "run" / "results.json").unlink()
  with pytest.raises(WorkdirError, match="the run is not finished"):
    export.export(tmp_path / "run", "stablehlo", tmp_path / "out")


def test_the_command_writes_beside_the_run_and_says_how_fast(digits, capsys):
  workdir, _ = digits
  export.main([str(workdir), "--to=stablehlo"])
  out, err = capsys.readouterr()
  assert "input       uint8 [batch, 8, 8, 1]" in out and "32 images" in out and " MB" in out and err == ""
  assert f"written: {workdir / 'export' / 'stablehlo' / 'model.stablehlo'}" in out
  with pytest.raises(SystemExit) as stopped:
    export.main(["--help"])
  assert stopped.value.code == 0 and "export runs/mine --to=stablehlo" in capsys.readouterr().out


def test_priors_of_a_run(digits, tmp_path):
  stage, _ = bridge.finished(digits[0])
  assert evaluate.target_prior("uniform", stage).tolist() == [1] * 10
  assert evaluate.target_prior("train", stage).tolist() == stage.class_counts.tolist()
  (tmp_path / "prior.csv").write_text("class,weight\n3,2.5\n")
  assert evaluate.target_prior(str(tmp_path / "prior.csv"), stage).tolist() == [0, 0, 0, 2.5, *[0] * 6]
