"""A config that could not run is rejected before data, devices and the work folder are touched, with the way to fix it.

Every key of the shipped configs is misspelt, removed and given values of a wrong type.
"""

import numpy as np
import pytest
from ml_collections import ConfigDict

from ltjax.config import notes, parse
from ltjax.errors import ConfigError
from tests.config.trees import SHIPPED, changed, config, every_key, nodes, parent, rejected, shipped, tree

KEYS, KINDS = every_key(), every_key(type)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_config_passes(name):
  parse(shipped(name))


def misspelt(key: str):
  """One letter too many, one too few, two exchanged, and a long key with a capital."""
  yield key + "x"
  if len(key) > 1:
    yield key[:-1]
    yield key[1] + key[0] + key[2:]
  if len(key) > 4:
    yield key.capitalize()


@pytest.mark.parametrize("name", KEYS)
def test_every_misspelt_key_is_rejected_with_the_right_one(name):
  for path in KEYS[name]:
    for key in misspelt(path[-1]):
      if key not in parent(tree(name), path):
        message = rejected(changed(path, key=key, name=name))
        assert f"did you mean {path[-1]!r}?" in message and key in message, (path, key, message)


def test_the_tried_keys_are_complete():
  tried = {tuple(part for part in path if isinstance(part, str)) for paths in KEYS.values() for path in paths}
  assert tried == {tuple(part for part in path if isinstance(part, str)) for name in SHIPPED
                   for path, _ in nodes(tree(name))}
  assert len(tried) > 150 and sum(map(len, KINDS.values())) > len(tried)


@pytest.mark.parametrize("name", KEYS)
def test_every_key_is_needed_or_has_a_default(name):
  for path in KEYS[name]:
    found = tree(name)
    del parent(found, path)[path[-1]]
    try:
      parse(config(found))
    except ConfigError as error:
      assert path[-1] in str(error) or str(path[-2]) in str(error), (path, str(error))
    else:
      assert len(path) > 1 and path[-1] != "name", path  # an argument with a default


def wrong_values(path: tuple, value) -> list:
  """Values of a wrong type, or out of range, for the key at `path`."""
  key = path[-1]
  if isinstance(value, bool):
    return ["yes", 1, None]
  if isinstance(value, int):
    # 5 epochs of warm-up only happen to be an integer, and so does the epoch of a switch.
    whole = [] if "lr" in path or key in ("at", "shorten", "threshold") else [value + 0.5]
    none = [] if key == "crops" else [None]  # CAMC without crops
    return ["7", -1, *none, True, {"name": "nothing"}, float("nan"), *whole]
  if isinstance(value, float):
    infinite = [] if key == "threshold" else [float("inf")]  # where all classes are CAMC's tail
    return ["0.5", float("nan"), *infinite, True, (value,), -1.0 if key not in ("start", "end") else "x"]
  if isinstance(value, str):
    return [3, 0.5, ("a",)]
  if isinstance(value, tuple | list):
    number = [] if path[-2:] == ("lr", "base") else [3]  # a tuple of learning rates to choose from, or one
    return ["all", *number, (None,), (("a", "b", "c"),), ({},)]
  if isinstance(value, dict):
    return ["x", (1,), {}, {"x": 1}, True]
  return ["x", 3, True, {}] + ([()] if key != "augment" else [])  # None: an optional block


@pytest.mark.parametrize("name", KINDS)
def test_every_value_of_a_wrong_type_is_rejected_by_its_path(name):
  for path in KINDS[name]:
    for wrong in wrong_values(path, parent(tree(name), path)[path[-1]]):
      message = rejected(changed(path, wrong, name=name), (path, wrong))
      assert path[0] in message, (path, wrong, message)
      assert path[-1] in message or str(path[-2]) in message, (path, wrong, message)


OUT_OF_RANGE = {
    "seed": [-1, 2**32], "dataset.imbalance": [0.5, 0, -3.0], "dataset.subset_seed": [-1, 2**32],
    "augment.0.padding": [-1, 1.5], "precision": ["float16", "bfloat16", ""], "steps_per_call": [-1],
    "eval_every_epochs": [0], "checkpoint_every_epochs": [0], "log_every_steps": [0], "eval_batch_size": [0],
    "backbone.depth": [0, 7, 10, -4, 8.0], "stages": [(), ("representation", "representation"), (1,), "representation"],
    "classifier.epochs": [0, -1, 1.5], "classifier.batch_size": [0, -32, 32.0],
    "classifier.optimizer.weight_decay": [-1e-4], "classifier.mixup": [-0.1],
    "classifier.optimizer.momentum": [1, 1.5, -0.1], "classifier.optimizer.clip_norm": [-1, "1"],
    "classifier.optimizer.accumulate": [0, 3, 1.5], "classifier.optimizer.ema": [1.0, -0.1],
    "classifier.batch_norm": ["frozen", "Train"], "classifier.lr": [-0.1, "0.1", True, None, float("nan"), (0.1,)],
    "classifier.lr.base": [-0.1], "classifier.sampler.a": [1.0, -0.1], "classifier.sampler.b": [0.001, -0.1],
    "classifier.adjust.scale": [0, -30.0], "classifier.adjust.margin": [-0.1], "classifier.adjust.noise_scale": [-1],
    "classifier.loss.gamma": [-1], "representation.lr.at": [("a",), (54, 48), (48, 48), (48,), (), (-1, 54), 48],
    "representation.lr.factors": [(0.1,), (0.1, 0.01, 0.001), (0.1, -0.1), (0.1, "x")],
    "representation.lr.warmup": [-1, "5"],
}


