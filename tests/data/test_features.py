"""Features in a file as a data set: what is read back, what is refused, and that every method trains on them."""

import importlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltjax import step as steps
from ltjax import train
from ltjax.config import bind
from ltjax.data import extract, features, feed
from ltjax.errors import ConfigError, DataError, WorkdirError
from ltjax.models import weight_files
from ltjax.workdir import safetensors
from tests import tiny

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
AUGMENT = (dict(name="random_crop", padding=1),)
pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """(file, the stage and the variables that made it)."""
  path = tmp_path_factory.mktemp("features") / "digits.safetensors"
  return path, *tiny.features(path, dataset__holdout=0.2)


@pytest.fixture(scope="module")
def viewed(tmp_path_factory):
  path = tmp_path_factory.mktemp("features") / "views.safetensors"
  return path, *tiny.features(path, views=2, float16=True, augment=AUGMENT)


def config(path, name="frozen", **overrides):
  """A method on a file of features, for one short epoch a stage."""
  found = importlib.import_module(f"configs.{name}").get_config()
  for each in found.stages:
    found[each].epochs, found[each].batch_size = 1, 128
    found[each].transforms = tuple(dict(bind.plain(block)) for block in found[each].transforms)
  found.log_every_steps = found.eval_every_epochs = 1
  with found.unlocked():
    found.dataset, found.augment, found.backbone = dict(name="features", root=str(path)), (), dict(name="Identity")
    for key, value in overrides.items():
      *parents, last = key.split("__")
      block = found
      for parent in parents:
        block = block[parent]
      with block.ignore_type():
        block[last] = value
  return found


# -- what is read back ------------------------------------------------------------------------------------------------


def test_the_file_has_the_features_of_every_split_in_order(made):
  path, stage, variables = made
  found, extractor = features.features(root=str(path)), stage.extractor(variables)
  for split in ("train", "held_out", "test"):
    images, labels = getattr(stage.dataset, split)
    rows, own = getattr(found, split)
    np.testing.assert_array_equal(labels, own)
    assert rows.shape == (len(labels), 1, 4) and rows.dtype == np.float32
    np.testing.assert_allclose(rows[:, 0], extractor(images, "features")["features"], rtol=1e-5, atol=1e-6)
  assert found.holds_features and not stage.dataset.holds_features
  np.testing.assert_array_equal(found.selected, stage.dataset.selected)
  assert found.class_names == stage.dataset.class_names
  assert found.made_by["data_fingerprint"] == stage.dataset.fingerprint
  assert "features of OneConv" in found.summary()


def test_anybody_can_read_the_file(made):
  path, stage, _ = made
  arrays = weight_files.read(path)
  assert set(arrays) == {"features", "labels", "split", "selected"}
  assert len(arrays["features"]) == len(arrays["labels"]) == len(arrays["split"])
  assert np.bincount(arrays["split"]).tolist() == [
      len(getattr(stage.dataset, split)[1]) for split in ("train", "held_out", "test")]
  assert all(array.ctypes.data % array.itemsize == 0 for array in safetensors.read(path).tensors.values())


def test_held_out_examples_are_those_of_the_images(made, tmp_path):
  _, stage, _ = made
  tiny.features(tmp_path / "all.safetensors")
  found = features.features(root=str(tmp_path / "all.safetensors"), holdout=0.2)
  np.testing.assert_array_equal(found.selected, stage.dataset.selected)
  np.testing.assert_array_equal(found.held_out[1], stage.dataset.held_out[1])


def test_views_are_augmented_and_the_first_is_the_image_itself(viewed):
  path, stage, variables = viewed
  rows, _ = features.features(root=str(path), holdout=0.3).train
  everything = features.features(root=str(path))
  assert everything.train[0].shape[1:] == (3, 4) and everything.test[0].shape[1:] == (1, 4)
  assert rows.dtype == np.float16 and rows.shape[1:] == (3, 4)
  plain = stage.extractor(variables)(stage.dataset.train[0], "features")["features"]
  np.testing.assert_array_equal(everything.train[0][:, 0], plain.astype(np.float16))
  different = (everything.train[0][:, :, None] != everything.train[0][:, None]).any(axis=-1).mean(axis=0)
  assert (different[~np.eye(3, dtype=bool)] > 0.8).all()  # of nine crops, one is the image itself


def test_training_draws_the_augmented_views_and_a_test_takes_the_image():
  rows = jnp.broadcast_to(jnp.arange(4, dtype=jnp.float16)[:, None], (200, 4, 3))
  augmentation = feed.of_features()
  drawn, pairs = augmentation.apply(rows, jax.random.key(0), jnp.zeros(200, int), 0, 1)
  counts = np.bincount(np.asarray(drawn[:, 0], int), minlength=4)
  assert drawn.dtype == np.float32 and counts[0] == 0 and counts[1:].min() > 40
  assert len(pairs) == 1 and (augmentation.evaluate(rows, 0, 1) == 0).all()


