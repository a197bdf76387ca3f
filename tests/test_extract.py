"""`ltjax extract`, and the features that a stage with a frozen backbone computes once by itself."""

import numpy as np
import pytest

from ltjax import bridge, train
from ltjax.commands import extract as command
from ltjax.data import evaluate, extract, features
from ltjax.errors import ConfigError, LtjaxError, WorkdirError
from tests import photos, tiny

pytestmark = pytest.mark.usefixtures("no_pictures")
CENTRAL = (dict(name="central_crop", size=16),)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, no_pictures):
  """(config, work folder) of a run on digits."""
  found, workdir = tiny.config("ce_digits", epochs=1, backbone=tiny.ONE_CONV), tmp_path_factory.mktemp("run") / "run"
  tiny.run(found, workdir)
  return found, workdir


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  """A folder of photographs: 20 for training and 9 for testing, in three classes."""
  folder = tmp_path_factory.mktemp("images")
  photos.dataset(folder)
  return folder


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_backbone_of_a_finished_run(finished, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(extract, "_SAY", 0.0)
  config, workdir = finished
  command.main([f"--workdir={workdir}", f"--output={tmp_path / 'f.safetensors'}"], stop=lambda: False)
  printed = capsys.readouterr()
  assert "written: " in printed.out
  assert " images\nfeatures: " in printed.err and "img/s" not in printed.err  # lines and no bar outside a terminal
  stage, variables = bridge.finished(workdir)
  data = tiny.dataset(config)
  found = features.features(root=str(tmp_path / "f.safetensors"))
  wanted = stage.extractor(variables)(data.test[0], "features")["features"]
  np.testing.assert_allclose(found.test[0][:, 0], wanted, rtol=1e-5, atol=1e-6)
  again = tmp_path / "g.safetensors"
  command.run(tiny.config("ce_digits", backbone=tiny.ONE_CONV, pretrained=str(workdir)), again)
  np.testing.assert_array_equal(features.features(root=str(again)).test[0], found.test[0])


def test_the_central_crop_of_files_is_that_of_a_test(images, finished, tmp_path):
  found = tiny.config("ce_digits", backbone=tiny.ONE_CONV, augment=CENTRAL, dataset=dict(
      name="folder", root=str(images)), representation__batch_size=8)
  stage = tiny.stages(found)["representation"]
  indices, pixels = stage.order.batch(0), stage.batch(0)["images"]
  np.testing.assert_array_equal(pixels, evaluate.pixels(stage.dataset.train[0], indices, stage.augmentation))


def test_a_stopped_extraction_goes_on_and_ends_with_the_same_bytes(tmp_path, monkeypatch):
  found = tiny.config("ce_digits", backbone=tiny.ONE_CONV, eval_batch_size=100)
  stage = tiny.stages(found)["representation"]
  variables = stage.init()
  made_by = extract.describe(stage, variables, views=1)
  assert extract.extract(stage, variables, tmp_path / "whole.safetensors", made_by)
  path, calls, rows = tmp_path / "stopped.safetensors", iter(range(100)), []
  assert not extract.extract(stage, variables, path, made_by, lambda after: next(calls) == 9)
  assert not path.exists() and (tmp_path / "stopped.safetensors.partial.json").exists()
  monkeypatch.setattr(extract._Writer, "write", lambda self, name, row, part, write=extract._Writer.write: (
      rows.append((name, row, len(part))), write(self, name, row, part)))
  calls = iter(range(100))
  assert not extract.extract(stage, variables, path, made_by, lambda after: next(calls) == 12)
  assert rows[0] == ("features", 10 * 64, 37)  # after the ten batches that are there
  assert extract.extract(stage, variables, path, made_by)
  assert path.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
  assert sorted(file.name for file in tmp_path.iterdir()) == ["stopped.safetensors", "whole.safetensors"]
  views = [count for name, _, count in rows if name == "views"]
  assert sum(views) == len(stage.dataset.train[1])


def test_what_was_left_of_another_extraction_is_not_taken(tmp_path):
  path, kept = tmp_path / "f.safetensors", {}
  for seed in (0, 1):
    stage = tiny.stages(tiny.config("ce_digits", backbone=tiny.ONE_CONV, seed=seed))["representation"]
    kept[seed] = stage, stage.init()
  assert not extract.extract(*kept[0], path, extract.describe(*kept[0]), lambda after: True)
  assert extract.extract(*kept[1], path, extract.describe(*kept[1]))
  assert extract.extract(*kept[1], tmp_path / "g.safetensors", extract.describe(*kept[1]))
  assert path.read_bytes() == (tmp_path / "g.safetensors").read_bytes()


def test_a_file_is_written_by_one_process_at_a_time(tmp_path):
  stage = tiny.stages(tiny.config("ce_digits", backbone=tiny.ONE_CONV))["representation"]
  variables, path = stage.init(), tmp_path / "f.safetensors"
  made_by = extract.describe(stage, variables)

  def other(after):
    with pytest.raises(WorkdirError, match="is being written by another process; wait for it, or stop it"):
      extract.extract(stage, variables, path, made_by)
    return True

  assert not extract.extract(stage, variables, path, made_by, other)


@pytest.mark.parametrize("arguments, message", [
    (["--output=f.npz"], "--output: expected a name that ends in .safetensors, got 'f.npz'"),
    ([], "--output is missing"), (["--output=f.safetensors", "--views=x"], "--views: expected a number of at least 0"),
    (["--output=f.safetensors", "--config.augment=()", "--views=2"],
     "--views=2: the config augments nothing, so all views would be the image itself"),
    (["--output=f.safetensors", "--config.representation.mixup=1.0", "--views=2"],
     "--views=2: mixup mixes images of several classes, whose features belong to none"),
])
def test_bad_arguments_are_one_sentence(finished, arguments, message, capsys):
  with pytest.raises(SystemExit) as caught:
    command.main([f"--workdir={finished[1]}", *arguments], stop=lambda: False)
  error = capsys.readouterr().err
  assert caught.value.code == 2 and f"error: {message}" in error and "Traceback" not in error


def test_a_backbone_that_nothing_has_trained_is_refused(tmp_path):
  with pytest.raises(ConfigError, match="pretrained: the backbone of this config has no trained weights"):
    command.run(tiny.config("ce_digits", backbone=tiny.ONE_CONV), tmp_path / "f.safetensors")
  assert not any(tmp_path.iterdir())


def test_features_of_features_are_refused(finished, tmp_path):
  tiny.features(tmp_path / "f.safetensors")
  source = dict(name="features", root=str(tmp_path / "f.safetensors"))
  found = tiny.config("ce_digits", dataset=source, backbone=dict(name="Identity"), augment=())
  tiny.run(found, tmp_path / "run")
  with pytest.raises(ConfigError, match="would make features of features"):
    command.run(found, tmp_path / "g.safetensors", workdir=tmp_path / "run")


def test_an_output_that_exists_is_kept(finished, tmp_path):
  config, workdir = finished
  path = tmp_path / "f.safetensors"
  made_by = command.run(config, path, workdir=workdir)
  before = path.stat().st_mtime_ns
  assert command.run(config, path, workdir=workdir) == made_by and path.stat().st_mtime_ns == before
  with pytest.raises(WorkdirError, match=r"was made otherwise \(dtype differ\); remove it, or give another name"):
    command.run(config, path, workdir=workdir, float16=True)
  path.write_bytes(b"mine")
  with pytest.raises(WorkdirError, match="exists and is not what this command would write"):
    command.run(config, path, workdir=workdir)
  assert path.read_bytes() == b"mine"


# -- features that a stage computes once by itself ---------------------------------------------------------------------


def frozen(**overrides):
  """GCL on digits, whose second stage trains the head alone on images that stay as they are."""
  return tiny.config("gcl_digits", backbone=tiny.ONE_CONV, **dict(
      posthoc=(dict(name="nearest_class_mean"),), representation__epochs=1, classifier__augment=()) | overrides)


@pytest.fixture(scope="module")
def both(tmp_path_factory, no_pictures):
  """{cache_features: (work folder, results)} of the same run with and without the cache."""
  folder = tmp_path_factory.mktemp("both")
  return {mode: (folder / mode, tiny.run(frozen(cache_features=mode), folder / mode)) for mode in ("auto", "never")}


def test_a_cached_run_is_the_uncached_run(both):
  (cached, results), (plain, wanted) = both["auto"], both["never"]
  assert len(list((cached / "features").iterdir())) == 1 and not (plain / "features").exists()
  assert results["final"] == wanted["final"] and results["posthoc"] == wanted["posthoc"]
  for one, other in zip(tiny.log(cached, "classifier"), tiny.log(plain, "classifier"), strict=True):
    assert one.keys() == other.keys() and one["step"] == other["step"]
    np.testing.assert_allclose(one.get("loss", 0), other.get("loss", 0), rtol=1e-5)
  states = [tiny.saved(tiny.stages(frozen())["classifier"], workdir) for workdir in (cached, plain)]
  tiny.assert_trees_equal(states[0].params["backbone"], states[1].params["backbone"])
  tiny.assert_trees_equal(states[0].batch_stats, states[1].batch_stats)
  np.testing.assert_allclose(*(state.params["head"]["kernel"] for state in states), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("lost", [False, True], ids=["kept", "removed"])
def test_a_stopped_cached_run_goes_on_exactly(both, tmp_path, lost):
  with pytest.raises(train.Interrupted):
    tiny.run(frozen(), tmp_path / "run", stop_after=5 + 18 + 4)  # steps, batches of images, steps
  assert tiny.saved_steps(tmp_path / "run", "classifier")
  if lost:
    for path in (tmp_path / "run" / "features").iterdir():
      path.unlink()
  assert tiny.run(frozen(), tmp_path / "run")["final"] == both["auto"][1]["final"]
  tiny.assert_trees_equal(*(tiny.saved(tiny.stages(frozen())["classifier"], workdir).params
                            for workdir in (tmp_path / "run", both["auto"][0])))


def test_a_run_that_is_stopped_while_it_computes_features_goes_on(both, tmp_path):
  whole = extract.cached
  with pytest.MonkeyPatch.context() as patch, pytest.raises(train.Interrupted):
    patch.setattr(extract, "cached", lambda *args: whole(*args[:3], lambda after: True))
    tiny.run(frozen(), tmp_path / "run")
  assert sorted(path.suffix for path in (tmp_path / "run" / "features").iterdir()) == [".json", ".partial"]
  assert tiny.run(frozen(), tmp_path / "run")["final"] == both["auto"][1]["final"]


def test_a_damaged_cache_is_computed_again_and_said_so(tmp_path, capsys):
  stage = tiny.stages(frozen())["classifier"]
  variables = stage.init()
  first = extract.cached(stage, variables, tmp_path, lambda after: False)
  (path,) = tmp_path.iterdir()
  content = bytearray(path.read_bytes())
  content[-1] ^= 1
  path.write_bytes(content)
  again = extract.cached(stage, variables, tmp_path, lambda after: False)
  assert "computing these features again" in capsys.readouterr().err
  np.testing.assert_array_equal(first.train[0], again.train[0])


def test_the_cache_is_keyed_by_what_made_it(tmp_path):
  stage = tiny.stages(frozen())["classifier"]
  variables = stage.init()
  other = tiny.stages(frozen(dataset__imbalance=6.0))["classifier"]
  changed = dict(variables, params=dict(variables["params"], backbone=dict(
      variables["params"]["backbone"], conv=dict(kernel=variables["params"]["backbone"]["conv"]["kernel"] + 1,
                                                 bias=variables["params"]["backbone"]["conv"]["bias"]))))
  for each, given in ((stage, variables), (stage, changed), (other, variables), (stage, variables)):
    extract.cached(each, given, tmp_path, lambda after: False)
  assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("overrides", [
    dict(cache_features="never"), dict(classifier__augment=None), dict(classifier__mixup=1.0),
    dict(classifier__train=(".*",)), dict(classifier__batch_norm="shift"),
    dict(classifier__train=("head/.*", "backbone/norm/.*"), classifier__batch_norm="eval")], ids=str)
def test_features_that_change_are_not_cached(overrides):
  assert not tiny.stages(frozen(**overrides))["classifier"].has_constant_features


def test_a_frozen_run_on_files_is_cached(images, tmp_path):
  results, source = {}, dict(name="folder", root=str(images), pipeline="tf_data", on_bad_image="error")
  for mode in ("auto", "never"):
    found = tiny.config("ce_digits", epochs=2, backbone=tiny.ONE_CONV, augment=CENTRAL, dataset=source,
                        eval_batch_size=4, representation__batch_size=8, representation__train=("head/.*",),
                        representation__batch_norm="eval", cache_features=mode)
    results[mode] = tiny.run(found, tmp_path / mode)
  assert results["auto"]["final"] == results["never"]["final"]
  assert list((tmp_path / "auto" / "features").iterdir())
  losses = [[line["loss"] for line in tiny.log(tmp_path / mode, "representation") if "loss" in line]
            for mode in results]
  np.testing.assert_allclose(*losses, rtol=1e-4)


def test_an_unknown_mode_is_refused():
  with pytest.raises(LtjaxError, match="cache_features: expected one of auto, never, got 'always'"):
    tiny.stages(frozen(cache_features="always"))
