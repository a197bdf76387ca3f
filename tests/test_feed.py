"""Both data paths through the whole program: the same batches, the same losses; photographs from start to report."""

import json
import os
import pathlib
import socket
import subprocess
import sys
from unittest import mock

import jax
import numpy as np
import pytest

from ltjax import evaluate, main, train
from ltjax.config import bind as build
from ltjax.config import load as configs
from ltjax.data import pipeline, resident
from ltjax.distributed import sharding
from ltjax.errors import ConfigError, DataError
from ltjax.report import page as report
from ltjax.report import plots
from ltjax.train import Interrupted
from tests import photos, tiny

ROOT = pathlib.Path(__file__).parents[1]
CUT = dict(crop="random_resized", size=16, flip=True, jitter=(0.4, 0.4, 0.4))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  """Pictures and a real network say nothing about data."""
  monkeypatch.setattr(build, "model", tiny.one_conv)
  for name in ("training_curves", "accuracy_by_class_size", "confusion_matrix"):
    monkeypatch.setattr(plots, name, lambda *args: None)


@pytest.fixture
def photographs(tmp_path, monkeypatch):
  """A data set of photographs that every config reads."""
  dataset = photos.dataset(tmp_path / "data")
  monkeypatch.setattr(build, "dataset", lambda config: lambda cache=None: dataset)
  return dataset


def photo_config(augment=CUT, **overrides):
  """One stage of six steps."""
  found = tiny.config("ce_digits", epochs=3, representation__batch_size=8, eval_batch_size=4, log_every_steps=1,
                      dataset__pipeline="tf_data", dataset__on_bad_image="error", **overrides)
  with found.unlocked():
    found.augment = augment
  return found


def losses(workdir):
  return [line["loss"] for line in tiny.log(workdir, "representation") if "loss" in line]


# -- the same as the resident path -------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [
    dict(representation__mixup=1.0), dict(representation__sampler=dict(name="class_balanced"), steps_per_call=2)])
def test_a_run_through_tf_data_is_the_resident_run(tmp_path, overrides):
  runs = {}
  for path in ("resident", "tf_data"):
    config = tiny.config("ce_digits", epochs=1, dataset__pipeline=path, log_every_steps=2, **overrides)
    runs[path] = tiny.run(config, tmp_path / path)
  assert losses(tmp_path / "resident") == losses(tmp_path / "tf_data")
  assert runs["resident"]["final"] == runs["tf_data"]["final"]
  assert len(losses(tmp_path / "tf_data")) > 2


@pytest.mark.parametrize("options", [dict(mixup=1.0), dict(mixup=0.0), dict(mixup=0.0, branches=True)])
def test_both_paths_load_the_same_batch(options):
  images = np.random.default_rng(0).integers(0, 256, (50, 6, 6, 3), dtype=np.uint8)
  constants = dict(mean=np.float32([0.4, 0.5, 0.6]), std=np.float32([0.2, 0.2, 0.3]))
  data = dict(images=images, labels=np.arange(50, dtype=np.int32), **constants)
  indices = np.random.default_rng(1).integers(0, 50, (8, 2) if "branches" in options else (8,)).astype(np.int32)
  batch = pipeline.Pipeline(images, data["labels"], lambda step: indices, 1).batch(0)
  loaded = [jax.jit(resident.make_load(crop_padding=1, flip=True, read=read, **options))(
      held, given, jax.random.key(3), dict(share=np.float32(0.3)))
      for read, held, given in ((resident.gather, data, indices), (resident.received, constants, batch))]
  tiny.assert_trees_equal(*loaded)


