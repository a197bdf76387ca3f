"""Sends the lines of metrics.jsonl and the figures of the report to TensorBoard and Weights & Biases, if asked to.

metrics.jsonl stays what counts: a tracker that fails is left out with a warning, and a run that resumes shows each
point once.
"""

import contextlib
import importlib.util
import json
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from ml_collections import ConfigDict
from PIL import Image

from ltjax.data import quiet
from ltjax.errors import ConfigError, nearest
from ltjax.report.names import shown
from ltjax.workdir.durable import write_durably

PACKAGES = dict(tensorboard="tensorboard", wandb="wandb")  # {name of a tracker: its module, and the package}
TENSORBOARD, WANDB = "tensorboard", "wandb.json"  # in the work folder


class Tracker(Protocol):
  """Somewhere that numbers and figures of a run are sent to."""

  def stage(self, name: str, offset: int, lines: Sequence[Mapping]) -> None:
    """A stage begins or goes on: these are all lines of its log so far; `offset` steps were before it."""

  def line(self, entries: Mapping) -> None:
    """A new line of the stage's log."""

  def finish(self, report: pathlib.Path, results: Mapping) -> None:
    """The run is finished: its figures lie in the folder `report`."""

  def close(self) -> None:
    """Nothing more will come from this start of the run."""


def check(text: str) -> tuple[str, ...]:
  """The names of the trackers in "tensorboard,wandb"; none for "".

  Raises:
    ConfigError: an unknown one, or its package is missing.
  """
  names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
  for name in names:
    if name not in PACKAGES:
      raise ConfigError(f"--log: there is no {name!r}{nearest(name, PACKAGES)}; there are {', '.join(PACKAGES)}")
    if importlib.util.find_spec(PACKAGES[name]) is None:
      raise ConfigError(f"--log={name} needs a package that is not installed: pip install {PACKAGES[name]}")
  return names


def scalars(entries: Mapping) -> dict[str, float]:
  """{"test/overall": value} of the numbers in a line of metrics.jsonl; a group without classes has none.

  Of several lines of a step, the one with the loss has the epoch.

  >>> scalars(dict(step=3, epoch=0.5, loss=1.0, test=dict(overall=0.5, few=None), skipped=[4, 5]))
  {'epoch': 0.5, 'train/loss': 1.0, 'test/overall': 0.5}
  """
  found = {}
  for key, value in entries.items():
    if isinstance(value, Mapping):
      found |= {f"{key}/{group}": float(part) for group, part in value.items() if part is not None}
    elif isinstance(value, int | float) and key != "step" and (key != "epoch" or "loss" in entries):
      found[f"train/{key}" if key in ("loss", "accuracy", "lr") else key] = float(value)
  return found


# -- TensorBoard ------------------------------------------------------------------------------------------------------


