"""F10: classes with one image, with none, and labels with gaps or out of range."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltjax import losses, recipes
from ltjax.config import bind, outside, spec
from ltjax.data import photos, samplers
from ltjax.data.order import Order
from ltjax.errors import DataError
from ltjax.schedules import Clock
from ltjax.stage import sampler
from tests import photographs, tiny

GIVEN = dict(power=dict(q=0.7), progressive=dict(progress=dict(name="linear")))
SAMPLERS = {name: GIVEN.get(name, {}) for name in samplers.__all__}
ADJUSTMENTS = [None, *bind.public(losses, outside.returns("b c"))]
# But for those whose rows a transform arranges and those that take what a head of theirs gives.
LOSSES = [name for name, loss in bind.public(losses, outside.returns("b")).items()
          if not hasattr(loss, "rows_of") and not hasattr(loss, "takes")]
NEEDED = dict(label_aware_smoothing=dict(head=0.4, tail=0.1), effective_number=dict(beta=0.99), fbl=dict(alpha=60.0))


# A loss that reads down the columns cannot use rows from which the adjustment has removed logits.
SENSELESS = {("softmax_equalization", "lade"), ("softmax_equalization", "prior_lade")}


def random_counts(seed: int, classes: int = 0) -> np.ndarray:
  """2 to 40 classes, or as many as given, in no order, of 1 to 10,000 images; some with one."""
  generator = np.random.default_rng(seed)
  counts = np.exp(generator.uniform(0, np.log(10_000), classes or generator.integers(2, 41))).astype(int)
  counts[generator.random(len(counts)) < 0.3] = 1
  return counts


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_draws_only_existing_images(name):
  for seed in range(30):
    counts = random_counts(seed)
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    draws = sampler(spec.sampler(dict(name=name, **SAMPLERS[name]), "test.sampler"), "test", counts)
    size = min(64, len(labels))
    order = Order(labels, len(counts), batch_size=size, epochs=3, seed=seed, stage="test", samplers=[draws])
    for step in {0, 1, order.steps // 2, order.steps - 1}:
      batch = order.batch(step)
      assert batch.shape == (size,) and batch.min() >= 0 and batch.max() < len(labels)


def only(**parts):
  """A config of one stage on ten digits."""
  config = recipes.digits_lt(imbalance=5)
  config.stages, config.head = ("only",), dict(name="Cosine")
  config.only = recipes.stage(**dict(epochs=1, batch_size=8, lr=0.1, optimizer=recipes.sgd(0.0)) | parts)
  return config


def value_and_gradient(objective, counts, logits, labels, features):
  """Of the mean loss of a batch in the first step."""
  clock, state = Clock(0, 1, 1), objective.init_state(len(counts))
  scalars = dict(loss=objective.loss.at(clock), adjust=objective.adjust.at(clock) if objective.adjust else {})
  return jax.value_and_grad(lambda logits: objective(
      logits, labels, features=features, key=jax.random.key(0), scalars=scalars, class_counts=np.float32(counts),
      state=state))(logits)


@pytest.mark.parametrize("adjust", ADJUSTMENTS)
def test_every_loss_and_its_gradient_are_finite(adjust):
  for seed, loss in enumerate(loss for loss in LOSSES if (adjust, loss) not in SENSELESS):
    counts = random_counts(seed, classes=12)  # of one shape, so that each program compiles once
    objective = spec.parse(only(
        loss=dict(name=loss, **NEEDED.get(loss, {})),
        adjust=adjust and dict(name=adjust, **NEEDED.get(adjust, {})))).stages[0].objective
    generator = np.random.default_rng(seed)
    # Of the rarest and of the largest class, and of any.
    labels = np.array([counts.argmin(), counts.argmax(), *generator.integers(0, len(counts), 6)], np.int32)
    cosines = jnp.asarray(generator.uniform(-1, 1, (8, len(counts))), jnp.float32)
    features = jnp.asarray(generator.normal(size=(8, 4)), jnp.float32)
    value, gradient = value_and_gradient(objective, counts, cosines, labels, features)
    assert np.isfinite(value) and np.isfinite(gradient).all(), (loss, counts)


@pytest.mark.parametrize("counts", [
    np.array([5, 5]), np.array([10_000, 1]), np.ones(300, int), np.geomspace(10_000, 1, 10_000).astype(int)],
    ids=["2 alike", "2, 10,000 to 1", "300 of one image", "10,000, 10,000 to 1"])
def test_the_config_for_a_folder_takes_2_to_10_000_classes(counts):
  config = importlib.import_module("configs.gcl_folder").get_config()
  labels = np.array([counts.argmin(), counts.argmax()], np.int32)
  logits = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, len(counts))), jnp.float32)
  for stage in spec.parse(config).stages:
    draw = sampler(stage.samplers[0], stage.name, counts)
    assert draw is None or (draw(Clock(0, 1, 1)) > 0).all()
    value, gradient = value_and_gradient(stage.objective, counts, logits, labels, logits)
    assert np.isfinite(value) and np.isfinite(gradient).all() and np.asarray(gradient).any()
    assert stage.model(counts).head.num_classes == len(counts)


def test_a_run_with_a_class_of_one_image(tmp_path):
  results = tiny.run(tiny.config("gcl_digits", epochs=1, backbone=tiny.ONE_CONV, dataset__imbalance=134.0), tmp_path)
  assert results["data"]["class_counts"][-1] == 1
  for stage in ("representation", "classifier"):
    assert all(np.isfinite(line["loss"]) for line in tiny.log(tmp_path, stage) if "loss" in line)


def folder(root, counts: dict[str, int]) -> dict:
  photographs.write_tree(root, counts)
  return dict(name="folder", root=str(root))


def lists(root, train: str, test: str = "t.jpg 0", **more) -> dict:
  paths = {f"{key}_list": photographs.write_lines(root / f"{key}.txt", *text.split("; "))
           for key, text in dict(train=train, test=test).items()}
  return dict(name="split_list", root=str(root), **paths, **more)


CASES = {
    "empty": (lambda root: folder(root, dict(a=3, b=0, c=2, d=0)), "no image in the folder of class 'b', 'd' of"),
    "only tested": (lambda root: folder(root / "x", {"train/a": 2, "train/b": 2, "test/a": 1, "test/z": 1}),
                    "class 'z' is only in the test set"),
    "two forms": (lambda root: folder(root, {"caf\u00e9": 2, "cafe\u0301": 2}), "two class folders of one name"),
    "held out only": (lambda root: folder(root / "x", {"train/a": 2, "train/b": 2, "test/a": 1, "Val/z": 1}),
                      "class 'z' is only in the held-out set"),
    "gap": (lambda root: lists(root, "a.jpg 0; b.jpg 2; c.jpg 5"), "class 1 has no training image, nor have 2 others"),
    "first": (lambda root: lists(root, "a.jpg 1; b.jpg 2"), "class 0 has no training image"),
    "named": (lambda root: lists(root, "a.jpg 0; b.jpg 2", class_names=photographs.write_lines(
        root / "n.txt", "x", "y", "z")), r"class 1 \('y'\) has no training image"),
    "too large": (lambda root: lists(root, "a.jpg 0; b.jpg 1", "c.jpg 2"), "test.txt:1: label 2 is not in"),
    "negative": (lambda root: lists(root, "a.jpg 0; b.jpg -1"), "train.txt:2: label -1 is out of range"),
    "huge": (lambda root: lists(root, f"a.jpg 0; b.jpg {10**30}"), "train.txt:2: label 1.* is out of range"),
    "one class": (lambda root: lists(root, "a.jpg 0; b.jpg 0"), "there is one class"),
}


@pytest.mark.parametrize("case", CASES)
def test_faults_in_classes_are_reported_before_anything_is_written(case, tmp_path):
  make, message = CASES[case]
  config = recipes.folder(root="", augment=recipes.crop_flip(16), backbone=recipes.resnet("resnet10"))
  (tmp_path / "data").mkdir()
  config.dataset = dict(make(tmp_path / "data"), pipeline="tf_data", on_bad_image="error")
  config.stages = ("only",)
  config.only = recipes.stage(epochs=1, batch_size=1, lr=0.1, optimizer=recipes.sgd(0.0),
                              loss=dict(name="cross_entropy"), sampler=dict(name="class_balanced"))
  with pytest.raises(DataError, match=message):
    tiny.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_samplers_refuse_a_class_without_images():
  for name, given in SAMPLERS.items():
    with pytest.raises(DataError, match="class 1 has 0"):
      getattr(samplers, name)(np.array([3, 0, 2]), **(given if name == "power" else
                                                      dict(progress=0.5) if name == "progressive" else {}))


def test_the_sources_know_no_class_without_images(tmp_path):
  photographs.write_tree(tmp_path, dict(a=1, b=2, c=50))
  assert photos.folder(root=str(tmp_path)).class_counts.min() == 1
