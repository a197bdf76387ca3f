"""What is wrong with a config is said before data, devices and the work folder are touched, with the way to mend it."""

import functools
import importlib
import json
import pathlib
import time

import numpy as np
import pytest
from ml_collections import ConfigDict

from ltjax import recipes, train
from ltjax.config import load as configs
from ltjax.data import sources
from ltjax.errors import ConfigError, WorkdirError
from ltjax.workdir import lock

SHIPPED = sorted(path.stem for path in (pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))
every_config = pytest.mark.parametrize("name", SHIPPED)
# Where every key is tried, those with photographs that together have every key.
SMALL = [name for name in SHIPPED if name.endswith(("_cifar10", "_cifar100", "_digits"))]
with_every_key = pytest.mark.parametrize(
    "name", [*SMALL, "afa_imagenet_lt", "camcpp_inat", "ce_caltech", "ce_crt_places_lt", "gcl_folder",
             "norm_fc_imagenet_lt"])
SLOWEST = 1.0  # seconds of processor time that a rejection may take
ABSENT = object()


@pytest.fixture(autouse=True)
def no_data(monkeypatch):
  """No test here may come as far as reading images."""
  def read(*args, **kwargs):
    raise AssertionError("the data were read")

  for name in ("_cifar_binary", "_cifar_tfds", "_counts"):
    monkeypatch.setattr(sources, name, read)


@functools.cache
def _shipped(name):
  return importlib.import_module(f"configs.{name}").get_config()


def tree(name):
  return _shipped(name).to_dict()


def nodes(block, path=()):
  """(path, value) of everything in nested dicts, blocks before their entries."""
  for key, value in block.items():
    yield (*path, key), value
    if isinstance(value, dict):
      yield from nodes(value, (*path, key))


def parent(block, path):
  return functools.reduce(dict.__getitem__, path[:-1], block)


def changed(path, value=ABSENT, *, key=None, name="gcl_digits"):
  """A shipped config with `value` at `path`, or with the last part of `path` called `key`."""
  found = tree(name)
  path = tuple(path.split(".")) if isinstance(path, str) else path
  block = parent(found, path)
  if key is not None:
    block[key] = block.pop(path[-1])
  else:
    block[path[-1]] = value
  return ConfigDict(found)


def rejected(config, what=None) -> str:
  began = time.process_time()
  with pytest.raises(ConfigError) as caught:
    configs.check(config)
    pytest.fail(f"accepted: {what or config}")
  assert time.process_time() - began < SLOWEST
  message = str(caught.value)
  assert message and "\n" not in message
  return message


def misspelt(key):
  """A letter too much, one too few, two exchanged, upper case for the first of a long key."""
  yield key + "x"
  if len(key) > 1:
    yield key[:-1]
    yield key[1] + key[0] + key[2:]
  if len(key) > 4:
    yield key.capitalize()


def test_the_configs_that_are_tried_have_every_key():
  def keys(names):
    return {path for name in names for path, _ in nodes(tree(name)) if path[-1] != "name"}

  tried = keys(with_every_key.args[1])
  assert tried and not keys(SHIPPED) - tried


@every_config
def test_a_shipped_config_passes(name):
  configs.check(_shipped(name))


@with_every_key
def test_every_misspelt_key_is_rejected_with_the_right_one(name):
  tried = 0
  for path, _ in nodes(tree(name)):
    for key in misspelt(path[-1]):
      if key in parent(tree(name), path):
        continue
      message = rejected(changed(path, key=key, name=name))
      assert f"did you mean {path[-1]!r}?" in message, (path, key, message)
      assert key in message
      tried += 1
  assert tried > 100


@with_every_key
def test_every_key_is_needed_or_has_a_default(name, monkeypatch):
  monkeypatch.setattr(train, "state_makers", lambda *args: None)  # tracing the network would take most of the time
  for path, _ in nodes(tree(name)):
    found = tree(name)
    del parent(found, path)[path[-1]]
    try:
      configs.check(ConfigDict(found))
    except ConfigError as error:
      assert path[-1] in str(error) or path[-2] in str(error), (path, str(error))
    else:
      assert len(path) > 1 and path[-1] != "name", path  # an argument with a default


