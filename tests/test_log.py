"""The log of a stage, cut to the step where the run resumes, and the events of a run."""

import json
import os
import shutil

import pytest

from ltjax.errors import SaveError, WorkdirError
from ltjax.workdir import durable, log
from ltjax.workdir.log import Events, Journal

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
  assert log.read(path) == LINES[:kept]


def test_lines_are_appended_where_the_log_was_cut(path):
  Journal(path, upto=5).write(step=6, loss=0.5)
  assert log.read(path) == [*LINES[:2], dict(step=6, loss=0.5)]
  assert path.read_text().endswith("\n")


def test_two_lines_of_one_step_are_both_retained(path):
  made = Journal(path, upto=5)
  made.write(step=10, loss=1.0)
  made.write(step=10, test=0.5)
  Journal(path, upto=10)
  assert log.read(path) == [*LINES[:2], dict(step=10, loss=1.0), dict(step=10, test=0.5)]


@pytest.mark.parametrize("rest", ['{"step": 12, "lo', "{", '{"step": 12, "test": {"overall": 0.5', "\0" * 40])
def test_a_half_written_last_line_is_dropped(path, rest):
  with path.open("a") as file:
    file.write(rest)
  assert log.read(path) == LINES
  Journal(path, upto=100).write(step=12, loss=2.0)
  assert log.read(path) == [*LINES, dict(step=12, loss=2.0)]


def test_a_last_line_without_its_newline_is_complete(path):
  path.write_text(path.read_text().rstrip("\n"))
  Journal(path, upto=100).write(step=12, loss=2.0)
  assert log.read(path) == [*LINES, dict(step=12, loss=2.0)]


def test_a_missing_log_is_an_empty_one(tmp_path):
  path = tmp_path / "new" / "stage" / "metrics.jsonl"
  assert log.read(path) == []
  Journal(path, upto=7).write(step=8)
  assert log.read(path) == [dict(step=8)]


def test_no_other_files_are_left(path):
  Journal(path, upto=5)
  assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_numbers_survive_cutting_bit_for_bit(path):
  values = [0.1 + 0.2, 1e-45, 3.4028234663852886e38, 1 / 3]
  Journal(path, upto=0).write(step=1, values=values)
  for _ in range(3):
    Journal(path, upto=1)
  assert log.read(path) == [dict(step=1, values=values)]


# -- the checkpoint's record of the log --------------------------------------------------------------------------------


def marks(path) -> dict:
  return Journal(path, upto=100).mark()


@pytest.mark.parametrize(("remaining", "words"), [
    (0, "0 of the 4 lines up to step 9 are there, those after step 0 are missing"),
    (2, "2 of the 4 lines up to step 9 are there, those after step 5 are missing")])
def test_lines_that_the_checkpoint_knows_and_the_file_lacks_are_reported(path, capsys, remaining, words):
  known, told = marks(path), []
  path.write_text("".join(json.dumps(line) + "\n" for line in LINES[:remaining]))
  Journal(path, upto=9, logs=known, on_loss=told.append)
  assert len(told) == 1 and words in told[0] and f"WARNING: {told[0]}" in capsys.readouterr().err


def test_a_removed_log_and_lines_that_were_removed_or_changed_are_reported(path):
  known, told = marks(path), []
  path.write_text("".join(json.dumps(line) + "\n" for line in (LINES[0], *LINES[2:])))
  Journal(path, upto=9, logs=known, on_loss=told.append)
  assert "3 of the 4 lines up to step 9 are there, some before its end are missing" in told[-1]
  path.write_text("".join(json.dumps(line | dict(loss=0)) + "\n" for line in LINES))
  Journal(path, upto=9, logs=known, on_loss=told.append)
  assert "a line up to step 9 is not as it was written" in told[-1]
  path.unlink()
  Journal(path, upto=9, logs=known, on_loss=told.append)
  assert "0 of the 4 lines" in told[-1] and len(told) == 3


def test_a_complete_log_is_no_loss_whatever_follows_it(path):
  told, made = [], Journal(path, upto=9)
  made.write(step=10, values=(0.1, 1 / 3, 1e-45), numbers={1: float("nan")}, name="größer")
  known = made.mark()
  made.write(step=10, test=1)
  made.write(step=11, loss=3)
  assert Journal(path, upto=10, logs=known, on_loss=told.append).count("test") == 5 and not told
  assert made.mark()["metrics.jsonl"]["lines"] == 7 and known["metrics.jsonl"]["lines"] == 5
  assert Journal(path, upto=10, logs=known).mark() == Journal(path, upto=10).mark()


def test_damage_by_a_power_cut_after_the_flushed_lines_is_dropped(path, capsys):
  known = marks(path)
  with path.open("ab") as file:
    file.write(bytes(100) + b'\n{"step": 10}\n')
  Journal(path, upto=9, logs=known)
  assert log.read(path) == LINES and "line 5 cannot be read" in capsys.readouterr().err
  with path.open("ab") as file:
    file.write(b"x\n" + b'{"step": 10}\n')
  with pytest.raises(WorkdirError, match="metrics.jsonl:5: not a line that ltjax wrote"):
    Journal(path, upto=9)  # a checkpoint of a former release knows nothing of it


def test_a_log_in_a_moved_folder_stops_the_run_and_makes_no_new_one(path):
  made = Journal(path, upto=9)
  shutil.move(path.parent, path.parent.with_name("moved"))
  with pytest.raises(SaveError, match="is gone: the work folder was moved or removed"):
    made.write(step=10)
  assert not path.parent.exists()


# -- events and files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rest", "events"), [("", 3), ('{"event": "fallb', 3), ('{"event": "kind"}', 4)])
def test_half_an_event_is_removed_before_the_next(tmp_path, rest, events):
  made = Events(tmp_path / "events.jsonl")
  for _ in range(2):
    made.write("kind", "message")
  with (tmp_path / "events.jsonl").open("a") as file:
    file.write(rest)
  made.write("kind", "message")
  assert made.counts() == dict(kind=events)


def test_an_unreadable_event_costs_a_warning_and_not_the_results(tmp_path, capsys):
  (tmp_path / "events.jsonl").write_text('{"event": "a"}\n{"event": "b{"event": "a"}\n[]\n{"event": "a"}\n')
  assert Events(tmp_path / "events.jsonl").counts() == dict(a=2)
  assert capsys.readouterr().err.count("it is left out") == 2


def test_a_file_is_flushed_before_it_gets_its_name_and_its_folder_after(tmp_path, monkeypatch):
  calls, fsync, replace = [], os.fsync, os.replace
  monkeypatch.setattr(os, "fsync", lambda *args: calls.append("fsync") or fsync(*args))
  monkeypatch.setattr(os, "replace", lambda *args: calls.append("replace") or replace(*args))
  durable.write_durably(tmp_path / "a.json", "text")
  assert calls == ["fsync", "replace", "fsync"]
  assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.json", "text")]
  monkeypatch.setattr(os, "fsync", lambda *args: (_ for _ in ()).throw(OSError(5, "I/O error")))
  with pytest.raises(OSError, match="I/O error"):
    durable.write_durably(tmp_path / "a.json", "other")
  assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.json", "text")]
