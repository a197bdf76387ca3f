"""Computes the features of a data set's images once and writes them to a file, which `features` reads.

Nothing holds all of them: each batch goes to `FILE.partial` as it comes, and `FILE.partial.json` counts the images that
are safely there, so that a computation that was stopped goes on.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import math
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from ltjax.data import evaluate, features, feed, prng, sources
from ltjax.distributed import processes, sharding
from ltjax.errors import DataError, WorkdirError, writing
from ltjax.workdir import durable, manifest, safetensors

_SOFTWARE = ("ltjax", "jax", "jaxlib", "flax", "numpy")
_BATCH = 64
_SYNC = 5.0  # seconds between two times that the file is made safe
_SAY = 30.0  # seconds between two lines where there is no bar


def describe(stage, variables: dict, *, views: int = 0, float16: bool = False, maps: bool = False,
             file_sha256: str = "") -> dict:
  """The manifest of a file of features: everything that they depend on, as JSON's values.

  Args:
    stage: a `stage.Stage`, which has the images, their preparation and the network.
    variables: {"params", "batch_stats"} of its network.
    views: augmented views of each training image.
    float16: whether the features are rounded to it.
    maps: whether these are the feature maps before pooling.
    file_sha256: of the file of weights that the backbone comes from; "" for another origin.
  """
  backbone, dataset, cut = stage.spec.backbone, stage.dataset, stage.augmentation
  own = {kind: tree.get("backbone", {}) for kind, tree in jax.device_get(variables).items()}
  found = dict(
      class_names=list(dataset.class_names), data_fingerprint=dataset.fingerprint,
      weights_sha256=manifest.fingerprint(own), file_sha256=file_sha256,
      backbone=_block(backbone), precision=np.dtype(stage.spec.dtype).name,
      preprocessing=dict(size=cut.size, mean=list(map(float, dataset.mean)), std=list(map(float, dataset.std)),
                         crop="center", interpolation=cut.interpolation, background=dataset.background),
      views=views, augmentation=[_block(call) for call in stage.spec.augment] if views else [],
      seed=stage.settings.seed if views else None, maps=maps, dtype="float16" if float16 else "float32",
      software=dict(python=platform.python_version()) | {name: _version(name) for name in _SOFTWARE},
      device=jax.devices()[0].device_kind)
  return json.loads(json.dumps(found))


def _block(call) -> dict:
  """A bound block as text: the name of the part and its options."""
  return dict(name=call.name, **{key: value if isinstance(value, bool | int | float | str) else repr(value)
                                 for key, value in call.constants.items()})


def _version(name: str) -> str:
  try:
    return metadata.version(name)
  except metadata.PackageNotFoundError:  # it runs from a checkout
    return sys.modules[name].__version__


# -- the computation --------------------------------------------------------------------------------------------------


class _Job(NamedTuple):
  """Images that are run through the network one after the other, and where their features go."""

  tensor: str
  first: int  # row in the tensor
  count: int
  run: Callable[[int], Iterator[tuple[jax.Array, np.ndarray]]]  # first image -> (features, which count) of batches


def extract(stage, variables: dict, path: pathlib.Path, made_by: Mapping,
            stops: Callable[[jax.Array], bool] = lambda after: False) -> bool:
  """Writes the file of features that `made_by` describes; all processes call it and share the work.

  Args:
    stage: a `stage.Stage`.
    variables: {"params", "batch_stats"} of its network.
    path: the file.
    made_by: of `describe`, for the same stage and variables.
    stops: whether to stop, asked after each batch.

  Returns:
    Whether the file is complete; otherwise the next call goes on where this one was stopped.

  Raises:
    DataError: an image cannot be decoded, or a feature is not finite.
    WorkdirError: another process is writing the file.
    SaveError: it cannot be written.
  """
  batch_size, variables = _batch_size(stage), sharding.replicate(jax.device_get(variables), stage.mesh)
  jobs = _jobs(stage, variables, made_by["views"], made_by["maps"], batch_size)
  total, kind = sum(job.count for job in jobs), np.dtype(made_by["dtype"])
  writer = _Writer(path, _arrays(stage, variables, made_by), made_by, batch_size)
  with writing(path), writer, tqdm(total=total, unit="img", desc="features", dynamic_ncols=True,
                                   disable=None if processes.is_first() else True) as bar:
    done = processes.from_first(writer.open)
    bar.update(done)
    said = time.monotonic()
    start = 0  # of the job among all images
    for job in jobs:
      place = max(done - start, 0)
      for found, valid in job.run(place) if place < job.count else ():
        processes.report_progress(f"features {done}")
        rows = _rounded(np.asarray(jax.device_get(found))[valid], kind, job.first + place)
        writer.write(job.tensor, job.first + place, rows)
        place, done = place + len(rows), done + len(rows)
        writer.sync(done, now=done == total)
        bar.update(len(rows))
        if bar.disable and processes.is_first() and time.monotonic() - said > _SAY:  # a file or a pipe: a bar fills it
          said = time.monotonic()
          print(f"features: {done:,} of {total:,} images", file=sys.stderr, flush=True)
        if stops(found) and done < total:
          writer.sync(done, now=True)
          return False
      start += job.count
    processes.from_first(writer.finish)
  return True


def _batch_size(stage) -> int:
  """The images of a batch: as few as every device can hold, as the augmentation of an image depends on its batch."""
  devices = stage.mesh.devices.size
  return math.ceil(min(_BATCH, stage.settings.eval_batch_size) / devices) * devices


def _jobs(stage, variables, views: int, maps: bool, batch_size: int) -> list[_Job]:
  dataset, extractor = stage.dataset, stage.extractor(variables, batch_size, one_view=True)
  what, jobs, row = "maps" if maps else "features", [], 0
  for split in dataset.splits:
    images, labels = getattr(dataset, split)

    def plain(first, images=images):
      for found, valid in extractor.stream(images, np.arange(first, len(images)), maps=maps):
        yield found[what], valid

    jobs.append(_Job("features", row, len(labels), plain))
    row += len(labels)
  count = len(dataset.train[1])
  augmented = _augmented(stage, variables, batch_size, maps) if views else None
  return jobs + [_Job("views", view * count, count, functools.partial(augmented, view)) for view in range(views)]


class _InOrder(NamedTuple):
  """The training images one after the other, in the place of an `order.Order`."""

  size: int
  batch_size: int

  @property
  def steps(self) -> int:
    return math.ceil(self.size / self.batch_size)

  def batch(self, step: int) -> np.ndarray:
    return evaluate.in_order(self.size, self.batch_size, step)


def _augmented(stage, variables, batch_size: int, maps: bool) -> Callable:
  """(view, first image) -> batches of features of augmented training images: a function of the seed and the view."""
  dataset, order = stage.dataset, _InOrder(len(stage.dataset.train[1]), batch_size)
  augmentation, mesh, seed = stage.augmentation, stage.mesh, stage.settings.seed
  read = feed.reader(stage.streamed)

  @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
  def forward(variables, data, batch, key):
    images, labels = read(data, batch)
    images, _ = augmentation.apply(images, key, labels, data["mean"], data["std"])
    return evaluate.outputs(stage.model, variables, images, maps)["maps" if maps else "features"]

  def run(view: int, first: int) -> Iterator:
    name = f"view {view + 1}"
    images = feed.make(dataset, order, augmentation, mesh, streamed=stage.streamed, seed=seed, stage=name)
    data, key = sharding.replicate(feed.constants(dataset, stage.streamed), mesh), prng.stream(seed, name)
    for step in range(first // batch_size, order.steps):
      batch = sharding.place(images(step), mesh)
      valid = step * batch_size + np.arange(batch_size) < order.size
      yield forward(variables, data, batch, jax.random.fold_in(key, step)), valid

  return run


def _arrays(stage, variables: dict, made_by: Mapping) -> dict[str, np.ndarray | tuple]:
  """The arrays of the file by name; (type, shape) of those that are still to be computed."""
  dataset, maps = stage.dataset, made_by["maps"]
  labels = [getattr(dataset, split)[1] for split in dataset.splits]
  numbers = [np.full(len(part), features.SPLITS.index(split), np.uint8)
             for split, part in zip(dataset.splits, labels, strict=True)]
  image = jax.ShapeDtypeStruct(stage.image_shape, np.float32)
  one = jax.eval_shape(lambda given, image: evaluate.outputs(stage.model, given, image, maps), variables, image)
  shape, kind = one["maps" if maps else "features"].shape[1:], np.dtype(made_by["dtype"])
  found = dict(labels=np.concatenate(labels).astype(np.int64), selected=np.asarray(dataset.selected, np.int64),
               features=(kind, (sum(map(len, labels)), *shape)))
  if made_by["views"]:
    found["views"] = kind, (made_by["views"], len(dataset.train[1]), *shape)
  return found | dict(split=np.concatenate(numbers))  # the smallest type last: all others then lie at their multiples


def _rounded(rows: np.ndarray, kind: np.dtype, first: int) -> np.ndarray:
  """`rows` as `kind`; raises where one is not finite, of which `first` numbers the first."""
  with np.errstate(over="ignore"):
    rows = rows.astype(kind)
  bad = np.flatnonzero(~np.isfinite(rows).reshape(len(rows), -1).all(axis=1))
  if bad.size:
    raise DataError(f"features: those of image {first + bad[0]} are not finite in {kind.name}; "
                    + ("write them without --float16" if kind == np.float16 else "the weights of the backbone may be "
                       "damaged, or are of another network"))
  return rows


# -- the file ---------------------------------------------------------------------------------------------------------


class _Writer:
  """The file while it is being written; process 0 alone touches it."""

  def __init__(self, path: pathlib.Path, arrays: Mapping[str, Any], made_by: Mapping, batch_size: int):
    self._path, self._arrays, self._batch_size = path, arrays, batch_size
    self._partial = path.with_name(path.name + durable.PARTIAL)
    self._progress = path.with_name(self._partial.name + ".json")
    self._text = json.dumps(made_by)
    shapes = {name: (array.dtype, array.shape) if isinstance(array, np.ndarray) else array
              for name, array in arrays.items()}
    self._header, self._starts = safetensors.header(shapes, {features.MANIFEST: self._text,
                                                             features.DIGEST: _NO_DIGEST})
    self._rows = {name: math.prod(shape[1:]) * np.dtype(kind).itemsize for name, (kind, shape) in shapes.items()}
    if "views" in shapes:  # [views images ...]: its rows are those of all views, one view after the other
      kind, shape = shapes["views"]
      self._rows["views"] = math.prod(shape[2:]) * np.dtype(kind).itemsize
    self._file, self._synced, self._opened = None, time.monotonic(), contextlib.ExitStack()

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self._opened.close()

  def open(self) -> int:
    """Opens the file where it was left, or makes it; the number of images that are done."""
    durable.make_folder(self._path.parent)
    self._file = self._opened.enter_context(open(self._partial, "r+b" if self._partial.exists() else "w+b"))  # noqa: SIM115
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      raise WorkdirError(f"{self._partial} is being written by another process; wait for it, or stop it") from error
    done = self._done()
    if not done:
      self._file.truncate(0)
      self._file.write(self._header)
      for name, array in self._arrays.items():
        if isinstance(array, np.ndarray):
          self._file.seek(self._starts[name])
          self._file.write(np.ascontiguousarray(array).tobytes())
    return done

  def _id(self) -> dict:
    return dict(header_sha256=hashlib.sha256(self._header).hexdigest(), batch_size=self._batch_size)

  def _done(self) -> int:
    try:
      found = json.loads(self._progress.read_text())
      done = found.pop("done")
      return int(done) if found == self._id() else 0
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
      return 0

  def write(self, name: str, row: int, rows: np.ndarray) -> None:
    """Writes rows of an array, from row `row` on."""
    if self._file:
      self._file.seek(self._starts[name] + row * self._rows[name])
      self._file.write(rows.tobytes())

  def sync(self, done: int, now: bool) -> None:
    """From time to time, or `now`: makes what was written safe, and writes down how much that is."""
    if self._file and (now or time.monotonic() - self._synced > _SYNC):
      self._file.flush()
      os.fsync(self._file.fileno())
      durable.write_durably(self._progress, json.dumps(self._id() | dict(done=done)))
      self._synced = time.monotonic()

  def finish(self) -> None:
    """Seals the file with its digest and gives it its name."""
    self._file.flush()
    digest = safetensors.content_sha256(self._partial, len(self._header), self._text.encode())
    self._file.seek(self._header.index(_NO_DIGEST.encode()))
    self._file.write(digest.encode())
    self._file.flush()
    os.fsync(self._file.fileno())
    self._partial.replace(self._path)
    durable.sync(self._path.parent)
    self._progress.unlink(missing_ok=True)


_NO_DIGEST = "0" * 64  # until the end


# -- a run's own features ---------------------------------------------------------------------------------------------


def cached(stage, variables: dict, folder: pathlib.Path, stops: Callable[[jax.Array], bool]) -> sources.Dataset | None:
  """The features of a stage's images, from a file in `folder` or computed; None where `stops` was true before the end.

  The file's name is the hash of its manifest, so a file is used only if the same weights made it of the same images, in
  the same way and with the same software; and its own hash must be right.
  """
  made_by = describe(stage, variables)
  path = folder / f"{hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:16]}.safetensors"

  def read() -> dict[str, np.ndarray] | None:
    if not path.exists():
      return None
    try:
      tensors, found = features.load(path)
    except DataError as error:
      print(f"WARNING: {error}; computing these features again", file=sys.stderr)
      return None
    return tensors if found == made_by else None

  tensors = processes.from_first(read)
  if tensors is None:
    if not extract(stage, variables, path, made_by, stops):
      return None
    tensors = processes.from_first(read)
  return features.dataset(tensors, made_by)
