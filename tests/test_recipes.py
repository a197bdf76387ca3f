import pytest
from ml_collections import ConfigDict

from ltjax import recipes
from ltjax.config import load, parse, spec
from ltjax.errors import ConfigError, DataError

STAGE = dict(epochs=1, batch_size=8, lr=0.1, loss=dict(name="cross_entropy"), optimizer=recipes.sgd(0.0))


@pytest.mark.parametrize("make", [
    lambda: recipes.digits_lt(imbalance=5), lambda: recipes.cifar_lt("cifar10", imbalance=5),
    lambda: recipes.cifar_lt("cifar100", imbalance=5)])
def test_a_recipe_needs_only_stages(make):
  config = make()
  assert isinstance(config, ConfigDict) and tuple(config) == recipes.RUN_KEYS
  assert isinstance(config.dataset.imbalance, float)
  config.stages, config.only = ("only",), recipes.stage(**STAGE)
  parse(config)


@pytest.mark.parametrize(("make", "more"), [(recipes.folder, dict(root="DIR")), (recipes.csv, {}),
                                            (recipes.imagenet_lt, {}), (recipes.places_lt, {}), (recipes.inat, {})])
def test_images_from_files_have_a_dataset_that_can_be_built(make, more):
  config = make(**more, augment=recipes.crop_flip(32), backbone=dict(name="ResNetCIFAR", depth=8))
  assert tuple(config) == recipes.RUN_KEYS
  assert (config.dataset.pipeline, config.dataset.on_bad_image) == ("tf_data", "error")
  config.dataset.root = "/nowhere"
  with pytest.raises(DataError, match="dataset.root: no folder '/nowhere'"):
    config.stages, config.only = ("only",), recipes.stage(**STAGE)
    parse(config).read()


def test_backbones_by_name():
  assert recipes.resnet("resnext101") == dict(name="ResNet", depth=101, groups=32, group_width=4, bn_groups=1)
  assert recipes.resnets("resnet152")[0] == "resnet152"
  assert set(recipes.resnets("resnet152")) == set(recipes.resnets("resnet50")) and len(recipes.resnets("resnet50")) == 7
  for name in recipes.resnets("resnet10"):
    config = recipes.cifar_lt("cifar10", imbalance=5)
    config.backbone, config.stages, config.only = ConfigDict(recipes.resnet(name)), ("only",), recipes.stage(**STAGE)
    assert spec.parse(config).stages[0].backbone.name == "ResNet"


def test_another_batch_size_scales_the_learning_rate_with_a_note(capsys):
  def config():
    made = recipes.digits_lt(imbalance=5)
    made.stages = ("first", "second")
    made.first = recipes.stage(**STAGE | dict(lr=dict(name="cosine", base=0.4), batch_size=64))
    made.second = recipes.stage(**STAGE)
    return made

  for size in (0, 64):
    untouched = recipes.scaled_batch(config(), size)
    assert (untouched.first.lr.base, untouched.first.batch_size) == (0.4, 64)
  assert "first" not in capsys.readouterr().err
  found = recipes.scaled_batch(config(), 16)
  assert (found.first.lr.base, found.first.batch_size, found.second.lr, found.second.batch_size) == (0.1, 16, 0.2, 16)
  assert capsys.readouterr().err == ("first: batch size 64 -> 16, so the learning rate 0.4 -> 0.1\n"
                                     "second: batch size 8 -> 16, so the learning rate 0.1 -> 0.2\n")


def test_two_configs_are_independent():
  first, second = (recipes.cifar_lt("cifar10", imbalance=5) for _ in range(2))
  first.backbone.depth, first.dataset.dir = 8, "/data"
  assert second.backbone.depth == 32 and not second.dataset.dir


def test_defaults_of_a_stage():
  stage = recipes.stage(**STAGE)
  assert stage.sampler.to_dict() == dict(name="instance")
  assert stage.optimizer.to_dict() == dict(name="sgd", momentum=0.9, weight_decay=0.0)
  assert (stage.adjust, stage.class_weights, stage.mixup, stage.augment) == (None, None, 0.0, None)
  assert (stage.train, stage.reset, stage.lr_factors, stage.batch_norm) == ((".*",), (), (), "train")


