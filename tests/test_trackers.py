"""TensorBoard and Weights & Biases get each number of metrics.jsonl once, also of a run that was stopped."""

import importlib.util
import json
import shutil
import struct
import sys

import pytest

from ltjax import main
from ltjax.errors import ConfigError
from ltjax.report import trackers
from ltjax.train import Interrupted
from tests import tiny


def needs(name: str):
  return pytest.mark.skipif(not importlib.util.find_spec(name), reason=f"{name} is not installed")


@pytest.fixture(scope="module")
def config():
  with tiny.shared_compilations():
    yield tiny.config("gcl_digits", epochs=2, backbone=tiny.ONE_CONV, dataset__holdout=0.2, log_every_steps=1)


class Crash(Exception):
  pass


def run_with_stops(config, workdir, log: str) -> dict[str, dict[tuple[int, str], float]]:
  """Runs a config that is stopped, and that crashes in both stages between two checkpoints.

  Returns {stage: {(step, tag): value}} of metrics.jsonl.
  """
  repeated = 0

  def crash():
    raise Crash

  for number, end, error in ((3, lambda: True, Interrupted), (2, crash, Crash), (6, crash, Crash)):
    with pytest.raises(error):
      calls = iter(range(10**9))
      main.run(config, workdir, lambda calls=calls, number=number, end=end: next(calls) >= number and end(), log=log)
    for stage in config.stages:  # what the next start does again
      if (workdir / stage / "metrics.jsonl").exists():
        repeated += max((line["step"] for line in tiny.log(workdir, stage)), default=0) not in tiny.saved_steps(
            workdir, stage)
  assert repeated >= 2
  main.run(config, workdir, log=log)
  main.run(config, workdir, log=log)  # a finished run sends nothing twice
  return {stage: {(line["step"], tag): value for line in tiny.log(workdir, stage)
                  for tag, value in trackers.scalars(line).items()} for stage in config.stages}


@needs("tensorboard")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("no_pictures")
def test_tensorboard_has_each_number_once(config, tmp_path, capsys):
  from tensorboard.backend.event_processing import event_file_loader

  expected = run_with_stops(config, tmp_path / "run", "tensorboard")
  for stage, points in expected.items():
    (path,) = (tmp_path / "run" / "tensorboard" / stage).iterdir()
    found = [((event.step, value.tag), value.tensor.float_val[0])  # what the loader makes of a scalar
             for event in event_file_loader.EventFileLoader(str(path)).Load() for value in event.summary.value]
    assert len(found) == len(points) and {"train/loss", "test/overall", "held_out"} <= {tag for _, tag in points}
    assert dict(found) == pytest.approx(points, rel=1e-6)
  assert "WARNING" not in capsys.readouterr().err


def records(data: bytes, parse) -> list:
  """The records of a W&B file, in LevelDB's log format: blocks of 32 KiB, records in parts, a header of 7 bytes."""
  at, found, part = 7, [], b""
  while at + 7 <= len(data):
    if 32768 - at % 32768 < 7:
      at += 32768 - at % 32768
      continue
    _, length, kind = struct.unpack("<IHB", data[at:at + 7])
    part, at = part + data[at + 7:at + 7 + length], at + 7 + length
    if kind in (1, 4):  # complete, or the last part
      found.append(parse(part))
      part = b""
  return found


@needs("wandb")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("no_pictures")
def test_wandb_has_each_number_once(config, tmp_path, monkeypatch):
  from wandb.proto.wandb_internal_pb2 import Record

  monkeypatch.setenv("WANDB_MODE", "offline")
  expected = run_with_stops(config, tmp_path / "run", "wandb")
  rows = [record.history for path in sorted((tmp_path / "run" / "wandb").glob("offline-*/*.wandb"))
          for record in records(path.read_bytes(), Record.FromString) if record.HasField("history")]
  offset, points = 0, {}
  for stage, own in expected.items():
    points |= {(offset + step, f"{stage}/{tag}"): value for (step, tag), value in own.items()}
    offset += max(step for step, _ in own)
  found = [((row.step.num, ".".join(item.nested_key) or item.key), json.loads(item.value_json)) for row in rows
           for item in row.item if not (item.key or item.nested_key[0]).startswith("_")]
  assert len(found) == len(dict(found)) and dict(found) == pytest.approx(points)
  assert json.loads((tmp_path / "run" / "wandb.json").read_text()) == dict(step=offset, finished=True)


@needs("tensorboard")
@pytest.mark.filterwarnings("ignore")
def test_figures_of_the_report_are_sent(tmp_path):
  from PIL import Image
  from tensorboard.backend.event_processing import event_file_loader

  from tests.photos import encode

  (tmp_path / "report").mkdir()
  (tmp_path / "report" / "gains.png").write_bytes(encode(Image.new("RGB", (5, 4)), "PNG"))
  made = trackers.TensorBoard(tmp_path)
  made.finish(tmp_path / "report", {})
  made.close()
  (path,) = (tmp_path / "tensorboard" / "report").iterdir()
  assert [value.tag for event in event_file_loader.EventFileLoader(str(path)).Load()
          for value in event.summary.value] == ["gains"]


def test_a_tracker_that_fails_costs_a_warning(tmp_path, capsys):
  class Full:
    def stage(self, name, offset, lines):
      raise OSError("no space left")

  made = trackers.Trackers([Full()])
  made.stage("representation", 3, [])(dict(step=1, loss=0.5))
  made.close()
  err = capsys.readouterr().err
  assert err.count("WARNING") == 1 and "Full gets no more numbers of this run (OSError: no space left)" in err


@pytest.mark.parametrize(("text", "message"), [
    ("tensorbord", r"--log: there is no 'tensorbord' \(did you mean 'tensorboard'\?\); there are tensorboard, wandb$"),
    ("wandb", "--log=wandb needs a package that is not installed: pip install wandb$")])
def test_a_mistake_costs_a_line_before_anything_is_written(tmp_path, monkeypatch, text, message):
  monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ConfigError, match=message):
    main.run(tiny.config(), tmp_path / "run", log=text)
  assert not (tmp_path / "run").exists()
  assert trackers.check("") == ()


def test_without_the_option_nothing_is_imported(config, tmp_path, no_pictures):
  before = {"tensorboard", "wandb"} & set(sys.modules)
  main.run(config, tmp_path / "run")
  assert {"tensorboard", "wandb"} & set(sys.modules) == before
  assert not {"tensorboard", "wandb", "wandb.json"} & {path.name for path in (tmp_path / "run").iterdir()}
  shutil.rmtree(tmp_path / "run")
