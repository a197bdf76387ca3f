"""What trains and what moves on Places-LT: one block that is drawn anew, its BatchNorm, and the head."""

import jax
import numpy as np
import pytest

from configs import gcl_places_lt, mislas_large
from ltjax.config import parse
from ltjax.errors import ConfigError
from tests import tiny

BLOCK = "backbone/stage4_block1/"


def small(module, arguments: str):
  """The config on digits, with a network of the same layers and a few channels, for one epoch of two steps."""
  config = module.get_config(arguments)
  digits = tiny.config("ce_digits")
  with config.unlocked(), config.ignore_type():
    config.dataset, config.augment = digits.dataset, digits.augment
    config.backbone = dict(name="ResNet", depth=10, width=4, stem="cifar")
    config.stages = ("representation",)
    del config.classifier
  config.representation.epochs, config.representation.batch_size = 1, 400
  config.log_every_steps = 1
  return config


def leaves(tree) -> dict[str, np.ndarray]:
  return {"/".join(key.key for key in path): np.asarray(value)
          for path, value in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.usefixtures("no_pictures")
def test_the_last_block_is_drawn_anew_and_trains_alone(tmp_path):
  earlier = small(gcl_places_lt, "resnet10")
  # The other training: nothing but its random start and one step of the head matters here.
  earlier.seed, earlier.representation.train, earlier.representation.reset = 7, ("head/.*",), ()
  earlier.representation.batch_norm = ("backbone/stage1_block1/.*",)
  tiny.run(earlier, tmp_path / "earlier")
  config = small(gcl_places_lt, "resnet10")
  config.pretrained, config.reset_head = str(tmp_path / "earlier"), True
  tiny.run(config, tmp_path / "run")
  given, found = (tiny.saved(tiny.stages(each)["representation"], tmp_path / name)
                  for each, name in ((earlier, "earlier"), (config, "run")))

  made = tiny.stages(config)["representation"]
  trained = {path for path, factor in leaves(jax.tree.map(
      lambda factor: np.float32(-1 if factor is None else factor), made.optimizer.factors,
      is_leaf=lambda factor: factor is None)).items() if factor >= 0}
  before, after = leaves(given.params), leaves(found.params)
  assert trained == {path for path in after if path.startswith((BLOCK, "head/"))}
  assert len(trained) == 3 + 2 * 3 + 1  # three convolutions, three normalisations, the classifier
  for path, value in after.items():
    assert (value == before[path]).all() == (path not in trained), path
  kernel = f"{BLOCK}conv2/kernel"
  # Two steps do not bring a kernel back to where it was: it did not start there.
  assert abs(np.corrcoef(before[kernel].ravel(), after[kernel].ravel())[0, 1]) < 0.3
  stats, moved = leaves(given.batch_stats), leaves(found.batch_stats)
  assert len([path for path in moved if path.startswith(BLOCK)]) == 2 * 3
  assert {path for path in moved if (moved[path] != stats[path]).any()} == {
      path for path in moved if path.startswith(BLOCK)}


def test_the_complete_last_stage_is_an_option():
  made = parse(gcl_places_lt.get_config("part=stage4")).stages[0]
  assert (made.train, made.reset, made.batch_norm) == (("backbone/stage4.*", "head/.*"), (), "eval")
  block = ("backbone/stage4_block3/.*",)
  made = parse(mislas_large.get_config("places_lt")).stages
  assert (made[0].train, made[0].reset, made[0].batch_norm) == ((*block, "head/.*"), block, block)
  assert (made[1].train, made[1].reset, made[1].batch_norm) == (("head/.*",), (), block)


def test_a_pattern_without_a_layer_is_refused():
  config = tiny.config("ce_digits", backbone=tiny.ONE_CONV, representation__batch_norm=("backbone/conv/.*",))
  with pytest.raises(ConfigError, match="representation.batch_norm: 'backbone/conv/.*' matches no BatchNorm layer"):
    parse(config)