def wrong_values(path, value):
  """Values of a wrong type or out of range for what stands at `path`."""
  if isinstance(value, bool):
    return ["yes", 1, None]
  if isinstance(value, int):
    # 5 epochs of warm-up is a number that happens to be whole, and so is the epoch of a switch.
    whole = [] if "lr" in path or path[-1] in ("at", "shorten") else [value + 0.5]
    none = [] if path[-1] == "crops" else [None]  # CAMC without crops
    return ["7", -1, *none, True, {"name": "nothing"}, float("nan"), *whole]
  if isinstance(value, float):
    return ["0.5", float("nan"), float("inf"), True, (value,), -1.0 if path[-1] not in ("start", "end") else "x"]
  if isinstance(value, str):
    return [3, 0.5, ("a",)]
  if isinstance(value, tuple | list):
    return ["all", 3, (None,), (("a", "b", "c"),), ({},)]
  if isinstance(value, dict):
    return ["x", (1,), {}, {"x": 1}, True]
  return ["x", 3, True, {}, ()]  # None: an optional block


@with_every_key
def test_every_value_of_a_wrong_type_is_rejected_by_its_path(name):
  for path, value in nodes(tree(name)):
    for wrong in wrong_values(path, value):
      message = rejected(changed(path, wrong, name=name), (path, wrong))
      assert path[0] in message, (path, wrong, message)
      assert path[-1] in message or path[-2] in message, (path, wrong, message)


OUT_OF_RANGE = {
    "seed": [-1, 2**32], "dataset.imbalance": [0.5, 0, -3.0], "dataset.subset_seed": [-1, 2**32],
    "augment.crop_padding": [-1, 1.5], "precision": ["float16", "bfloat16", ""], "steps_per_call": [-1],
    "eval_every_epochs": [0], "checkpoint_every_epochs": [0], "log_every_steps": [0], "eval_batch_size": [0],
    "backbone.depth": [0, 7, 10, -4, 8.0], "stages": [(), ("representation", "representation"), (1,), "representation"],
    "classifier.epochs": [0, -1, 1.5], "classifier.batch_size": [0, -32, 32.0],
    "classifier.weight_decay": [-1e-4], "classifier.mixup": [-0.1], "classifier.momentum": [1, 1.5, -0.1],
    "classifier.batch_norm": ["frozen", "Train"], "classifier.lr": [-0.1, "0.1", True, None, float("nan"), (0.1,)],
    "classifier.lr.base": [-0.1], "classifier.sampler.a": [1.0, -0.1], "classifier.sampler.b": [0.001, -0.1],
    "classifier.adjust.scale": [0, -30.0], "classifier.adjust.margin": [-0.1], "classifier.adjust.noise_scale": [-1],
    "classifier.loss.gamma": [-1], "representation.lr.at": [("a",), (54, 48), (48, 48), (48,), (), (-1, 54), 48],
    "representation.lr.factors": [(0.1,), (0.1, 0.01, 0.001), (0.1, -0.1), (0.1, "x")],
    "representation.lr.warmup": [-1, "5"],
}


@pytest.mark.parametrize("path", OUT_OF_RANGE)
def test_out_of_range(path):
  for value in OUT_OF_RANGE[path]:
    assert path.split(".")[-1] in rejected(changed(path, value)), value