@pytest.mark.parametrize(("path", "value"), [(path, value) for path, values in OUT_OF_RANGE.items()
                                             for value in values])
def test_values_out_of_range_are_rejected(path, value):
  keys = tuple(int(part) if part.isdigit() else part for part in path.split("."))
  # A schedule is checked by its values, so its message names the scheduled number.
  assert ("classifier.lr in epoch 0" if path == "classifier.lr.base" else keys[-1]) in rejected(changed(keys, value))


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
    ("classifier.optimizer.no_decay", ("hat/.*",),
     "classifier.optimizer.no_decay: 'hat/.*' matches no parameter; there are"),
    ("classifier.optimizer.no_decay", ("head/(",),
     "classifier.optimizer.no_decay: 'head/(' is not a regular expression"),
    ("classifier.optimizer.no_decay", "head/bias", "classifier.optimizer.no_decay: expected a tuple, got 'head/bias'"),
    ("classifier.optimizer", dict(name="sgdd"), "there is no 'sgdd' (did you mean 'sgd'?); there are adam, adamw"),
    ("classifier.optimizer", dict(name="sgd", lr=0.1), "the learning rate is the stage's own key, classifier.lr"),
    ("classifier.optimizer", dict(name="adam", no_decay=("head/.*",)), "adam takes no mask | write no_decay=()"),
    ("classifier.optimizer.accumulate", 5, "5 does not divide classifier.batch_size=32; give one of 1, 2, 4, 8, 16, 3"),
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
    ("classifier.loss", dict(name="gcl"), "there is no 'gcl' | there are class_balanced_focal, cross_entropy, "),
    ("classifier.loss", dict(name="cross_entropy", label_smoothing=1.5), "expected a number in [0, 1], got 1.5"),
    ("classifier.loss.detach", dict(name="switch", at=3), "takes a fixed value here, not a schedule"),
    ("classifier.loss.gamma", dict(name="linear", end=-1.0), "classifier.loss.gamma in epoch | at least 0"),
    ("classifier.adjust", dict(name="gcl", key=3), "classifier.adjust.key: gcl has no such argument"),
    ("classifier.sampler", dict(name="cbn"), "there is no 'cbn' (did you mean 'cben'?); there are cben"),
    ("classifier.sampler", dict(name="progressive", progress=dict(name="linear", end=2.0)),
     "classifier.sampler | progress | in [0, 1]"),
    ("classifier.class_weights", dict(name="effective_number", beta=1.0), "beta: expected a number in [0, 1)"),
    ("classifier.class_weights", dict(name="effective_number", beta="x"), "beta: expected a number in [0, 1)"),
    ("classifier.class_weights", dict(name="mean"), "there is no 'mean' | there are effective_number"),
    ("head", dict(name="Cosin"), "there is no 'Cosin' (did you mean 'Cosine'?); there are CAMC, Cosine"),
    ("head", dict(name="Cosine", num_classes=10), "head.num_classes: Cosine has no such argument"),
    ("head", dict(name="Linear"), "adjust: gcl takes cosines, but the head 'Linear' | write head=dict(name='Cosine')"),
    ("backbone", dict(name="ResNet32"), "there is no 'ResNet32' (did you mean 'ResNet'?); there are | ResNetBBN"),
    ("backbone", dict(name="Classifier"), "there is no 'Classifier'"),
    ("dataset", dict(name="cifar1000"), "there is no 'cifar1000' (did you mean 'cifar100'?); there are cifar10,"),
    ("dataset", dict(name="digits", imbalance=5.0), "dataset: digits needs profile, subset_seed"),
    ("dataset.pipeline", "tfdata", "dataset.pipeline: expected one of resident, tf_data, got 'tfdata' | 'tf_data'?"),
    ("dataset.on_bad_image", "skip", "dataset.on_bad_image: expected one of error, substitute, got 'skip'"),
    ("stages", ("representation", "classifer"), "classifer"),
    ("stages", ("representation",), "classifier: a block that stages=('representation',) does not name"),
    ("stages", ("representation", "head"), "stages: | cannot be called 'head'"),
    ("stages", ("representation", "../x"), "stages: | cannot be called '../x'"),
    ("stages", ("representation", "classifier", "third"), "third: missing from the config (stages names it)"),
    ("colour", 3, "colour: not a key of a config; there are augment, backbone,"),
    ("head.extra", np.float32(3), "head.extra: expected a number, string"),
    ("augment", dict(crop_padding=4, flip=True),
     "a dict was the form of ltjax 0.1 | dict(name='random_crop', padding=4"),
    ("augment", (dict(name="random_crop", padding=1), "flip"), "augment[1]: expected dict(name=..., hyper-parameters)"),
    ("augment", (dict(name="flipp"),), "augment[0].name: there is no 'flipp' (did you mean 'flip'?)"),
    ("augment", (dict(name="mixup"), dict(name="jitter", strengths=(0.1,) * 3)), "jitter works on raw pixels | mixup"),
    ("augment", (dict(name="jitter", strengths=0.4),), "augment[0].strengths: expected tuple, got 0.4"),
    ("augment", (dict(name="jitter", strengths=(0.4, 0.4, 2)),), "augment[0].strengths[2]: expected a number"),
    ("augment", (dict(name="jitter", strengths=True),), "augment[0].strengths: expected tuple, got True"),
    ("augment", (dict(name="jitter"),), "augment[0]: jitter needs strengths"),
    ("augment", (dict(name="random_resized_crop", size=0),), "augment[0].size: expected an integer of at least 8"),
    ("augment", (dict(name="random_resized_crop", sizes=16),), "augment[0].sizes: | did you mean 'size'"),
    ("augment", (dict(name="random_resized_crop", size=8),) * 2, "both give the images a size; remove one"),
    ("reset_head", True, "reset_head: without pretrained there is no head to reset; give --config.pretrained=DIR"),
]