def test_crops_flips_and_jitter():
  assert [block["name"] for block in recipes.crop_flip(64)] == ["random_resized_crop", "flip"]
  assert recipes.crop_flip(64, jitter=0.4)[-1] == dict(name="jitter", strengths=(0.4, 0.4, 0.4))


def test_a_frozen_backbone_evaluates_its_batch_norm_by_default():
  assert recipes.stage(**STAGE, train=("head/.*",)).batch_norm == "eval"
  assert recipes.stage(**STAGE, train=("head/.*",), batch_norm="shift").batch_norm == "shift"


DEFAULTS = dict(imbalance=100.0, cloud_size=("log", "cosine"), retrain=True, steps=3, where="")


@pytest.mark.parametrize(("text", "changed"), [
    ("100", {}), ("50", dict(imbalance=50.0)), ("37.5,cloud_size=cosine", dict(imbalance=37.5, cloud_size="cosine")),
    ("retrain=False", dict(retrain=False)), (20, dict(imbalance=20.0)),
    (" 10 , steps = 4", dict(imbalance=10.0, steps=4)), ("", {}), ("cosine", dict(cloud_size="cosine")),
    ("50,cosine", dict(imbalance=50.0, cloud_size="cosine")),
    ("imbalance=10,where=a=b", dict(imbalance=10.0, where="a=b"))])
def test_arguments(text, changed):
  found = recipes.arguments(text, **DEFAULTS)
  assert found == dict(imbalance=100.0, cloud_size="log", retrain=True, steps=3, where="") | changed
  assert list(found) == list(DEFAULTS)
  assert [type(value) for value in found.values()] == [float, str, bool, int, str]


@pytest.mark.parametrize(("text", "message"), [
    ("fifty", "imbalance: expected a number, got 'fifty'"),
    ("50,60", "imbalance comes twice"),
    ("50,cloudsize=log", "no 'cloudsize' .*'cloud_size'.*; there are imbalance, cloud_size"),
    ("50,cloud_size=cosin", "cloud_size: expected one of log, cosine, got 'cosin' .did you mean 'cosine'."),
    ("50,retrain=yes", "retrain: expected true or false, got 'yes'"),
    ("50,steps=1.5", "steps: expected an integer, got '1.5'"),
    ("50,steps=1,steps=2", "steps comes twice"),
    ("50,imbalance=20", "imbalance comes twice")])
def test_wrong_arguments_are_refused(text, message):
  with pytest.raises(ConfigError, match=message):
    recipes.arguments(text, **DEFAULTS)


SETS = dict(dataset=("cifar10", "cifar100"), imbalance=100.0, head=dict(cifar10=0.3, cifar100=0.4))


@pytest.mark.parametrize(("text", "expected"), [
    ("", ("cifar10", 100.0, 0.3)), ("cifar100", ("cifar100", 100.0, 0.4)), ("50", ("cifar10", 50.0, 0.3)),
    ("cifar100,50", ("cifar100", 50.0, 0.4)), ("cifar100,imbalance=20,head=0.1", ("cifar100", 20.0, 0.1))])
def test_a_default_may_depend_on_the_data_set(text, expected):
  assert tuple(recipes.arguments(text, **SETS).values()) == expected


@pytest.mark.parametrize(("text", "message"), [
    ("cifar11", "'cifar11' is not a choice .did you mean 'cifar10'.*there are cifar10, cifar100"),
    ("dataset=svhn", "dataset: expected one of cifar10, cifar100, got 'svhn'"),
    ("head=high", "head: expected a number, got 'high'"), ("cifar10,cifar100", "dataset comes twice")])
def test_a_wrong_data_set_is_refused(text, message):
  with pytest.raises(ConfigError, match=message):
    recipes.arguments(text, **SETS)


def test_a_table_trains_as_folders_do():
  table, folders = (load.read(f"configs/folder.py:{data}").to_dict() for data in ("csv,last", "last"))
  assert (table.pop("dataset")["name"], folders.pop("dataset")["name"]) == ("csv", "folder")
  assert table == folders