def test_maps_are_what_the_backbone_gives(tmp_path):
  stage, variables = tiny.features(tmp_path / "maps.safetensors", maps=True)
  rows, _ = features.features(root=str(tmp_path / "maps.safetensors")).test
  pooled = stage.extractor(variables)(stage.dataset.test[0], "features")["features"]
  assert rows.shape[1:] == (1, 4, 4, 4)
  np.testing.assert_allclose(rows.mean(axis=(1, 2, 3)), pooled, rtol=1e-5, atol=1e-6)


def test_features_that_overflow_are_refused_by_their_image(tmp_path):
  with pytest.raises(DataError, match="those of image 0 are not finite in float16; write them without --float16"):
    stage = tiny.stages(tiny.config("ce_digits", backbone=tiny.ONE_CONV))["representation"]
    variables = stage.init()
    variables["params"]["backbone"]["conv"]["kernel"] *= 1e6
    extract.extract(stage, variables, tmp_path / "large.safetensors", extract.describe(stage, variables, float16=True))
  assert not (tmp_path / "large.safetensors").exists()


# -- what is refused --------------------------------------------------------------------------------------------------


def refused(path, **expected) -> str:
  with pytest.raises(DataError) as caught:
    features.features(root=str(path), **expected)
  assert "\n" not in str(caught.value)
  return str(caught.value)


def test_damage_is_refused(made, tmp_path):
  content, path = made[0].read_bytes(), tmp_path / "damaged.safetensors"
  start = safetensors.read(made[0]).start
  for place in (start, start + 40, len(content) // 2, len(content) - 1):
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1:])
    assert "its SHA-256 differs" in refused(path)
  path.write_bytes(content.replace(b"OneConv", b"TwoConv"))
  assert "its SHA-256 differs" in refused(path)
  for stop in (0, 7, 100, start, len(content) - 1):
    path.write_bytes(content[:stop])
    assert "is not a complete .safetensors file" in refused(path)
  path.unlink()
  assert "no file" in refused(path)
  assert "is a folder; expected a file of features" in refused(path.parent)


def test_a_file_of_something_else_is_refused(tmp_path):
  header, _ = safetensors.header(dict(a=(np.float32, (1,))), {})
  (tmp_path / "weights.safetensors").write_bytes(header + bytes(4))
  assert "has no manifest of `ltjax extract`" in refused(tmp_path / "weights.safetensors")


def test_arrays_that_do_not_belong_together_are_refused(tmp_path):
  text, path = json.dumps(dict(class_names=["a"])), tmp_path / "odd.safetensors"
  metadata = {features.MANIFEST: text, features.DIGEST: "0" * 64}
  header, _ = safetensors.header(dict(features=(np.float32, (1, 1))), metadata)
  path.write_bytes(header + bytes(4))
  digest = safetensors.content_sha256(path, len(header), text.encode())
  path.write_bytes(header.replace(b"0" * 64, digest.encode()) + bytes(4))
  assert "holds other arrays than `ltjax extract` writes" in refused(path)


def test_features_of_other_weights_preprocessing_or_classes_are_refused(made, tmp_path):
  path, stage, _ = made
  names = tmp_path / "names.txt"
  names.write_text("\n".join(stage.dataset.class_names))
  sha256 = features.load(path)[1]["weights_sha256"]
  right = dict(weights=sha256[:8].upper(), mean=stage.dataset.mean, std=stage.dataset.std, class_names=str(names))
  assert features.features(root=str(path), **right).holds_features
  assert f"made by the weights {sha256[:8]}, expected 00000000" in refused(path, weights="0" * 64)
  assert "made of images with size 0, expected 224" in refused(path, size=224)
  assert "with mean" in refused(path, mean=(0.5,)) and "with std" in refused(path, std=(0.5, 0.5))
  names.write_text("\n".join(stage.dataset.class_names[:-1]))
  assert "(10, expected 9): class 9 is '9', expected absent" in refused(path, class_names=str(names))
  with pytest.raises(ConfigError, match="dataset.weights: expected a SHA-256 or at least its first 6 digits, got 'x'"):
    features.features(root=str(path), weights="x")


CAMC = dict(name="CAMC", scale=16.0, threshold=100, num_prototypes=2)
GENERATE = (dict(name="generate_features", weight=1.0),)


