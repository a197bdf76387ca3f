"""The figures at any number of classes, and with any names: nothing overlaps, nothing leaves the frame."""

import numpy as np
import pytest
from matplotlib.text import Annotation

from ltjax.report.figures import classes, confusion, features, style, training
from tests.test_names import HOSTILE


def drawn(figure, path):
  style.save(figure, path / "figure.png")
  return figure


def run(number: int):
  """(confusion, class counts, names) of so many classes."""
  rng = np.random.default_rng(number)
  counts = rng.permutation((2 + 300 * np.geomspace(1, 0.01, number)).astype(int))
  found = np.zeros((number, number), np.int64)
  found[np.arange(number), np.arange(number)] = rng.integers(0, 5, number)
  np.add.at(found, (np.arange(number), rng.integers(0, number, number)), 2)
  found[number // 2] = 0  # without test images
  return found, counts, [f"class number {c}" for c in range(number)]


@pytest.mark.parametrize("number", [2, 40, 300])
def test_labels_of_classes_overlap_nowhere_and_stay_inside(number, tmp_path):
  matrix, counts, names = run(number)
  figure = drawn(classes.accuracy_by_class_size({"first": matrix.T, "last": matrix}, counts, names), tmp_path)
  (axis,) = figure.axes
  labels = [child for child in axis.get_children() if isinstance(child, Annotation)]
  assert len(labels) == {2: 1, 300: 0}.get(number, len(labels)) and (number != 40 or len(labels) > 5)
  renderer = figure.canvas.get_renderer()
  boxes, frame = [label.get_window_extent(renderer) for label in labels], axis.get_window_extent()
  for k, box in enumerate(boxes):
    assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    assert not any(box.overlaps(other) for other in boxes[:k])


@pytest.mark.parametrize(("number", "cells"), [(2, 2), (40, 40), (300, 100)])
def test_the_confusion_matrix_names_classes_or_groups(number, cells, tmp_path):
  matrix, counts, names = run(number)
  figure = drawn(confusion.confusion_matrix(matrix, counts, names), tmp_path)
  image, ticks = figure.axes[0].images[0].get_array(), [
      label.get_text() for label in figure.axes[0].get_xticklabels()]
  assert image.shape == (cells, cells)
  np.testing.assert_allclose(np.nansum(image.filled(np.nan), axis=1)[~np.ma.getmaskarray(image).all(axis=1)], 100)
  assert ticks == [names[c] for c in np.argsort(-counts, kind="stable")] if number <= 40 else (
      [tick.split("\n")[0] for tick in ticks] == ["many", "medium", "few"])


def test_the_names_of_small_groups_share_a_place_in_the_confusion_matrix(tmp_path):
  counts = np.repeat([500, 50, 5], [10, 20, 970])
  figure = drawn(confusion.confusion_matrix(np.eye(1000, dtype=np.int32), counts, [""] * 1000), tmp_path)
  axis, renderer = figure.axes[0], figure.canvas.get_renderer()
  for labels in (axis.get_xticklabels(), axis.get_yticklabels()):
    assert [label.get_text() for label in labels] == ["many (10)\nmedium (20)", "few\n(970)"]
    first, second = (label.get_window_extent(renderer) for label in labels)
    assert not first.overlaps(second)


def test_a_matrix_of_thousands_of_classes_keeps_its_sums(tmp_path):
  matrix, counts, _ = run(2000)
  shares = confusion._shares(matrix, np.argsort(-counts, kind="stable"), 100)
  np.testing.assert_allclose(shares.sum(axis=1), 100)


@pytest.mark.parametrize("width", [4, 18])
def test_hostile_names_are_one_short_line_and_no_mathematics(width):
  for name in (*HOSTILE.values(), "_hidden", "", "x" * 500, "翘头" * 50):
    found = style.name(name, width)
    assert "\n" not in found and found.strip()
    assert found.count("$") == found.count(r"\$") and not found.startswith("_")


def test_hostile_names_are_drawn(tmp_path):
  names = list(HOSTILE.values())
  matrix, counts, _ = run(len(names))
  with style.warnings.catch_warnings():
    style.warnings.filterwarnings("ignore", message="Glyph .* missing from")
    drawn(confusion.confusion_matrix(matrix, counts, names), tmp_path)
    drawn(classes.accuracy_by_class_size({"last": matrix}, counts, names), tmp_path)
    drawn(features.features(np.random.default_rng(0).normal(size=(len(names), 2)), np.arange(len(names)), counts,
                            names), tmp_path)


def test_a_loss_of_one_point_can_be_seen(tmp_path):
  test = dict(overall=0.5, many=0.75, medium=None, few=0.25)
  lines = [dict(step=1, epoch=1, loss=2.0, accuracy=0.5), dict(step=1, epoch=1, test=test)]
  figure = drawn(training.training_curves({"only": lines, "empty": []}, ("many", "few")), tmp_path)
  top, empty, bottom, _ = figure.axes
  assert top.lines[0].get_marker() == "." and top.get_ylim()[0] <= 2.0 <= top.get_ylim()[1]
  assert all(line.get_marker() == "." for line in bottom.lines)
  assert "no loss" in empty.texts[0].get_text()


def test_feature_norms_over_epochs_have_a_line_a_group_and_a_gap_where_there_is_none(tmp_path):
  rows = [dict(stage=stage, epoch=float(epoch), many=few + 1, medium=None, few=few)
          for stage in ("first", "second") for epoch, few in ((1, 2.0), (2, np.nan), (3, 4.0))]
  figure = drawn(training.feature_norms(rows, ("many", "few")), tmp_path)
  for axis in figure.axes:
    many, few = (line.get_ydata() for line in axis.lines)
    np.testing.assert_array_equal(few, [2, np.nan, 4])
    np.testing.assert_array_equal(many, [3, np.nan, 5])
    assert axis.get_ylim()[0] == 0 and [line.get_color() for line in axis.lines] == [
        style.COLORS["many"], style.COLORS["few"]]
  assert [text.get_text() for text in figure.legends[0].get_texts()] == ["many", "few"]


def test_gains_are_means_of_groups_from_the_largest_classes_on(tmp_path):
  counts, difference = np.arange(40, 0, -1), np.repeat([0.1, -0.2, 0.0, np.nan], 10)
  figure = drawn(classes.gain_bars(difference, counts, "after minus before"), tmp_path)
  heights = [bar.get_height() for bar in figure.axes[0].patches]
  np.testing.assert_allclose(heights, [0.1, 0.1, -0.05, -0.2, -0.2, 0, 0, 0, 0, 0], atol=1e-12)
