"""One of several learning rates is chosen on held-out training images, where the features are constant."""

import json
import types

import pytest

from ltjax import train
from ltjax.config import parse
from ltjax.errors import ConfigError
from ltjax.train import Interrupted
from tests import tiny

pytestmark = pytest.mark.usefixtures("no_pictures")
CANDIDATES = (1e-6, 0.3, 0.1)


def config(lr, **overrides):
  """A head on the frozen, random features of the digits."""
  return tiny.config("ce_digits", epochs=4, backbone=tiny.ONE_CONV, augment=(), representation__train=("head/.*",),
                     representation__batch_norm="eval", representation__lr=lr, **overrides)


@pytest.fixture(scope="module")
def chosen(tmp_path_factory, no_pictures):
  folder = tmp_path_factory.mktemp("chosen")
  return folder, tiny.run(config(dict(name="cosine", base=CANDIDATES)), folder)


def test_the_best_on_held_out_images_is_chosen(chosen):
  folder, results = chosen
  record = json.loads((folder / "representation" / "learning_rate.json").read_text())
  assert results["stages"]["representation"]["learning_rate"] == record
  scores = {candidate["base"]: candidate["balanced_accuracy"] for candidate in record["candidates"]}
  assert tuple(scores) == CANDIDATES and record["chosen"] == max(scores, key=scores.get) != 1e-6
  assert scores[1e-6] < scores[record["chosen"]]
  assert 0 < record["held_out_images"] < results["data"]["train_images"]


def test_the_run_is_that_of_the_chosen_rate(chosen, tmp_path):
  folder, results = chosen
  base = results["stages"]["representation"]["learning_rate"]["chosen"]
  tiny.run(config(dict(name="cosine", base=base)), tmp_path)
  assert tiny.log(tmp_path, "representation") == tiny.log(folder, "representation")


def test_a_run_that_continues_keeps_the_choice(chosen, tmp_path):
  candidates = config(dict(name="cosine", base=CANDIDATES))
  with pytest.raises(Interrupted):
    tiny.run(candidates, tmp_path, stop_after=24)  # after the features, which are a batch a call
  path = tmp_path / "representation" / "learning_rate.json"
  before = path.stat().st_mtime_ns
  tiny.run(candidates, tmp_path)
  assert path.stat().st_mtime_ns == before
  assert tiny.log(tmp_path, "representation") == tiny.log(chosen[0], "representation")


def test_a_long_choice_says_how_far_it_is(monkeypatch, capsys):
  stage = types.SimpleNamespace(name="representation", with_rate=lambda base: base, spec=types.SimpleNamespace(
      rates=dict.fromkeys(CANDIDATES)))
  monkeypatch.setattr(train, "held_out_accuracy", lambda stage, variables: stage)
  assert train._tried(stage, {}) == {base: base for base in CANDIDATES} and capsys.readouterr().err == ""
  monkeypatch.setattr(train.Progress, "SILENCE", 0.0)
  train._tried(stage, {})
  assert capsys.readouterr().err.splitlines() == [
      f"representation: {tried} of 3 learning rates tried" for tried in (1, 2)]


def test_too_few_images_to_choose_on_leave_the_middle(tmp_path):
  # 96 images fill a batch, four fifths of them do not.
  few = config((0.3, 0.01, 0.1), dataset__imbalance=1.0)
  images = len(tiny.dataset(few).train[1])
  few.representation.batch_size = images
  assert tiny.run(few, tmp_path)["stages"]["representation"]["learning_rate"] == dict(
      chosen=0.1, candidates=[], held_out_images=0)


@pytest.mark.parametrize(("lr", "message"), [
    ((0.1,), "representation.lr: expected a number, or a tuple of several candidates"),
    (dict(name="cosine", base=()), "representation.lr.base: expected a number, or a tuple of several candidates"),
    ((0.1, -1.0), "representation.lr: expected a number of at least 0")])
def test_candidates_are_checked(lr, message):
  with pytest.raises(ConfigError, match=message):
    parse(config(lr))


def test_a_stage_that_trains_the_backbone_takes_one_rate():
  with pytest.raises(ConfigError, match="representation.lr: one of several learning rates is chosen where"):
    tiny.stages(tiny.config("ce_digits", representation__lr=(0.1, 0.2)))