def test_jitter_comes_before_normalisation_and_only_where_it_is_asked_for():
  images = np.random.default_rng(0).integers(0, 256, (8, 6, 6, 3), dtype=np.uint8)
  data = dict(images=images, labels=np.arange(8), mean=np.float32([0.5] * 3), std=np.float32([0.25] * 3))
  plain, jittered = (resident.make_load(flip=False, mixup=0.0, jitter=jitter)(
      data, np.arange(8), jax.random.key(3), {})[0] for jitter in (0, (0.4, 0.4, 0.4)))
  np.testing.assert_allclose(plain, (images / 255 - 0.5) / 0.25, atol=1e-5)
  assert (np.abs(jittered - plain).max(axis=(1, 2, 3)) > 0.1).all()
  assert np.abs(jittered).max() <= 2 + 1e-5


# -- photographs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def straight(photographs, tmp_path):
  config = photo_config(posthoc=(dict(name="nearest_class_mean"), dict(name="logit_adjustment")))
  return config, tmp_path / "straight", tiny.run(config, tmp_path / "straight")


def test_photographs_from_start_to_report(straight, photographs):
  _, workdir, results = straight
  assert np.isfinite(losses(workdir)).all() and len(losses(workdir)) == 6
  assert results["data"]["train_images"] == 20 and results["data"]["test_images"] == 9
  assert results["data"]["bad_images"] == {}
  assert results["augmentation"]["crop"] == "random_resized"
  assert len(results["posthoc"]) == 2
  assert json.loads((workdir / "results.json").read_text()) == json.loads(json.dumps(results))


@pytest.mark.parametrize("after", [1, 4])
def test_a_stopped_run_continues_with_the_next_batch(straight, tmp_path, after):
  config, workdir, results = straight
  with pytest.raises(Interrupted):
    tiny.run(config, tmp_path / "stopped", stop_after=after)
  again = tiny.run(config, tmp_path / "stopped")
  assert losses(tmp_path / "stopped") == losses(workdir)
  assert again["posthoc"] == results["posthoc"] and again["final"] == results["final"]


def test_several_steps_a_call(straight, tmp_path):
  _, workdir, _ = straight
  config = photo_config(steps_per_call=2)
  config.log_every_steps = 2
  tiny.run(config, tmp_path / "two")
  one = np.reshape(losses(workdir), (-1, 2)).mean(axis=1)
  np.testing.assert_allclose(losses(tmp_path / "two"), one, rtol=1e-4)


def test_every_test_photograph_is_counted_once_whatever_the_batch(photographs):
  model = tiny.one_conv()
  variables = model.init(jax.random.key(0), np.zeros((1, 16, 16, 3)), train=False)
  state = type("State", (), variables | dict(batch_stats=variables["batch_stats"]))
  found = []
  for batch_size in (1, 2, 4, 5, 9, 100):
    mesh = sharding.data_mesh()
    stream = evaluate.stream(*photographs.test, batch_size=batch_size, mesh=mesh, size=16)
    evaluator = evaluate.Evaluator(model, resident.constants(photographs), 10, batch_size=batch_size, mesh=mesh,
                                   stream=stream)
    found += [evaluator(state), evaluator(state)]
  for confusion in found:
    np.testing.assert_array_equal(confusion, found[0])
  np.testing.assert_array_equal(found[0].sum(axis=1)[:3], [3, 3, 3])


@pytest.mark.parametrize("batch_size", [4, 9, 50])
def test_features_of_photographs_are_those_of_their_squares(photographs, batch_size):
  model = tiny.one_conv()
  variables = dict(model.init(jax.random.key(0), np.zeros((1, 16, 16, 3)), train=False))
  extract = evaluate.Extractor(model, variables, mean=photographs.mean, std=photographs.std, batch_size=batch_size,
                               mesh=sharding.data_mesh(), size=16)
  files = photographs.test[0]
  squares = pipeline.Pipeline(files, np.zeros(9), lambda step: np.arange(9), 1, crop=pipeline.CentralCrops(16)).batch(0)
  found, expected = (extract(images, "features", "logits") for images in (files, squares["images"]))
  for key in found:
    np.testing.assert_array_equal(found[key], expected[key])
  assert found["logits"].shape == (9, 10)


