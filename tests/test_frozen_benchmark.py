"""benchmarks/frozen.py: what is tried for each loss, and which of it is taken."""

import pathlib

import pytest

from benchmarks import frozen


def test_losses_without_a_scale_are_tried_from_two_starts():
  assert set(frozen.LOSSES) - set(frozen.SCALED) == {"fbl", "norm_fc", "linear", "linear_adjusted"}
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
  assert frozen.chosen(pathlib.Path("none"), loss) == best
  tried = len(frozen.RATES) * (len(frozen.SCALES) if loss in frozen.SCALED else 2)
  assert calls == [(tried, frozen.SHORT), (frozen.KEPT, frozen.EPOCHS)]


def test_a_choice_at_an_edge_has_a_star():
  assert [frozen.shown(value, frozen.SCALES) for value in (5.0, 20.0, 80.0)] == ["5*", "20", "80*"]