@pytest.mark.parametrize(("path", "value", "parts"), CASES)
def test_one_clear_error(path, value, parts):
  message = rejected(changed(path, value))
  for part in parts.split(" | "):
    assert part in message


@pytest.mark.parametrize("loss", ["lade", "prior_lade"])
def test_the_loss_of_a_batch_takes_no_class_weights(loss):
  found = changed("classifier.loss", dict(name=loss))
  found.classifier.adjust = None
  parse(found)
  found.classifier.class_weights = ConfigDict(dict(name="inverse_frequency"))
  message = rejected(found)
  assert f"classifier.class_weights: {loss} is the loss of a complete batch" in message
  assert "class_weights=None" in message


def test_batch_norm_groups_divide_the_batch():
  found = changed("backbone.bn_groups", 3, name="ce_crt_inat")
  assert "backbone.bn_groups: 3 does not divide representation.batch_size=512" in rejected(found)
  found.representation.batch_size = 510
  parse(found)  # the frozen backbone of the second stage evaluates
  message = rejected(changed("backbone.bn_groups", 4, name="afa_imagenet_lt"))
  assert "backbone.bn_groups" in message and "remove generate_features from representation.transforms" in message


@pytest.mark.parametrize("adjust", ["arcface", "gcl_angular", "kps_angular"])
@pytest.mark.parametrize("head", ["DisAlign", "LearnableScale"])
def test_margins_on_the_angle_need_cosines_that_the_head_does_not_scale(adjust, head):
  found = changed("classifier.adjust", dict(name=adjust))
  parse(found)
  found.classifier.head = dict(name=head, cosine=True)
  message = rejected(found)
  assert f"classifier.adjust: {adjust} works on the angle and needs cosines in [-1, 1]" in message
  assert f"which the head '{head}' scales beyond; write head=dict(name='Cosine')" in message
  found.classifier.adjust.name = "cosface"
  parse(found)


@pytest.mark.parametrize("wrong", [None, 3, {}, "configs/gcl_digits.py"])
def test_anything_but_a_config_is_rejected(wrong):
  assert "expected a ConfigDict" in rejected(wrong)


def test_an_empty_config_is_rejected():
  assert "stages: missing" in rejected(ConfigDict())


def test_schedules_and_numbers_may_replace_each_other():
  found = changed("classifier.lr", 0.1)
  found.classifier.adjust = ConfigDict(dict(name="gcl", margin=dict(name="linear", end=0.1), cloud_size="cosine"))
  found.classifier.class_weights = ConfigDict(dict(name="effective_number", beta=dict(name="switch", at=3, after=0.9)))
  found.classifier.sampler = ConfigDict(dict(name="progressive", progress=dict(name="linear")))
  found.classifier.reset, found.classifier.lr_factors = ("head/.*",), (("head/kernel", 2),)
  found.representation.lr.factors = [1, 0]
  found.dataset.imbalance = 5
  parse(found)


@pytest.mark.parametrize("strengths", [(0.4, 0.4, 0.4), [0, 0.1, 1]])
def test_jitter_takes_three_strengths(strengths):
  parse(changed("augment", (dict(name="jitter", strengths=strengths),)))


def test_schedules_beyond_their_stage_are_noted():
  assert notes(parse(shipped("gcl_digits"))) == []
  found = notes(parse(changed(("representation", "epochs"), 50)))
  assert found == ["note: representation.lr.at: 54 of 50 epochs never come (epochs count from 0)"]
  found = notes(parse(changed(("representation", "epochs"), 3)))
  assert len(found) == 2 and "5 epochs of warm-up do not end within the 3 of the stage" in found[1]
