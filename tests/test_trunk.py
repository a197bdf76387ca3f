"""Runs on pretrained weights from start to end: what a head starts with, and checkpoints without the frozen trunk."""

import json
from unittest import mock

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from ltjax import bridge, optim, posthoc, recipes
from ltjax.errors import ConfigError, DataError, WorkdirError
from ltjax.models import head_init, import_torch, weight_files
from ltjax.train import Interrupted
from ltjax.workdir import manifest
from tests import photos, tiny
from tests.models import weights

pytestmark = pytest.mark.usefixtures("no_pictures")
CUT = (dict(name="random_resized_crop", size=16), dict(name="flip"))
TINY = dict(width=12, depth=2, heads=3, patch=8)
FILE = dict(width=12, depth=2, patch=8, grid=2)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """A folder with images of three classes and a file of timm's names for a tiny ViT."""
  folder = tmp_path_factory.mktemp("files")
  photos.dataset(folder / "images")
  weights.save(folder / "vit.safetensors", weights.vit(**FILE))
  return folder


def config(files, tuning="adaptformer", *, stages=("tuned",), **overrides):
  """One or two stages of four steps on a tiny pretrained ViT, of which adapters and the head are trained."""
  stage = recipes.stage(epochs=2, batch_size=8, lr=0.1, loss=dict(name="cross_entropy"), optimizer=recipes.sgd(1e-4),
                        train="tuning", head_init=dict(name="class_mean"))
  head = recipes.stage(epochs=1, batch_size=8, lr=0.1, loss=dict(name="cross_entropy"), optimizer=recipes.sgd(1e-4),
                       train=("head/.*",))
  found = recipes.folder(root=str(files / "images"), augment=CUT, backbone=dict(
      name="ViT", **TINY, tuning=dict(name=tuning)))
  found.pretrained, found.stages, found.tuned = str(files / "vit.safetensors"), stages, stage
  if len(stages) > 1:
    found.head_only = head
  found.head = dict(name="NormalizedLinear", scale=25.0, normalize_features=True)
  found.eval_batch_size, found.checkpoint_every_epochs, found.log_every_steps = 8, 1, 1
  for path, value in overrides.items():
    block, key = (found, path) if "__" not in path else (found[path.split("__")[0]], path.split("__")[1])
    with block.ignore_type(), block.unlocked():
      block[key] = value
  return found


@pytest.fixture(scope="module")
def shared():
  with tiny.shared_compilations():
    yield


