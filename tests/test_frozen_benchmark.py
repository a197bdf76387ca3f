"""benchmarks/frozen.py: what is tried for each loss, and which of it is taken."""

import pathlib

import numpy as np
import pytest

from benchmarks import frozen
from ltjax import bridge
from tests import tiny


def test_losses_without_a_scale_are_tried_from_two_starts():
  assert set(frozen.LOSSES) - set(frozen.SCALED) == {
      "fbl", "norm_fc", "linear", "linear_resampling", "linear_adjusted"}
  assert frozen.settings("linear") == [(5.0, "class_mean"), (5.0, "random")]
  assert frozen.settings("gcl") == [(scale, "class_mean") for scale in frozen.SCALES]


@pytest.mark.parametrize(("loss", "best"), [
    ("gcl", (20.0, "class_mean", 0.3)), ("linear", (5.0, "random", 0.3))])
def test_the_best_after_few_epochs_train_for_all_and_the_best_of_these_is_taken(monkeypatch, loss, best):
  calls = []

  def held_out(features, loss, tried, epochs):
    calls.append((len(tried), epochs))
    # Few epochs put the best one third.
    order = sorted(tried, key=lambda each: (each[1] != best[1], abs(each[0] - best[0]) + abs(each[2] - best[2])))
    if epochs == frozen.SHORT:
      order = [order[1], order[2], order[0], *order[3:]]
    return {each: -place for place, each in enumerate(order)}

  monkeypatch.setattr(frozen, "held_out", held_out)
  assert frozen.chosen(pathlib.Path("none"), loss, frozen.settings(loss)) == best
  tried = len(frozen.RATES) * (len(frozen.SCALES) if loss in frozen.SCALED else 2)
  assert calls == [(tried, frozen.SHORT), (frozen.KEPT, frozen.EPOCHS)]


def test_a_choice_at_an_edge_has_a_star():
  assert [frozen.shown(value, frozen.SCALES) for value in (5.0, 20.0, 80.0)] == ["5*", "20", "80*"]


def test_post_hoc_adjustment_changes_the_predictions_and_not_the_training(tmp_path):
  tiny.features(tmp_path / "digits.safetensors", dataset__holdout=0.2)
  stages = [frozen.built(tmp_path / "digits.safetensors", loss, (25.0, "random"), epochs=1)
            for loss in ("cross_entropy", "posthoc_adjustment")]
  starts = [bridge.start_head(stage, stage.init()) for stage in stages]
  for split in ("held_out", "test"):
    plain, adjusted = (frozen.evaluated(stage, split, 0.1, start) for stage, start in zip(stages, starts, strict=True))
    images, labels = getattr(stages[0].dataset, split)
    trained = frozen.train.in_memory(stages[0].with_rate(0.1), starts[0])
    logits = stages[0].extractor(trained)(images, "logits")["logits"]
    counts = stages[0].class_counts
    for found, scores in ((plain, logits), (adjusted, logits - np.log(counts / counts.sum()))):
      expected = np.zeros((10, 10), int)
      np.add.at(expected, (labels, scores.argmax(-1)), 1)
      np.testing.assert_array_equal(found, expected)
    assert (plain != adjusted).any()
