"""Every file in configs/, whatever its method: it builds, it is only data, it says what it is, and it trains."""

import functools
import importlib
import inspect
import json
import os
import pathlib
import re

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from ltjax import recipes
from ltjax.config import bind, keys, load, parse
from ltjax.report import activation_maps, figures, predictions
from tests import tiny

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
ON_FILES = [name for name in NAMES
            if re.search("_(caltech|folder|imagenet_lt|inat|large|places_lt)$|^(csv|folder)$", name)]
every_config = pytest.mark.parametrize("name", NAMES)
PICTURES = {"training_curves", "accuracy_by_class_size", "confusion_matrix", "reliability", "feature_norms", "features"}


def module(name):
  return importlib.import_module(f"configs.{name}")


def test_there_are_configs():
  assert {"ce_digits", "gcl_digits", "gcl_cifar", "gcl_inat", "csv", "seesaw_cifar"} <= set(NAMES)


@every_config
def test_builds_with_its_default_and_with_another_imbalance(name):
  default = load.read(str(FOLDER / f"{name}.py"))
  parse(default)
  if name.endswith("_large"):
    for dataset, called in zip(recipes.LARGE, ("imagenet_lt", "places_lt", "inat2018"), strict=True):
      config = load.read(f"{FOLDER / name}.py:{dataset}")
      assert config.dataset.name == called
      parse(config)
  if "imbalance" not in default.dataset:
    return  # a data set with its own long tail
  other = load.read(f"{FOLDER / name}.py:37.5")
  assert other.dataset.imbalance == 37.5 != default.dataset.imbalance
  before, after = keys.flat(default), keys.flat(other)
  assert {key for key in before if before[key] != after[key]} == {"dataset.imbalance"}
  if name.endswith("_cifar") and name not in ("gcl_lws_cifar", "gcl_tau_norm_cifar"):
    for dataset in recipes.CIFAR:
      config = load.read(f"{FOLDER / name}.py:{dataset},imbalance=20")
      assert (config.dataset.name, config.dataset.imbalance) == (dataset, 20.0)
      parse(config)


@every_config
def test_is_only_literals_tuples_and_dicts(name):
  config = module(name).get_config()

  def plain(value):
    if isinstance(value, dict):
      return all(isinstance(key, str) and plain(entry) for key, entry in value.items())
    if isinstance(value, tuple | list):
      return all(map(plain, value))
    return value is None or type(value) in (bool, int, float, str)

  assert plain(config.to_dict())
  # The work folder holds enough to run again.
  again = ConfigDict(json.loads(config.to_json()))
  parse(again)
  assert again.to_json() == config.to_json()


@every_config
def test_the_docstring_gives_the_published_run_and_the_differences(name):
  text = module(name).__doc__
  assert f"python -m ltjax.main --config=configs/{name}.py --workdir=runs/" in text
  assert "Published " in text or "No published" in text
  assert "Deviations" in text or name == "csv"
  assert "ltjax: see " in text
  assert len(inspect.getsource(module(name)).splitlines()) <= 50