def test_bad_images_are_listed_in_the_results(photographs, tmp_path):
  for name in ("train/0/1.jpg", "test/2/7.jpg"):
    (tmp_path / "data" / name).write_bytes(b"")
  config = photo_config()
  config.dataset.on_bad_image = "substitute"
  with pytest.raises(Interrupted):  # what was found before is not forgotten
    tiny.run(config, tmp_path / "run", stop_after=5)
  results = tiny.run(config, tmp_path / "run")
  names = {str(tmp_path / "data" / name): "the file is empty" for name in ("train/0/1.jpg", "test/2/7.jpg")}
  assert results["data"]["bad_images"] == names
  assert report.bad_images(results)[0].startswith("2 images could not be decoded and were replaced by black ones")


def test_a_bad_image_stops_the_run_by_default(photographs, tmp_path):
  (tmp_path / "data/train/1/10.jpg").write_bytes(photos.jpeg(40, 40)[:-200])
  with pytest.raises(DataError, match=r"train/1/10\.jpg: the image cannot be decoded: .*truncated"):
    tiny.run(photo_config(), tmp_path / "run")


def test_the_command_line_prints_one_line_for_a_bad_image(photographs, tmp_path, monkeypatch, capsys):
  (tmp_path / "data/train/1/10.jpg").write_bytes(b"x")
  monkeypatch.setattr(main, "_CONFIG", type("Flag", (), dict(value=photo_config(), name="config")))
  monkeypatch.setattr(main, "_WORKDIR", type("Flag", (), dict(value=str(tmp_path / "run"), name="workdir")))
  monkeypatch.setattr(main.flags, "FLAGS", {"verbosity": type("Flag", (), dict(present=1))})
  monkeypatch.setattr(main, "_STOP", lambda: False)
  monkeypatch.setattr(main, "_STRICT", type("Flag", (), dict(value=False)))
  with pytest.raises(SystemExit) as info:
    main._main(["main"])
  lines = capsys.readouterr().err.splitlines()
  assert info.value.code == 2
  assert [line for line in lines if line.startswith("error: ")] == [lines[-1]] and "train/1/10.jpg" in lines[-1]


# -- what does not go together -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("augment", "message"), [
    (dict(crop="center", size=16, flip=True, jitter=0), "augment.crop: expected 'random_resized', got 'center'"),
    (dict(crop="random_resized", size=0, flip=True, jitter=0), "augment.size: expected an integer of at least 8"),
    (dict(crop="random_resized", size=16, flip=1, jitter=0), "augment.flip: expected bool"),
    (dict(crop="random_resized", size=16, flip=True, jitter=0.4), "augment.jitter: expected 0, or the strengths of"),
    (dict(crop="random_resized", size=16, flip=True, jitter=(0.4, 0.4)), "augment.jitter: expected 0, or"),
    (dict(crop="random_resized", size=16, flip=True, jitter=(0.4, 0.4, 2)), r"augment.jitter\[2\]: expected a number"),
    (dict(crop="random_resized", size=16, flip=True, jitter=True), "augment.jitter: expected 0, or"),
    (dict(crop="random_resized", size=16, flip=True), "augment.jitter: missing"),
    (dict(crop="random_resized", sizes=16, flip=True, jitter=0), "augment.sizes: not a key.*did you mean 'size'"),
    (dict(crop="random_resized", size=16, flip=True, jitter=0, crop_padding=4), "augment.crop: not a key of augment"),
    (dict(flip=True), "augment.crop_padding: missing")])
def test_augment_blocks_that_cannot_be(augment, message):
  with pytest.raises(ConfigError, match=message):
    configs.check(photo_config(augment))


def test_augment_blocks_that_can_be():
  for jitter in (0, (0.4, 0.4, 0.4), [0, 0.1, 1]):
    configs.check(photo_config(dict(CUT, jitter=jitter)))


