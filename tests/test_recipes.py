import pytest
from ml_collections import ConfigDict

from ltjax import config as configs
from ltjax import recipes

STAGE = dict(epochs=1, batch_size=8, lr=0.1, loss=dict(name="cross_entropy"), weight_decay=0.0)


@pytest.mark.parametrize("make", [
    lambda: recipes.digits_lt(imbalance=5), lambda: recipes.cifar_lt(classes=10, imbalance=5),
    lambda: recipes.cifar_lt(classes=100, imbalance=5)])
def test_a_recipe_needs_only_stages(make):
  config = make()
  assert isinstance(config, ConfigDict) and tuple(config) == recipes.RUN_KEYS
  assert isinstance(config.dataset.imbalance, float)
  config.stages, config.only = ("only",), recipes.stage(**STAGE)
  configs.check(config)


def test_two_configs_share_nothing():
  first, second = (recipes.cifar_lt(classes=10, imbalance=5) for _ in range(2))
  first.augment.flip, first.dataset.dir = False, "/data"
  assert second.augment.flip and not second.dataset.dir


def test_defaults_of_a_stage():
  stage = recipes.stage(**STAGE)
  assert stage.sampler.to_dict() == dict(name="instance")
  assert (stage.adjust, stage.class_weights, stage.mixup, stage.momentum) == (None, None, 0.0, 0.9)
  assert (stage.train, stage.reset, stage.lr_factors, stage.batch_norm) == ((".*",), (), (), "train")


def test_a_frozen_backbone_evaluates_its_batch_norm_unless_told_otherwise():
  assert recipes.stage(**STAGE, train=("head/.*",)).batch_norm == "eval"
  assert recipes.stage(**STAGE, train=("head/.*",), batch_norm="shift").batch_norm == "shift"