class TensorBoard:
  """Event files in the work folder, a folder for each stage.

  When a stage goes on, its event file is written again from metrics.jsonl, so that it holds each point once. A
  TensorBoard that is open forgets the points that it has read from the file before.
  """

  def __init__(self, workdir: pathlib.Path):
    self._folder, self._writer = workdir / TENSORBOARD, None
    with contextlib.suppress(ImportError):
      quiet.tensorflow()  # the writer imports it where it can, and would let it greet and take the accelerator

  def stage(self, name: str, offset: int, lines: Sequence[Mapping]) -> None:
    """See `Tracker`."""
    del offset
    self._open(name)
    for entries in lines:
      self._add(entries)
    self._writer.flush()

  def line(self, entries: Mapping) -> None:
    """See `Tracker`."""
    self._add(entries)
    self._writer.flush()

  def finish(self, report: pathlib.Path, results: Mapping) -> None:
    """See `Tracker`."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    del results
    self._open("report")
    for path in sorted(report.glob("*.png")):
      with Image.open(path) as image:
        width, height = image.size
      self._write(0, Summary(value=[Summary.Value(tag=path.stem, image=Summary.Image(
          encoded_image_string=path.read_bytes(), width=width, height=height, colorspace=3))]))

  def close(self) -> None:
    """See `Tracker`."""
    if self._writer is not None:
      self._writer.close()
      self._writer = None

  def _open(self, name: str) -> None:
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    self.close()
    shutil.rmtree(self._folder / name, ignore_errors=True)
    self._writer = EventFileWriter(str(self._folder / name))
    self._writer.add_event(Event(wall_time=time.time(), step=0, session_log=SessionLog(status=SessionLog.START)))

  def _add(self, entries: Mapping) -> None:
    from tensorboard.compat.proto.summary_pb2 import Summary

    self._write(entries["step"], Summary(value=[
        Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(entries).items()]))

  def _write(self, step: int, summary) -> None:
    from tensorboard.compat.proto.event_pb2 import Event

    self._writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))


# -- Weights & Biases -------------------------------------------------------------------------------------------------


class Wandb:
  """A run of Weights & Biases, under the random name that the run has in identity.json.

  Lines of one step are sent together, when the next step comes; wandb.json in the work folder holds the last step that
  was sent, so that a start that repeats some steps sends none of them twice.
  """

  def __init__(self, workdir: pathlib.Path, config: ConfigDict, run: str):
    import wandb

    self._path, self._wandb, self._pending = workdir / WANDB, wandb, (0, {})
    self._sent = json.loads(self._path.read_text()) if self._path.exists() else dict(step=-1, finished=False)
    settings = wandb.Settings(silent=True, console="off")
    self._run = wandb.init(project="ltjax", name=shown(workdir.name, "json"), id=run[:32] or None, resume="allow",
                           dir=str(workdir), config=json.loads(config.to_json()), settings=settings)

  def stage(self, name: str, offset: int, lines: Sequence[Mapping]) -> None:
    """See `Tracker`."""
    self._name, self._offset = name, offset
    for entries in lines:
      self.line(entries)

  def line(self, entries: Mapping) -> None:
    """See `Tracker`."""
    step = self._offset + entries["step"]
    if step != self._pending[0]:
      self._send()
    values = {f"{self._name}/{tag}": value for tag, value in scalars(entries).items()}
    self._pending = step, self._pending[1] | values

  def finish(self, report: pathlib.Path, results: Mapping) -> None:
    """See `Tracker`."""
    self._send()
    if not self._sent["finished"]:
      self._run.summary.update({f"final/{group}": value for group, value in results["final"].items()})
      self._run.log({f"report/{path.stem}": self._wandb.Image(str(path)) for path in sorted(report.glob("*.png"))})
      self._note(finished=True)

  def close(self) -> None:
    """See `Tracker`."""
    self._run.finish()

  def _send(self) -> None:
    step, values = self._pending
    if values and step > self._sent["step"]:
      self._run.log(values, step=step)
      self._note(step=step)
    self._pending = 0, {}

  def _note(self, **entries) -> None:
    self._sent |= entries
    write_durably(self._path, json.dumps(self._sent) + "\n")


# -- all of them ------------------------------------------------------------------------------------------------------


class Trackers:
  """The trackers of a run; one that fails costs itself and a line on stderr."""

  def __init__(self, made: Sequence[Tracker]):
    self._made, self._offset = list(made), 0

  def stage(self, name: str, steps: int, lines: Sequence[Mapping]) -> Callable[[Mapping], None]:
    """Begins a stage of `steps` steps with the lines of its log; returns what is told each new line."""
    self._each("stage", name, self._offset, lines)
    self._offset += steps
    return lambda entries: self._each("line", entries)

  def finish(self, report: pathlib.Path, results: Mapping) -> None:
    """Sends the figures and the results."""
    self._each("finish", report, results)

  def _each(self, method: str, *arguments) -> None:
    for tracker in tuple(self._made):
      try:
        getattr(tracker, method)(*arguments)
      except Exception as error:  # a service that is down, a disk that is full: the run is worth more
        self._made.remove(tracker)
        print(f"WARNING: {type(tracker).__name__} gets no more numbers of this run ({type(error).__name__}: {error}); "
              "metrics.jsonl has them all", file=sys.stderr)

  def close(self) -> None:
    """Ends all."""
    self._each("close")


@contextlib.contextmanager
def opened(names: Sequence[str], workdir: pathlib.Path, config: ConfigDict, run: str) -> Iterator[Trackers]:
  """The trackers called `names`, as `check` returns them, which are closed at the end.

  Args:
    names: of trackers; none of them for all processes of a run but the first.
    workdir: of the run.
    config: of the run.
    run: its random name.

  Raises:
    ConfigError: a service that cannot be reached.
  """
  made = []
  for name in names:
    try:
      made.append(TensorBoard(workdir) if name == "tensorboard" else Wandb(workdir, config, run))
    except Exception as error:
      raise ConfigError(f"--log={name}: {' '.join(str(error).split())[:200]}; leave it out, or give WANDB_MODE=offline "
                        "in the environment") from error
  trackers = Trackers(made)
  try:
    yield trackers
  finally:
    trackers.close()