@pytest.mark.parametrize(("key", "value", "message"), [
    ("pipeline", "tfdata", "dataset.pipeline: expected one of resident, tf_data, got 'tfdata' .did you mean 'tf_data'"),
    ("pipeline", "resident", "augment.crop: 'random_resized' is done by tf.data"),
    ("on_bad_image", "skip", "dataset.on_bad_image: expected one of error, substitute, got 'skip'")])
def test_ways_of_reading_that_there_are_not(key, value, message):
  config = photo_config()
  config.dataset[key] = value
  with pytest.raises(ConfigError, match=message):
    configs.check(config)


def test_crops_of_images_of_one_size_and_photographs_without_are_refused_before_anything_is_written(
    tmp_path, photographs, monkeypatch):
  with pytest.raises(ConfigError, match="augment: the photographs of 'digits' are of many sizes"):
    tiny.run(photo_config(dict(crop_padding=1, flip=True)), tmp_path / "run")
  monkeypatch.undo()
  with pytest.raises(ConfigError, match="augment.crop: 'random_resized' cuts photographs, but 'digits' has images of"):
    tiny.run(photo_config(), tmp_path / "run")
  assert not (tmp_path / "run").exists()


# -- two processes -----------------------------------------------------------------------------------------------------


def two_steps(folder: pathlib.Path) -> dict:
  """Two steps and an evaluation on however many processes there are: what this one saw of them."""
  config = photo_config()
  stage = train.prepare(config, "representation", photos.dataset(folder))
  state, shares = stage.make_state(stage.init()), []
  for step in range(2):
    batch, scalars = stage.batches(step, 1)
    shares.append([np.asarray(shard.data).tolist() for shard in batch["images"].addressable_shards])
    state, _ = stage.train_steps[1](state, stage.data, batch, scalars)
  return dict(shares=shares, loss=float(state.window["loss"]), confusion=stage.evaluator(state).tolist())


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
  """What `two_steps` gives here, and on each of two processes."""
  folder = tmp_path_factory.mktemp("processes")
  photos.dataset(folder / "data")
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    address = f"localhost:{probe.getsockname()[1]}"
  started = [subprocess.Popen(
      [sys.executable, "-m", "tests.test_feed", folder, address, str(rank)], cwd=ROOT, text=True,
      stderr=subprocess.PIPE, env=os.environ | dict(JAX_PLATFORMS="cpu", XLA_FLAGS="")) for rank in range(2)]
  try:
    with mock.patch.object(build, "model", tiny.one_conv):
      one = two_steps(folder / "data")
    errors = [process.communicate(timeout=200)[1] for process in started]
  finally:
    for process in started:
      process.kill()
  assert [process.returncode for process in started] == [0, 0], "".join(errors)[-3000:]
  return one, *(json.loads((folder / f"{rank}.json").read_text()) for rank in range(2))


def test_two_processes_have_half_of_each_batch_each(processes):
  one, first, second = processes
  for step in range(2):
    assert np.concatenate(one["shares"][step]).tolist() == first["shares"][step][0] + second["shares"][step][0]
    assert len(first["shares"][step]) == 1 and np.shape(first["shares"][step][0]) == (4, 16, 16, 3)


def test_two_processes_have_the_same_losses_and_count_every_image_once(processes):
  one, first, second = processes
  assert first["loss"] == second["loss"] == pytest.approx(one["loss"], rel=1e-5)
  assert first["confusion"] == second["confusion"] == one["confusion"]
  assert np.sum(one["confusion"]) == 9


if __name__ == "__main__":
  folder, address, rank = pathlib.Path(sys.argv[1]), *sys.argv[2:]
  jax.distributed.initialize(address, 2, int(rank))
  build.model = tiny.one_conv
  (folder / f"{rank}.json").write_text(json.dumps(two_steps(folder / "data")))