CASES = [  # path, value, parts of the message
    ("classifier.adjust.cloud_size", "big", "classifier: gcl: cloud_size must be one of log, cosine, | got 'big'"),
    ("backbone.widths", (16, 32), "backbone: | widths must be three channel counts"),
    ("backbone.widths", (16, 8, 4), "backbone: | widths must be three channel counts"),
    ("backbone.widths", (16, "x", 64), "backbone.widths[1]: expected an integer"),
    ("backbone.widths", (4.0, 4.0, 8.0), "backbone.widths[0]: expected an integer"),
    ("classifier.train", (), "nothing is trained"),
    ("classifier.train", ("hat/.*",), "'hat/.*' matches no parameter; there are | head/kernel"),
    ("classifier.train", ("head/(",), "'head/(' is not a regular expression"),
    ("classifier.reset", ("hat/.*",), "classifier.reset: 'hat/.*' matches no parameter"),
    ("classifier.no_decay", ("hat/.*",), "classifier.no_decay: 'hat/.*' matches no parameter; there are"),
    ("classifier.no_decay", ("head/(",), "classifier.no_decay: 'head/(' is not a regular expression"),
    ("classifier.no_decay", "head/bias", "classifier.no_decay: expected a tuple, got 'head/bias'"),
    ("classifier.reduce", "weightedmean", "reduce: expected one of mean, weighted_mean, got | 'weighted_mean'?"),
    ("classifier.reduce", None, "classifier.reduce: expected one of mean, weighted_mean, got None"),
    ("head", dict(name="Linear", rare_start=1), "head.rare_start: expected bool, got 1"),
    ("classifier.lr_factors", ("head/.*", 0.1), "classifier.lr_factors: expected (regular expression, factor) pairs"),
    ("classifier.lr_factors", (("head/.*", -1.0),), "classifier.lr_factors: expected a number of at least 0"),
    ("classifier.lr_factors", (("hat/.*", 1.0),), "'hat/.*' matches no parameter"),
    ("representation.batch_norm", "shift", "'shift' moves the statistics of a frozen backbone"),
    ("classifier.lr", dict(name="cosin", base=0.1), "there is no 'cosin' (did you mean 'cosine'?); there are"),
    ("classifier.lr", dict(name="cosine", base=0.1, at=3), "cosine has no such argument | it takes base, warmup"),
    ("classifier.lr", dict(name="cosine"), "classifier.lr: cosine needs base"),
    ("classifier.lr", dict(name="linear", start=0.1, end=-0.1), "classifier.lr in epoch | of at least 0, got -"),
    ("classifier.lr", dict(name="constant", value=dict(name="linear")), "classifier.lr.value: | takes a fixed value"),
    ("classifier.loss", dict(name="cross_entropi"), "no 'cross_entropi' (did you mean 'cross_entropy'?) | focal"),
    ("classifier.loss", dict(name="gcl"), "there is no 'gcl' | there are class_balanced_focal, cross_entropy, focal"),
    ("classifier.loss", dict(name="cross_entropy", label_smoothing=1.5), "expected a number in [0, 1], got 1.5"),
    ("classifier.loss.detach", dict(name="switch", at=3), "takes a fixed value here, not a schedule"),
    ("classifier.loss.gamma", dict(name="linear", end=-1.0), "classifier.loss.gamma in epoch | at least 0"),
    ("classifier.adjust", dict(name="gcl", key=3), "classifier.adjust.key: gcl has no such argument"),
    ("classifier.sampler", dict(name="cbn"), "there is no 'cbn' (did you mean 'cben'?); there are cben"),
    ("classifier.sampler", dict(name="progressive", progress=dict(name="linear", end=2.0)),
     "classifier.sampler: progressive: progress must be in [0, 1]"),
    ("classifier.class_weights", dict(name="effective_number", beta=1.0), "beta: expected a number in [0, 1)"),
    ("classifier.class_weights", dict(name="effective_number", beta="x"), "beta: expected a number in [0, 1)"),
    ("classifier.class_weights", dict(name="mean"), "there is no 'mean' | there are effective_number"),
    ("head", dict(name="Cosin"), "there is no 'Cosin' (did you mean 'Cosine'?); there are CAMC, Cosine"),
    ("head", dict(name="Cosine", num_classes=10), "head.num_classes: Cosine has no such argument"),
    ("head", dict(name="Linear"), "adjust: gcl takes cosines, but the head 'Linear' | write head=dict(name='Cosine')"),
    ("backbone", dict(name="ResNet32"), "there is no 'ResNet32' (did you mean 'ResNet'?); there are ResNet, ResNetBBN"),
    ("backbone", dict(name="Classifier"), "there is no 'Classifier'"),
    ("dataset", dict(name="cifar1000"), "there is no 'cifar1000' (did you mean 'cifar100'?); there are cifar10,"),
    ("dataset", dict(name="digits", imbalance=5.0), "dataset: digits needs profile, subset_seed"),
    ("stages", ("representation", "classifer"), "classifer"),
    ("stages", ("representation",), "classifier: a block that is not named in stages=('representation',)"),
    ("stages", ("representation", "head"), "stages: | cannot be called 'head'"),
    ("stages", ("representation", "../x"), "stages: | cannot be called '../x'"),
    ("stages", ("representation", "classifier", "third"), "third: missing from the config (it is named in stages)"),
    ("colour", 3, "colour: not a key of a config; there are augment, backbone,"),
    ("head.extra", np.float32(3), "head.extra: expected a number, string"),
]


