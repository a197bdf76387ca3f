"""Every file in configs/, whatever its method: it builds, it is only data, it says what it is, and it trains."""

import importlib
import inspect
import json
import os
import pathlib

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from ltjax import recipes
from ltjax.config import load as configs
from tests import tiny

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
PHOTOGRAPHS = [name for name in NAMES if name.endswith(("_caltech", "_folder", "_imagenet_lt", "_inat", "_places_lt"))]
every_config = pytest.mark.parametrize("name", NAMES)


def module(name):
  return importlib.import_module(f"configs.{name}")


def test_there_are_configs():
  assert {"ce_digits", "gcl_digits", "gcl_cifar100"} <= set(NAMES)


@every_config
def test_builds_with_its_default_and_with_another_imbalance(name):
  get_config = module(name).get_config
  default = get_config()
  configs.check(default)
  if "imbalance" not in inspect.signature(get_config).parameters:
    pytest.skip("a data set with a tail of its own")
  other = get_config("37.5")
  configs.check(other)
  assert other.dataset.imbalance == 37.5 != default.dataset.imbalance
  assert float(inspect.signature(get_config).parameters["imbalance"].default) == default.dataset.imbalance
  assert {key for key in configs._flat(default) if configs._flat(default)[key] != configs._flat(other)[key]} == {
      "dataset.imbalance"}


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
  # What the work folder keeps is enough to run again.
  again = ConfigDict(json.loads(config.to_json()))
  configs.check(again)
  assert again.to_json() == config.to_json()


@every_config
def test_docstring_says_how_to_run_what_was_published_and_what_differs(name):
  text = module(name).__doc__
  assert f"python -m ltjax.main --config=configs/{name}.py --workdir=runs/" in text
  assert "Published " in text or "No published" in text
  assert "Deviations" in text
  assert "ltjax: see " in text
  assert len(inspect.getsource(module(name)).splitlines()) <= 50


def shrunk(name):
  """All parts of the method, on a network of a few hundred parameters, for two steps a stage.

  Where LTJAX_CIFAR_DIR gives no CIFAR, its place is taken by other real images, scikit-learn's digits, which also have
  another shape: what is tested is the method, the schedules and the stages, not the numbers.
  """
  config, digits = module(name).get_config(), recipes.digits_lt(imbalance=5)
  folder = os.environ.get("LTJAX_CIFAR_DIR")
  images = 680
  if folder and config.dataset.name.startswith("cifar"):
    config.dataset.dir, images = folder, 10000
  else:
    config.dataset, config.augment = digits.dataset, digits.augment
  small = dict(ResNet=dict(depth=10, width=4, stem="cifar"), ResNetBBN=dict(depth=14, widths=(4, 4, 8)),
               ResNetCIFAR=dict(depth=8, widths=(4, 4, 8)))
  kept = {key: value for key, value in config.backbone.to_dict().items() if key in ("name", "insert")}
  config.backbone = ConfigDict(kept | small[kept["name"]])
  config.log_every_steps, config.eval_every_epochs, config.checkpoint_every_epochs = 1, 1, 1
  for stage in config.stages:
    config[stage].epochs, config[stage].batch_size = 1, images // 3
    if config[stage].generation:
      config[stage].generation.weight.at = 0
  return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """name -> (config, work folder, results); configs that differ in the data only are the same when shrunk."""
  runs = {}

  def run(name):
    config = shrunk(name)
    if config.to_json() not in runs:
      workdir = tmp_path_factory.mktemp(name)
      runs[config.to_json()] = config, workdir, tiny.run(config, workdir)
    return runs[config.to_json()]

  return run


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(PHOTOGRAPHS)))
def test_trains(name, trained):
  config, workdir, results = trained(name)
  assert json.loads((workdir / "config.json").read_text()) == json.loads(config.to_json())
  assert json.loads((workdir / "results.json").read_text()) == results
  assert {path.name for path in workdir.iterdir()} == {".lock", "config.json", "results.json", "report", *config.stages}
  for stage in config.stages:
    lines = tiny.log(workdir, stage)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == results["stages"][stage]["steps"] >= 2
    assert np.isfinite(losses).all() and min(losses) > 0
    assert sum("test" in line for line in lines) == 1
    assert tiny.saved_steps(workdir, stage)[-1] == len(losses)
    assert 0 < results["stages"][stage]["test"]["overall"] < 1
  assert {path.name for path in (workdir / "report").iterdir()} == {
      "README.md", "training_curves.png", "accuracy_by_class_size.png", "confusion_matrix.png",
      "activation_maps.png"}
  for path in (workdir / "report").glob("*.png"):
    with Image.open(path) as image:
      image.load()
