"""A run that starts from another run's model."""

import jax
import numpy as np
import pytest

from ltjax import pretrained
from ltjax.config import bind as build
from ltjax.errors import ConfigError, WorkdirError
from ltjax.workdir.checkpoint import Checkpoints
from tests import tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """The work folder of a finished run of two stages, and the model that it ended with."""
  workdir = tmp_path_factory.mktemp("trained")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(build, "model", tiny.one_conv)
    tiny.run(tiny.config(epochs=1), workdir)
  return workdir, Checkpoints(workdir / "classifier" / "checkpoints", read_only=True).stored_model()


def drawn(num_classes: int = 10) -> dict:
  model = tiny.one_conv(class_counts=(1,) * num_classes)
  return dict(model.init(jax.random.key(5), np.zeros((1, 8, 8, 1), np.float32), train=False))


def config(workdir, **overrides):
  return tiny.config(pretrained=str(workdir), **overrides)


def test_all_of_the_last_stage_s_model_is_taken_over(trained):
  workdir, model = trained
  found = pretrained.into(drawn(), config(workdir))
  tiny.assert_trees_equal(found, jax.tree.map(np.asarray, model))
  assert (np.asarray(found["params"]["head"]["kernel"]) != np.asarray(drawn()["params"]["head"]["kernel"])).any()


def test_other_classes_are_refused_with_the_arrays_that_differ(trained):
  with pytest.raises(WorkdirError, match=r"params/head/kernel is float32\[4,10\], expected float32\[4,7\]; "):
    pretrained.into(drawn(7), config(trained[0]))


def test_reset_head_draws_the_head_and_takes_the_rest(trained):
  workdir, model = trained
  fresh = drawn(7)
  found = pretrained.into(fresh, config(workdir, reset_head=True))
  tiny.assert_trees_equal(found["params"]["head"], fresh["params"]["head"])
  tiny.assert_trees_equal(found["params"]["backbone"], jax.tree.map(np.asarray, model["params"]["backbone"]))
  tiny.assert_trees_equal(found["batch_stats"], jax.tree.map(np.asarray, model["batch_stats"]))


def test_reset_head_does_not_hide_another_backbone(trained):
  other = drawn()
  other["params"]["backbone"]["more"] = np.zeros(3, np.float32)
  with pytest.raises(WorkdirError, match="params/backbone/more is absent, expected float32"):
    pretrained.into(other, config(trained[0], reset_head=True))


def test_a_folder_that_is_no_run_is_refused(tmp_path):
  with pytest.raises(WorkdirError, match="is not the work folder of a run"):
    pretrained.into(drawn(), config(tmp_path))


def test_reset_head_without_anything_to_start_from_is_refused(tmp_path):
  with pytest.raises(ConfigError, match="reset_head: there is no head to draw anew without pretrained"):
    tiny.run(tiny.config(reset_head=True), tmp_path / "run")


def test_a_whole_run_starts_there_and_leaves_the_other_as_it_is(trained, tmp_path, monkeypatch):
  monkeypatch.setattr(build, "model", tiny.one_conv)
  workdir, model = trained
  before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
  still = dict(name="constant", value=0.0)
  tiny.run(config(workdir, epochs=1, representation__lr=still, representation__mixup=0.0), tmp_path / "fine")
  found = Checkpoints(tmp_path / "fine" / "representation" / "checkpoints", read_only=True).stored_model()
  tiny.assert_trees_equal(found["params"], model["params"])
  assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before