@pytest.mark.parametrize("loss", ["lade", "prior_lade"])
def test_the_loss_of_a_batch_takes_no_weights(loss):
  config = changed("classifier.loss", dict(name=loss))
  config.classifier.adjust = None
  configs.check(config)
  config.classifier.class_weights = ConfigDict(dict(name="inverse_frequency"))
  message = rejected(config)
  assert f"classifier.class_weights: {loss} is the loss of a batch" in message and "class_weights=None" in message


def test_groups_of_batch_norm_share_the_batch_evenly():
  config = changed("backbone.bn_groups", 3, name="ce_crt_inat")
  assert "backbone.bn_groups: 3 does not divide representation.batch_size=512" in rejected(config)
  config.representation.batch_size = 510
  configs.check(config)  # the frozen backbone of the second stage evaluates
  message = rejected(changed("backbone.bn_groups", 4, name="afa_imagenet_lt"))
  assert "backbone.bn_groups" in message and "representation.generation=None" in message


@pytest.mark.parametrize(("path", "value", "parts"), CASES)
def test_one_clear_error(path, value, parts):
  message = rejected(changed(path, value))
  for part in parts.split(" | "):
    assert part in message


@pytest.mark.parametrize("adjust", ["arcface", "gcl_angular", "kps_angular"])
@pytest.mark.parametrize("head", ["DisAlign", "LearnableScale"])
def test_margins_on_the_angle_need_cosines_that_no_head_scales(adjust, head):
  config = changed("classifier.adjust", dict(name=adjust))
  configs.check(config)
  config.classifier.head = dict(name=head, cosine=True)
  message = rejected(config)
  assert f"classifier.adjust: {adjust} works on the angle and needs cosines in [-1, 1]" in message
  assert f"which the head '{head}' scales beyond; write head=dict(name='Cosine')" in message
  config.classifier.adjust.name = "cosface"
  configs.check(config)


def test_what_is_not_a_config_at_all():
  for wrong in (None, 3, {}, "configs/gcl_digits.py"):
    assert "expected a ConfigDict" in rejected(wrong)
  assert "stages: missing" in rejected(ConfigDict())


def test_numbers_in_place_of_schedules_and_schedules_in_place_of_numbers_are_fine():
  config = changed("classifier.lr", 0.1)
  config.classifier.adjust = ConfigDict(dict(name="gcl", margin=dict(name="linear", end=0.1), cloud_size="cosine"))
  config.classifier.class_weights = ConfigDict(dict(name="effective_number", beta=dict(name="switch", at=3, after=0.9)))
  config.classifier.sampler = ConfigDict(dict(name="progressive", progress=dict(name="linear")))
  config.classifier.reset, config.classifier.lr_factors = ("head/.*",), (("head/kernel", 2),)
  config.representation.lr.factors = [1, 0]
  config.dataset.imbalance = 5
  configs.check(config)


def test_a_recipe_for_stages_knows_all_keys_of_a_stage():
  made = recipes.stage(epochs=1, batch_size=1, lr=0.1, loss=dict(name="cross_entropy"), weight_decay=0.0)
  assert tuple(made) and set(made) == set(configs.STAGE_KEYS)