@pytest.fixture(scope="module")
def finished(files, shared, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("finished") / "run"
  return workdir, tiny.run(config(files), workdir)


def params(workdir) -> dict:
  return optim.flat(jax.device_get(bridge.finished(workdir)[1]["params"]))


def test_a_checkpoint_holds_what_is_trained_and_the_hash_of_the_trunk(files, finished):
  workdir, results = finished
  step = results["stages"]["tuned"]["steps"]
  content = manifest.read(workdir / "tuned" / "checkpoints" / str(step))
  stored = {path.removeprefix("model/params/") for path in content["arrays"] if path.startswith("model/params/")}
  assert stored == {"backbone/positions", "head/kernel", *(
      f"backbone/block{block}/adapter/{name}" for block in (1, 2)
      for name in ("norm/scale", "norm/bias", "down/kernel", "down/bias", "up/kernel", "up/bias", "scale"))}
  assert content["trunk"]["source"] == str(files / "vit.safetensors") and len(content["trunk"]["sha256"]) == 64
  assert {path.removeprefix("params/") for path in content["trunk"]["paths"]} == params(workdir).keys() - stored


def test_the_model_is_the_file_s_where_it_is_frozen(files, finished):
  stage, _ = bridge.finished(finished[0])
  given, found = optim.flat(import_torch.into(stage.shapes, str(files / "vit.safetensors"))["params"]), params(
      finished[0])
  frozen = [path for path in given if path.startswith("backbone/") and "adapter" not in path]
  assert len(frozen) > 20
  for path in frozen:
    np.testing.assert_array_equal(found[path], given[path], err_msg=path)


@pytest.mark.parametrize("after", [1, 3])
def test_resume_is_exact(files, finished, tmp_path, after):
  found = config(files)
  with pytest.raises(Interrupted):
    tiny.run(found, tmp_path / "run", stop_after=after)
  tiny.run(found, tmp_path / "run")
  expected, resumed = params(finished[0]), params(tmp_path / "run")
  assert expected.keys() == resumed.keys()
  for path, leaf in expected.items():
    np.testing.assert_array_equal(leaf, resumed[path], err_msg=path)
  assert [line.get("loss") for line in tiny.log(tmp_path / "run", "tuned")] == [
      line.get("loss") for line in tiny.log(finished[0], "tuned")]


def test_another_trunk_is_refused_in_one_sentence(files, finished, tmp_path):
  here = tmp_path / "vit.safetensors"
  here.write_bytes((files / "vit.safetensors").read_bytes())
  found = config(files, pretrained=str(here))
  with pytest.raises(Interrupted):
    tiny.run(found, tmp_path / "run", stop_after=2)
  tensors = weights.vit(**FILE)
  weights.save(here, tensors | {"blocks.1.mlp.fc1.bias": tensors["blocks.1.mlp.fc1.bias"] + 1})
  message = r"was trained on frozen weights with the SHA-256 \w{8}, but .* gives \w{8}; put the file of"
  with pytest.raises(WorkdirError, match=message) as info:
    tiny.run(found, tmp_path / "run")
  assert "\n" not in str(info.value)
  here.unlink()
  with pytest.raises(DataError, match="pretrained: no file"):
    tiny.run(found, tmp_path / "run")


def test_a_second_stage_and_another_run_start_from_it(files, shared, tmp_path):
  found = config(files, stages=("tuned", "head_only"))
  weight_files._load.cache_clear()
  with mock.patch("builtins.open", wraps=open) as opened:
    tiny.run(found, tmp_path / "run")
  assert [str(call.args[0]) for call in opened.call_args_list].count(found.pretrained) == 1
  first = tiny.saved_steps(tmp_path / "run", "tuned")[-1]
  stored = [manifest.read(tmp_path / "run" / stage / "checkpoints" / str(step)) for stage, step in (
      ("tuned", first), ("head_only", tiny.saved_steps(tmp_path / "run", "head_only")[-1]))]
  # The second stage trains the head alone, but the adapters are no longer those of the file.
  assert stored[0]["trunk"] == stored[1]["trunk"]
  assert {path for path in stored[0]["arrays"] if path.startswith("model/")} == {
      path for path in stored[1]["arrays"] if path.startswith("model/")}
  trained = params(tmp_path / "run")
  (stage,) = tiny.stages(config(files, tuned__head_init=None)).values()
  again = bridge.pretrained(stage.shapes, str(tmp_path / "run"), stage.dataset.class_names)
  for path, leaf in optim.flat(again["params"]).items():
    np.testing.assert_array_equal(leaf, trained[path], err_msg=path)


def test_what_is_trained_completely_is_saved_completely(files, shared, tmp_path):
  found = config(files, "full")
  tiny.run(found, tmp_path / "run")
  content = manifest.read(tmp_path / "run" / "tuned" / "checkpoints" / str(
      tiny.saved_steps(tmp_path / "run", "tuned")[-1]))
  assert "trunk" not in content
  given = weights.vit(**FILE)  # training writes to nothing that the process keeps of the file
  assert all(np.array_equal(given[name], array) for name, array in weight_files.read(files / "vit.safetensors").items())


# -- what a head starts with ------------------------------------------------------------------------------------------


def stage_of(files, **overrides):
  return next(iter(tiny.stages(config(files, **overrides)).values()))


def started(stage) -> dict:
  """The variables at step 0."""
  variables = bridge.pretrained(stage.init(), stage.pretrained, stage.dataset.class_names)
  return head_init.start(stage, variables)


def features(stage, variables, split="train") -> np.ndarray:
  return stage.extractor(variables, one_view=True)(getattr(stage.dataset, split)[0], "features")["features"]


def test_class_means_are_those_of_the_start_s_features(files, shared):
  stage = stage_of(files)
  variables = started(stage)
  found, labels = features(stage, variables), stage.dataset.train[1]
  means = np.stack([found[labels == c].mean(axis=0) for c in range(3)], axis=1)
  np.testing.assert_allclose(variables["params"]["head"]["kernel"], means / np.linalg.norm(means, axis=0), rtol=1e-4,
                             atol=1e-6)


def test_a_linear_head_starts_as_the_nearest_class_mean(files, shared):
  stage = stage_of(files, head=dict(name="Linear"), tuned__head_init=dict(name="class_mean"))
  variables = started(stage)
  found = stage.extractor(variables)(stage.dataset.test[0], "features", "logits")
  means = posthoc.nearest_class_mean(features(stage, variables), stage.dataset.train[1], 3, metric="euclidean")
  nearest = posthoc.nearest_mean_logits(found["features"], means, metric="euclidean")
  np.testing.assert_array_equal(found["logits"].argmax(axis=-1), np.argmax(nearest, axis=-1))


@pytest.mark.parametrize("head", ["NormalizedLinear", "Linear"])
def test_a_linear_probe_is_scikit_learn_s(files, shared, head):
  block = dict(name=head) if head == "Linear" else dict(name=head, scale=25.0, normalize_features=True)
  stage = stage_of(files, head=block, tuned__head_init=dict(name="linear_probe", strength=3.0))
  variables, labels = started(stage), stage.dataset.train[1]
  found, model = features(stage, variables), LogisticRegression(
      C=3.0, class_weight="balanced", max_iter=1000, fit_intercept=head == "Linear")
  if head == "Linear":
    logits = stage.extractor(variables)(stage.dataset.train[0], "logits")["logits"]
    np.testing.assert_allclose(jax.nn.softmax(logits), model.fit(found, labels).predict_proba(found), atol=1e-3)
  else:
    kernel = model.fit(found / np.linalg.norm(found, axis=1, keepdims=True), labels).coef_.T
    np.testing.assert_allclose(variables["params"]["head"]["kernel"], kernel / np.linalg.norm(kernel, axis=0),
                               atol=1e-3)


def test_a_linear_probe_of_two_classes_has_a_vector_for_each():
  rng = np.random.default_rng(0)
  found, labels = rng.standard_normal((40, 5)), np.arange(40) % 2
  kernel, bias = head_init.linear_probe(found, labels, ("a", "b"), False, strength=2.0)
  model = LogisticRegression(C=2.0, class_weight="balanced").fit(found, labels)
  np.testing.assert_allclose(jax.nn.softmax(found @ kernel + bias), model.predict_proba(found), atol=1e-5)


def test_vectors_of_a_file_are_matched_by_name(files, shared, tmp_path):
  names, rng = tiny.dataset(config(files)).class_names, np.random.default_rng(0)
  vectors = {name: rng.standard_normal(12).astype(np.float32) for name in reversed(names)}
  path = weights.save(tmp_path / "texts.safetensors", vectors | {"another": vectors[names[0]]})
  stage = stage_of(files, tuned__head_init=dict(name="file", path=path))
  kernel = np.stack([vectors[name] for name in names], axis=1)
  np.testing.assert_allclose(started(stage)["params"]["head"]["kernel"], kernel / np.linalg.norm(kernel, axis=0),
                             rtol=1e-5)


def test_vectors_of_texts_go_through_the_projection(files, shared, tmp_path):
  names, rng = tiny.dataset(config(files)).class_names, np.random.default_rng(0)
  texts = {name: rng.standard_normal(32).astype(np.float32) for name in names}
  projection = rng.standard_normal((12, 32)).astype(np.float32)
  clip = weights.save(tmp_path / "clip.safetensors", weights.vit(**FILE, clip=True) | {"proj": projection})
  path = weights.save(tmp_path / "texts.safetensors", texts)
  stage = stage_of(files, pretrained=clip, backbone=dict(name="ViT", **TINY, style="clip", tuning=dict(name="vpt")),
                   tuned__head_init=dict(name="file", path=path))
  assert stage.dataset.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
  assert stage.augmentation.interpolation == "bicubic"
  kernel = projection @ np.stack([texts[name] for name in names], axis=1)
  kernel = kernel / np.linalg.norm(kernel, axis=0)
  np.testing.assert_allclose(started(stage)["params"]["head"]["kernel"], kernel, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("change", "message"), [
    (lambda vectors: vectors.pop("1"), "has no vector for 1 of 3 classes, the first is '1'"),
    (lambda vectors: vectors.update({"1": np.zeros(7, np.float32)}), "have the shapes"),
    (lambda vectors: vectors.update({name: np.zeros(7, np.float32) for name in vectors}),
     "have 7 numbers, the features have 12, and the pretrained weights have no projection")])
def test_vectors_that_do_not_fit_are_refused_before_anything_is_written(files, shared, tmp_path, change, message):
  vectors = {name: np.ones(12, np.float32) for name in tiny.dataset(config(files)).class_names}
  change(vectors)
  path = weights.save(tmp_path / "texts.safetensors", vectors)
  with pytest.raises((DataError, ConfigError), match=message) as info:
    tiny.run(config(files, tuned__head_init=dict(name="file", path=path)), tmp_path / "run")
  assert "\n" not in str(info.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(("block", "message"), [
    (dict(name="class_means"), r"tuned.head_init.name: there is no 'class_means' \(did you mean 'class_mean'\?\)"),
    (dict(name="linear_probe", strength=0), "tuned.head_init.strength: expected a number above 0, got 0"),
    (dict(name="file"), "tuned.head_init: file needs path")])
def test_a_wrong_block(files, block, message):
  with pytest.raises(ConfigError, match=message):
    tiny.stages(config(files, tuned__head_init=block))


# -- what images are before the weights see them ----------------------------------------------------------------------


@pytest.mark.parametrize(("overrides", "mean", "interpolation"), [
    ({}, 0.5, "bicubic"), (dict(normalization="imagenet"), 0.485, "bicubic"),
    (dict(pretrained=""), 0.485, "bilinear"), (dict(interpolation="bilinear", normalization="dataset"), 0.485,
                                               "bilinear")])
def test_normalisation_and_interpolation_come_with_the_weights(files, overrides, mean, interpolation):
  stage = stage_of(files, **overrides)
  assert stage.dataset.mean[0] == pytest.approx(mean) and stage.augmentation.interpolation == interpolation


def test_the_results_have_them_and_a_finished_run_keeps_them(finished, files):
  data = json.loads((finished[0] / "results.json").read_text())["data"]
  assert (data["mean"], data["interpolation"], data["test_crops"]) == ([0.5] * 3, "bicubic", "")
  stage, _ = bridge.finished(finished[0])
  assert stage.dataset.mean == (0.5, 0.5, 0.5) and stage.augmentation.interpolation == "bicubic"
  other = stage_of(files, pretrained=str(finished[0]), reset_head=True)  # from that run, and so with its images
  assert other.dataset.mean == (0.5, 0.5, 0.5) and other.augmentation.interpolation == "bicubic"


def test_patches_that_do_not_divide_the_images(files):
  with pytest.raises(ConfigError, match="ViT: patches of 8 px do not divide images of 20 x 20; give a size that is a"):
    tiny.stages(config(files, augment=(dict(name="random_resized_crop", size=20),)))


def test_adapters_that_the_model_has_not(files):
  with pytest.raises(ConfigError, match=r"tuned.train: 'backbone/\.\*adapter\.\*' matches no parameter"):
    tiny.stages(config(files, "lora", tuned__train=("head/.*", "backbone/.*adapter.*")))
