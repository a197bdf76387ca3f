"""Both data paths through the complete program: the same batches, the same losses; image files from start to report."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from ltjax import main, metrics, stage
from ltjax.data import pipeline
from ltjax.errors import ConfigError, DataError
from ltjax.report import page
from ltjax.train import Interrupted
from tests import photos, tiny
from tests.processes import flags

pytestmark = pytest.mark.usefixtures("no_pictures")
ROOT = pathlib.Path(__file__).parents[1]
CUT = (dict(name="random_resized_crop", size=16), dict(name="flip"), dict(name="jitter", strengths=(0.4, 0.4, 0.4)))


def config(images: pathlib.Path, **overrides):
  """One stage of six steps on image files."""
  source = dict(name="folder", root=str(images), pipeline="tf_data", on_bad_image="error")
  return tiny.config("ce_digits", epochs=3, backbone=tiny.ONE_CONV, **dict(
      dataset=source, augment=CUT, representation__batch_size=8, eval_batch_size=4, log_every_steps=1) | overrides)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  """A folder of images: 20 for training and 9 for testing, in three classes."""
  folder = tmp_path_factory.mktemp("images")
  photos.dataset(folder)
  return folder


@pytest.fixture
def own_images(tmp_path):
  """Such a folder that a test may damage."""
  photos.dataset(tmp_path / "data")
  return tmp_path / "data"


def losses(workdir: pathlib.Path) -> list[float]:
  return [line["loss"] for line in tiny.log(workdir, "representation") if "loss" in line]


# -- the two paths ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [
    dict(representation__mixup=1.0), dict(representation__sampler=dict(name="class_balanced"), steps_per_call=2)],
    ids=str)
def test_a_streamed_run_is_the_resident_run(tmp_path, overrides):
  runs = {}
  for path in ("resident", "tf_data"):
    found = tiny.config("ce_digits", epochs=1, backbone=tiny.ONE_CONV, dataset__pipeline=path, log_every_steps=2,
                        **overrides)
    runs[path] = tiny.run(found, tmp_path / path)
  assert losses(tmp_path / "resident") == losses(tmp_path / "tf_data")
  assert runs["resident"]["final"] == runs["tf_data"]["final"]
  assert len(losses(tmp_path / "tf_data")) > 2


# -- image files ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory, no_pictures):
  """(config, work folder, results) of a run that nothing has stopped."""
  found = config(images, posthoc=(dict(name="nearest_class_mean"), dict(name="logit_adjustment")))
  workdir = tmp_path_factory.mktemp("finished") / "run"
  return found, workdir, tiny.run(found, workdir)


def test_image_files_from_start_to_report(finished):
  _, workdir, results = finished
  assert np.isfinite(losses(workdir)).all() and len(losses(workdir)) == 6
  assert results["data"]["train_images"] == 20 and results["data"]["test_images"] == 9
  assert results["data"]["bad_images"] == {} and results["data"]["image_shape"] == []
  assert [operation["name"] for operation in results["augmentation"]["representation"]] == [
      "random_resized_crop", "flip", "jitter"]
  assert len(results["posthoc"]) == 2
  assert json.loads((workdir / "results.json").read_text()) == json.loads(json.dumps(results))


@pytest.mark.parametrize("after", [1, 4])
def test_a_stopped_run_continues_with_the_next_batch(finished, tmp_path, after):
  found, workdir, results = finished
  with pytest.raises(Interrupted):
    tiny.run(found, tmp_path / "stopped", stop_after=after)
  again = tiny.run(found, tmp_path / "stopped")
  assert losses(tmp_path / "stopped") == losses(workdir)
  assert again["posthoc"] == results["posthoc"] and again["final"] == results["final"]


def test_several_steps_a_call_give_the_same_losses(finished, images, tmp_path):
  tiny.run(config(images, steps_per_call=2, log_every_steps=2), tmp_path / "two")
  one = np.reshape(losses(finished[1]), (-1, 2)).mean(axis=1)
  np.testing.assert_allclose(losses(tmp_path / "two"), one, rtol=1e-4)


@pytest.fixture(scope="module")
def variables(images):
  """Random variables of the network."""
  (made,) = tiny.stages(config(images)).values()
  return made.init()


@pytest.mark.parametrize("batch_size", [1, 2, 4, 5, 9, 100])
def test_every_test_image_is_counted_once_whatever_the_batch(images, variables, batch_size):
  (one,), (made,) = (tiny.stages(config(images, eval_batch_size=size)).values() for size in (9, batch_size))
  expected, evaluate = one.evaluators["test"](variables), made.evaluators["test"]
  for _ in range(2):
    np.testing.assert_array_equal(evaluate(variables), expected)
  np.testing.assert_array_equal(expected.sum(axis=1), [3, 3, 3])


@pytest.mark.parametrize("batch_size", [4, 9, 50])
def test_features_of_image_files_are_those_of_their_central_crops(images, variables, batch_size):
  (made,) = tiny.stages(config(images)).values()
  extract, files = made.extractor(variables, batch_size), made.dataset.test[0]
  squares = pipeline.Pipeline(files, np.zeros(9), lambda step: np.arange(9), 1, crop=pipeline.CentralCrops(16)).batch(0)
  found, expected = (extract(given, "features", "logits") for given in (files, squares["images"]))
  for key in found:
    np.testing.assert_array_equal(found[key], expected[key])
  assert found["logits"].shape == (9, 3)


def test_an_ensemble_of_five_crops_averages_logits_and_counts_each_image_once(images, variables):
  (made,), (one,) = (tiny.stages(config(images, test_crops=crops)).values() for crops in ("five", ""))
  extract, files = made.extractor(variables, 4), made.dataset.test[0]
  squares = pipeline.Pipeline(files, np.zeros(9), lambda step: np.repeat(np.arange(9)[:, None], 5, axis=1), 1,
                              crop=pipeline.FiveCrops(16)).batch(0)["images"]
  views = one.extractor(variables, 4)(squares.reshape(-1, 16, 16, 3), "features", "logits")
  found = extract(files, "features", "logits")
  for key in found:
    np.testing.assert_allclose(found[key], views[key].reshape(9, 5, -1).mean(axis=1), rtol=1e-4, atol=1e-5)
  confusion = made.evaluators["test"](variables)
  np.testing.assert_array_equal(confusion, metrics.confusion_matrix(
      made.dataset.test[1], found["logits"].argmax(axis=-1), 3))
  one_view = made.extractor(variables, 4, one_view=True)(files, "features")["features"]
  np.testing.assert_array_equal(one_view, one.extractor(variables, 4)(files, "features")["features"])


# -- images that cannot be decoded ------------------------------------------------------------------------------------


def test_substituted_images_are_listed_in_the_results(own_images, tmp_path):
  bad = ("train/0/1.jpg", "test/2/7.jpg")
  for name in bad:
    (own_images / name).write_bytes(b"")
  found = config(own_images)
  found.dataset.on_bad_image = "substitute"
  with pytest.raises(Interrupted):  # what was found before a stop is not forgotten
    tiny.run(found, tmp_path / "run", stop_after=5)
  results = tiny.run(found, tmp_path / "run")
  assert results["data"]["bad_images"] == {str(own_images / name): "the file is empty" for name in bad}
  assert page.bad_images(results)[0].startswith("2 images could not be decoded and were replaced by black ones")


def test_an_image_that_cannot_be_decoded_stops_the_run_by_default(own_images, tmp_path, capsys, monkeypatch):
  (own_images / "train/1/10.jpg").write_bytes(photos.jpeg(40, 40)[:-200])
  with pytest.raises(DataError, match=r"train/1/10\.jpg: the image cannot be decoded: .*truncated"):
    tiny.run(config(own_images), tmp_path / "run")
  monkeypatch.setattr("ltjax.distributed.processes.leave", lambda code, words: None)
  (tmp_path / "mine.py").write_text(f"from tests.test_feed import config\ndef get_config():\n"
                                    f"  return config({str(own_images)!r})\n")
  assert main.main([f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'other'}"], lambda: False) == 2
  lines = capsys.readouterr().err.splitlines()
  assert [line for line in lines if line.startswith("error: ")] == [lines[-1]] and "train/1/10.jpg" in lines[-1]


# -- what does not go together ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("overrides", "message"), [
    (dict(augment=(dict(name="random_crop", padding=1),)), "augment: the images of 'folder' have many sizes; write"),
    (dict(augment=()), "augment: the images of 'folder' have many sizes; write"),
    (dict(dataset__pipeline="resident"), "dataset.pipeline: the images of 'folder' are too many to be resident")])
def test_image_files_need_crops_and_tf_data(images, tmp_path, overrides, message):
  with pytest.raises(ConfigError, match=message):
    tiny.run(config(images, **overrides), tmp_path / "run")
  assert not (tmp_path / "run").exists()


# -- two processes ----------------------------------------------------------------------------------------------------


def two_steps(images: pathlib.Path) -> dict:
  """Two steps and an evaluation, on any number of processes: the part that this process had of them."""
  parsed = config(images)
  (made,) = stage.build(parsed, tiny.dataset(parsed))
  state, rows = made.make_state(made.init()), []
  for step in range(2):
    batch, scalars = made.batches(step, 1)
    rows.append([np.asarray(shard.data).tolist() for shard in batch["images"].addressable_shards])
    state, _ = made.train_steps[1](state, made.data, batch, scalars)
  confusion = made.evaluators["test"](dict(params=state.params, batch_stats=state.batch_stats))
  return dict(rows=rows, loss=float(state.window["loss"]), confusion=confusion.tolist())


@pytest.fixture(scope="module")
def processes(images, tmp_path_factory):
  """What `two_steps` gives here, and on each of two processes."""
  folder = tmp_path_factory.mktemp("processes")
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    address = f"localhost:{probe.getsockname()[1]}"
  started = [subprocess.Popen(
      [sys.executable, "-m", "tests.test_feed", images, folder, address, str(rank)], cwd=ROOT, text=True,
      stderr=subprocess.PIPE, env=os.environ | dict(JAX_PLATFORMS="cpu", XLA_FLAGS=flags())) for rank in range(2)]
  try:
    one = two_steps(images)
    errors = [process.communicate(timeout=200)[1] for process in started]
  finally:
    for process in started:
      process.kill()
  assert [process.returncode for process in started] == [0, 0], "".join(errors)[-3000:]
  return one, *(json.loads((folder / f"{rank}.json").read_text()) for rank in range(2))


def test_each_of_two_processes_has_half_of_each_batch(processes):
  one, first, second = processes
  for step in range(2):
    assert np.concatenate(one["rows"][step]).tolist() == first["rows"][step][0] + second["rows"][step][0]
    assert len(first["rows"][step]) == 1 and np.shape(first["rows"][step][0]) == (4, 16, 16, 3)


def test_two_processes_have_the_same_losses_and_count_every_image_once(processes):
  one, first, second = processes
  assert first["loss"] == second["loss"] == pytest.approx(one["loss"], rel=1e-5)
  assert first["confusion"] == second["confusion"] == one["confusion"]
  assert np.sum(one["confusion"]) == 9


if __name__ == "__main__":
  import jax

  images, folder, address, rank = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), *sys.argv[3:]
  jax.distributed.initialize(address, 2, int(rank))
  (folder / f"{rank}.json").write_text(json.dumps(two_steps(images)))