def shrunk(name, features):
  """All parts of the method, on a network of a few hundred parameters, for two steps a stage.

  Without LTJAX_CIFAR_DIR the images are scikit-learn's digits, which also have another shape: this tests the method,
  the schedules and the stages, not the numbers. The digits' configs train a ResNet, the others one convolution, which
  compiles in a third of the time.
  """
  config, digits = module(name).get_config(), recipes.digits_lt(imbalance=5)
  folder = os.environ.get("LTJAX_CIFAR_DIR")
  images = 680
  if name == "frozen":
    config.dataset.root = str(features)
    config.log_every_steps, config.eval_every_epochs, config.checkpoint_every_epochs = 1, 1, 1
    config.classifier.epochs, config.classifier.batch_size = 1, images // 3
    return config
  if folder and config.dataset.name.startswith("cifar"):
    config.dataset.dir, images = folder, 10000
  else:
    with digits.unlocked():
      digits.dataset.update({"holdout_each": 5} if "holdout_each" in config.dataset else {})
    config.dataset = digits.dataset
  if config.dataset.name.startswith("digits") and name != "balanced_softmax_cifar":
    config.augment = digits.augment
  small = dict(ResNet=dict(depth=10, width=4, stem="cifar"), ResNetBBN=dict(depth=14, widths=(4, 4, 8)),
               ResNetCIFAR=dict(depth=8, widths=(4, 4, 8)), ViT=dict(width=12, depth=2, heads=3, patch=4))
  same = {key: value for key, value in config.backbone.to_dict().items() if key in ("name", "insert", "tuning")}
  one = same["name"] == "ResNetCIFAR" and name not in ("ce_digits", "gcl_digits")
  config.backbone = ConfigDict(tiny.ONE_CONV if one else same | small[same["name"]])
  config.pretrained, config.test_crops = "", ""
  config.log_every_steps, config.eval_every_epochs, config.checkpoint_every_epochs = 1, 1, 1
  for stage in config.stages:
    config[stage].epochs, config[stage].batch_size = 1, images // 3
    transforms = [dict(bind.plain(block)) for block in config[stage].transforms]
    for block in transforms:
      if block["name"] == "generate_features":
        block["weight"] = dict(block["weight"], at=0)
    config[stage].transforms = tuple(transforms)
  return config


def special_pictures(of_run, *arguments):
  """The pictures that only some methods have."""
  return [picture for picture in of_run(*arguments) if picture.name in ("activation_maps", "generated_features")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """name -> (config, work folder, results, pictures); configs that differ in the data only are the same when shrunk.

  Drawing takes as long as training: only the digits' configs draw all pictures, and activation maps appear once for
  each network and head.
  """
  runs, seen, features = {}, set(), tmp_path_factory.mktemp("features") / "digits.safetensors"
  tiny.features(features)

  def run(name):
    config = shrunk(name, features)
    if config.to_json() not in runs:
      workdir = tmp_path_factory.mktemp(name)
      heads = [config.head, *(config[stage].head for stage in config.stages)]
      network = config.backbone.name, *(head.name for head in heads if head)
      pictures = PICTURES if name.endswith("digits") else set()
      with pytest.MonkeyPatch.context() as patch:
        if not pictures:
          patch.setattr(figures, "of_run", functools.partial(special_pictures, figures.of_run))
          patch.setattr(predictions, "of_stage", lambda *args: None)
        if network in seen:
          patch.setattr(activation_maps, "of_stage", lambda *args: None)
        seen.add(network)
        runs[config.to_json()] = config, workdir, tiny.run(config, workdir), pictures
    return runs[config.to_json()]

  return run


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(ON_FILES)))
def test_trains(name, trained):
  config, workdir, results, pictures = trained(name)
  assert json.loads((workdir / "config.json").read_text()) == json.loads(config.to_json())
  assert json.loads((workdir / "results.json").read_text()) == results
  assert {path.name for path in workdir.iterdir()} == {
      ".lock", "config.json", "identity.json", "results.json", "report", *config.stages}
  for stage in config.stages:
    lines = tiny.log(workdir, stage)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == results["stages"][stage]["steps"] >= 2
    assert np.isfinite(losses).all() and min(losses) > 0
    assert sum("test" in line for line in lines) == 1
    assert tiny.saved_steps(workdir, stage)[-1] == len(losses)
    assert 0 < results["stages"][stage]["test"]["overall"] < 1
  assert results["preset"] == json.loads(config.to_json()).get("preset")
  written = {path.name for path in (workdir / "report").iterdir()}
  assert {"README.md", "index.html", "classes.csv", *(f"{picture}.png" for picture in pictures)} <= written
  assert ("predictions.csv" in written) == ("auc" in results["metrics"]) == bool(pictures)
  generated = any(block["name"] == "generate_features" for stage in config.stages for block in config[stage].transforms)
  assert ("generated_features.png" in written) == generated
  for path in (workdir / "report").glob("*.png"):
    with Image.open(path) as image:
      image.load()
