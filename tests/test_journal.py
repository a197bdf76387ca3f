"""The log of a stage, cut to the step where the run resumes."""

import json

import pytest

from ltjax.workdir import log as journal
from ltjax.workdir.log import Journal

LINES = [dict(step=step, loss=0.1 + step, test=dict(overall=1 / 3)) for step in (3, 5, 6, 9)]


@pytest.fixture
def path(tmp_path):
  path = tmp_path / "stage" / "metrics.jsonl"
  path.parent.mkdir()
  path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
  return path


@pytest.mark.parametrize(("upto", "kept"), [(0, 0), (2, 0), (3, 1), (5, 2), (8, 3), (9, 4), (100, 4)])
def test_lines_beyond_the_step_are_cut_away(path, upto, kept):
  Journal(path, upto=upto)
  assert journal.read(path) == LINES[:kept]


def test_lines_are_appended_where_the_log_was_cut(path):
  Journal(path, upto=5).write(step=6, loss=0.5)
  assert journal.read(path) == [*LINES[:2], dict(step=6, loss=0.5)]
  assert path.read_text().endswith("\n")


def test_two_lines_of_one_step_are_both_kept(path):
  log = Journal(path, upto=5)
  log.write(step=10, loss=1.0)
  log.write(step=10, test=0.5)
  Journal(path, upto=10)
  assert journal.read(path) == [*LINES[:2], dict(step=10, loss=1.0), dict(step=10, test=0.5)]


@pytest.mark.parametrize("rest", ['{"step": 12, "lo', "{", '{"step": 12, "test": {"overall": 0.5', "\0" * 40])
def test_a_half_written_last_line_is_dropped(path, rest):
  with path.open("a") as file:
    file.write(rest)
  assert journal.read(path) == LINES
  Journal(path, upto=100).write(step=12, loss=2.0)
  assert journal.read(path) == [*LINES, dict(step=12, loss=2.0)]


def test_a_last_line_without_its_newline_is_whole(path):
  path.write_text(path.read_text().rstrip("\n"))
  Journal(path, upto=100).write(step=12, loss=2.0)
  assert journal.read(path) == [*LINES, dict(step=12, loss=2.0)]


def test_a_missing_log_is_an_empty_one(tmp_path):
  path = tmp_path / "new" / "stage" / "metrics.jsonl"
  assert journal.read(path) == []
  Journal(path, upto=7).write(step=8)
  assert journal.read(path) == [dict(step=8)]


def test_no_other_files_are_left(path):
  Journal(path, upto=5)
  assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_numbers_survive_cutting_bit_for_bit(path):
  values = [0.1 + 0.2, 1e-45, 3.4028234663852886e38, 1 / 3]
  Journal(path, upto=0).write(step=1, values=values)
  for _ in range(3):
    Journal(path, upto=1)
  assert journal.read(path) == [dict(step=1, values=values)]