# -- the work folder ---------------------------------------------------------------------------------------------------


def test_the_work_folder_keeps_the_config_and_takes_it_again(tmp_path):
  config, workdir = _shipped("gcl_digits"), tmp_path / "below" / "run"
  assert not configs.check_workdir(config, workdir)
  assert not workdir.parent.exists()
  configs.open_workdir(config, workdir)
  assert [path.name for path in workdir.iterdir()] == ["config.json"]
  assert json.loads((workdir / "config.json").read_text()) == json.loads(config.to_json())
  before = (workdir / "config.json").stat()
  configs.open_workdir(config, workdir)
  assert (workdir / "config.json").stat() == before or (workdir / "config.json").stat().st_mtime == before.st_mtime
  assert configs.check_workdir(config, workdir)


def test_another_config_is_refused_with_the_keys_that_differ(tmp_path):
  configs.open_workdir(_shipped("gcl_digits"), tmp_path)
  config = changed("classifier.lr.base", 0.5)
  config.seed, config.classifier.loss = 3, ConfigDict(dict(name="cross_entropy", label_smoothing=0.1))
  with pytest.raises(WorkdirError, match="written by another config") as caught:
    configs.open_workdir(config, tmp_path)
  message = str(caught.value)
  for part in ("classifier.lr.base was 0.002, is 0.5", "seed was 0, is 3", "classifier.loss.gamma was 1.0, is 'absent'",
               "classifier.loss.label_smoothing was 'absent', is 0.1"):
    assert part in message
  assert "momentum" not in message
  assert json.loads((tmp_path / "config.json").read_text()) == json.loads(_shipped("gcl_digits").to_json())


@pytest.mark.parametrize("content", ["{", "", "\x00\xff", "[1]", "3", "null"])
def test_a_config_json_that_is_none(tmp_path, content):
  (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
  with pytest.raises(WorkdirError, match="config.json is not"):
    configs.check_workdir(_shipped("gcl_digits"), tmp_path)


def test_unusable_work_folders(tmp_path):
  file, full, folder = tmp_path / "file", tmp_path / "full", tmp_path / "folder"
  file.write_text("x")
  full.mkdir()
  (full / "thesis.tex").write_text("x")
  (folder / "config.json").mkdir(parents=True)
  for workdir, message in ((file, "is a file"), (file / "below" / "it", "file is a file"),
                           (full, "is not empty and has no config.json"), (folder, "Is a directory")):
    with pytest.raises(WorkdirError, match=message) as caught:
      configs.open_workdir(_shipped("gcl_digits"), workdir)
    assert str(workdir) in str(caught.value) or str(file) in str(caught.value)
  assert sorted(path.name for path in tmp_path.rglob("*")) == ["config.json", "file", "folder", "full", "thesis.tex"]


def test_a_work_folder_without_permission(tmp_path, monkeypatch):
  def refuse(*args, **kwargs):
    raise PermissionError(13, "Permission denied")

  for function in ("exists", "mkdir", "write_text", "replace"):
    with monkeypatch.context() as patch:
      patch.setattr(pathlib.Path, function, refuse)
      with pytest.raises(WorkdirError, match="cannot be used .Permission denied."):
        configs.open_workdir(_shipped("gcl_digits"), tmp_path / function)
    assert not list(tmp_path.rglob("config*"))
  with monkeypatch.context() as patch:
    patch.setattr("os.access", lambda *args: False)
    with pytest.raises(WorkdirError, match="may not be read and written"):
      configs.open_workdir(_shipped("gcl_digits"), tmp_path)


def test_a_start_that_crashed_while_writing_the_config_can_be_repeated(tmp_path):
  (tmp_path / configs.PARTIAL).write_text("{")
  with lock.WorkdirLock(tmp_path):
    configs.open_workdir(_shipped("gcl_digits"), tmp_path)
  assert sorted(path.name for path in tmp_path.iterdir()) == [lock.NAME, "config.json"]