@pytest.mark.parametrize("name, overrides, message", [
    ("frozen", dict(backbone=tiny.ONE_CONV), "takes images, but 'features' has features of shape .4,.; write "
                                             "--config.backbone=\"dict.name='Identity'.\""),
    ("frozen", dict(augment=(dict(name="flip"),)), "classifier.augment: flip works on images, but 'features' has"),
    ("camc_cifar", {}, "head: CAMC takes feature maps, but those of 'features' are pooled; write them with"),
    ("camcpp_cifar", {}, "head.crops: crops are taken of images, but 'features' has features"),
    ("frozen", dict(classifier__transforms=GENERATE), "generate_features needs an insert between the layers"),
    ("bbn_cifar", {}, "two_branches makes two batches, but the backbone 'Identity' takes one"),
], ids=lambda value: value if isinstance(value, str) and " " not in value else "")
def test_what_needs_images_is_refused_in_one_sentence(made, name, overrides, message):
  found = config(made[0], name, **overrides)
  with pytest.raises(ConfigError, match=message) as caught:
    tiny.stages(found)
  assert "\n" not in str(caught.value)


def test_images_are_no_features(made):
  with pytest.raises(ConfigError, match="backbone: Identity takes features, but 'digits' has images; give the back"):
    tiny.stages(tiny.config("ce_digits", backbone=dict(name="Identity")))


# -- training ---------------------------------------------------------------------------------------------------------


def test_the_parameters_have_two_top_keys(made):
  stage = tiny.stages(config(made[0]))["classifier"]
  assert set(stage.init()["params"]) == set(stage.shapes["params"]) == {"backbone", "head"}
  assert stage.init()["params"]["backbone"] == {}


NEED_IMAGES = ("afa_cifar", "bbn_cifar", "camc_cifar", "camcpp_cifar", "lift_cifar")
METHODS = sorted(path.stem for path in CONFIGS.glob("*_cifar.py") if path.stem not in NEED_IMAGES)


@pytest.mark.parametrize("name", METHODS)
def test_the_step_of_every_method_takes_features(made, name):
  for stage in tiny.stages(config(made[0], name)).values():
    state = jax.eval_shape(lambda stage=stage: stage.wrap(stage.init()))
    after, finite = jax.eval_shape(steps.make_train_step(stage.parts), state, stage.data, *stage.batches(0, 1))
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state) and finite.shape == ()


@pytest.mark.parametrize("name", ["frozen", "mislas_kps_cifar"])
def test_methods_train_on_features(made, name, tmp_path):
  posthoc = (dict(name="nearest_class_mean"), dict(name="logit_adjustment", tau=(0.5, 1.0)))
  results = tiny.run(config(made[0], name, posthoc=posthoc), tmp_path / "run")
  assert all(0 < stage["test"]["overall"] <= 1 for stage in results["stages"].values())
  assert len(results["posthoc"]) == 2 and results["data"]["made_by"]["backbone"]["name"] == "OneConv"


def test_a_stopped_run_on_augmented_views_and_mixup_goes_on_exactly(viewed, tmp_path):
  found = config(viewed[0], classifier__mixup=0.5, classifier__epochs=3, checkpoint_every_epochs=1)
  whole = tiny.run(found, tmp_path / "whole")
  with pytest.raises(train.Interrupted):
    tiny.run(found, tmp_path / "stopped", stop_after=4)
  assert tiny.run(found, tmp_path / "stopped")["final"] == whole["final"]
  assert tiny.log(tmp_path / "stopped", "classifier") == tiny.log(tmp_path / "whole", "classifier")


def test_a_streamed_run_is_the_resident_run(made, tmp_path):
  runs = [tiny.run(config(made[0], dataset__pipeline=path), tmp_path / path) for path in ("resident", "tf_data")]
  assert runs[0]["final"] == runs[1]["final"]
  assert tiny.log(tmp_path / "resident", "classifier") == tiny.log(tmp_path / "tf_data", "classifier")


def test_prototypes_and_calibrated_maps_work_on_stored_maps(tmp_path):
  tiny.features(tmp_path / "maps.safetensors", maps=True, imbalance=20.0)
  found = config(tmp_path / "maps.safetensors", "camc_cifar")
  results = tiny.run(found, tmp_path / "run")
  assert (tmp_path / "run" / found.stages[-1] / "prototypes.json").is_file()
  assert 0 < results["final"]["overall"] <= 1


def test_a_head_goes_on_with_features_of_the_same_weights_only(made, tmp_path):
  tiny.run(config(made[0]), tmp_path / "run")
  results = tiny.run(config(made[0], pretrained=str(tmp_path / "run"), classifier__lr=0.0), tmp_path / "more")
  assert results["final"]["overall"] > 0.1
  tiny.features(tmp_path / "other.safetensors", dataset__holdout=0.2, seed=1)
  with pytest.raises(WorkdirError, match="was trained on features with weights_sha256 .*, but those of this run have"):
    tiny.run(config(tmp_path / "other.safetensors", pretrained=str(tmp_path / "run")), tmp_path / "third")


def test_other_features_do_not_continue_a_run(made, tmp_path):
  tiny.run(config(made[0]), tmp_path / "run")
  tiny.features(tmp_path / "other.safetensors", dataset__holdout=0.2, seed=1)
  with pytest.raises(ValueError, match="was started with other data"):
    tiny.run(config(tmp_path / "other.safetensors"), tmp_path / "run")
