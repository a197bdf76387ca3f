"""The tf.data path: batches of a given order of examples, read, decoded and cut on the host ahead of the device.

What is random about a crop is drawn from (seed, stage, step, place), all else is the device's, as on the resident path.
"""

import functools
import threading
from collections.abc import Callable
from concurrent import futures
from typing import NamedTuple

import numpy as np

from ltjax.augment import crops
from ltjax.data import decode, prng, quiet
from ltjax.data.files import Files
from ltjax.errors import DataError

READERS = 32  # reads in flight: a bucket answers slowly, but many at a time
_AHEAD = 2  # batches
_LARGE = 2**18  # pixels of a box that are not held for all images of a batch


class Geometry(NamedTuple):
  """How images of known sizes become squares: the part that is decoded, and where in it the square lies.

  A pixel of the square at p is one of the box at (p + corner) / scale. Boxes are (top, left, height, width).
  """

  boxes: np.ndarray  # int32 [b 4]
  scales: np.ndarray  # float32 [b 2]
  corners: np.ndarray  # float32 [b 2]


class RandomCrops:
  """The random-resized crops of a stage's batches, each a function of (seed, stage, step, place in the batch)."""

  exact = False

  def __init__(self, size: int, seed: int, stage: str, places: int, boxes: Callable = crops.random_resized,
               steps: int = 0):
    """`places` are the images of a global batch; `boxes` draws where each is cut, with `steps` by the progress too."""
    self.size, self._places, self._boxes, self._steps = size, places, boxes, steps
    # An image that is cut on its own asks for the numbers of its batch again.
    self._draws = functools.lru_cache(4)(functools.partial(
        prng.host_uniform, seed, stage, "crop", size=places * crops.DRAWS))

  def __call__(self, step: int, rows: np.ndarray, sizes: np.ndarray) -> Geometry:
    """The crops of images of `sizes` [b 2] at places `rows` of batch `step`."""
    progress = dict(progress=step / max(self._steps - 1, 1)) if self._steps else {}
    boxes = self._boxes(sizes, self._draws(counter=step).reshape(self._places, -1)[rows], **progress)
    return Geometry(boxes.astype(np.int32), np.float32(self.size / boxes[:, 2:]), np.zeros((len(boxes), 2), np.float32))


class CentralCrops:
  """The crops of test images."""

  exact = True

  def __init__(self, size: int):
    self.size = size

  def __call__(self, step: int, rows: np.ndarray, sizes: np.ndarray) -> Geometry:
    """The crops of images of `sizes` [b 2]."""
    del step
    scales, corners = self._squares(rows, sizes)
    whole = np.concatenate((np.zeros_like(sizes), sizes), axis=1)
    return Geometry(whole.astype(np.int32), np.float32(scales), np.float32(corners))

  def _squares(self, rows, sizes):
    del rows
    return crops.central(sizes, self.size)


class FiveCrops(CentralCrops):
  """Five crops of each test image, for a batch of which each row has the same image five times."""

  def _squares(self, rows, sizes):
    return crops.five(sizes, self.size, rows % len(crops.CORNERS))


def tensorflow():
  """The module, kept from the accelerator; raises a `DataError` where there is none."""
  try:
    return quiet.tensorflow()
  except ImportError as error:
    raise DataError(f"dataset.pipeline: 'tf_data' needs TensorFlow, which could not be imported ({error}); install it, "
                    "or keep arrays resident with --config.dataset.pipeline=resident") from error


class Pipeline:
  """Batches of images and labels in a given order: `batch(step)` for any step, fast for one step after the other."""

  def __init__(self, images: np.ndarray | Files, labels: np.ndarray, order: Callable[[int], np.ndarray], steps: int, *,
               crop: RandomCrops | CentralCrops | None = None, rows: slice = slice(None), threads: int = 0,
               interpolation: str = "bilinear"):
    """Reads nothing yet.

    Args:
      images: uint8 [n h w c], which are batched as they are, or `Files`, which are cut by `crop`.
      labels: [n].
      order: step -> the indices of its global batch, [b] or, for several streams, [b k].
      steps: how many there are.
      crop: which part of each image is taken.
      rows: the part of a global batch that is this process's.
      threads: that decode; one a core where 0.
      interpolation: "bilinear" or "bicubic", with which the crops are resized.
    """
    arrays = isinstance(images, np.ndarray | decode.Images)
    self._images = images if arrays else decode.Images(images, decode.BadImages())
    self._labels, self._order, self._steps, self._crop, self._rows = labels.astype(np.int32), order, steps, crop, rows
    self.size = len(labels)
    self._threads, self._bicubic = threads or decode.cores(), interpolation == "bicubic"
    self._readers = futures.ThreadPoolExecutor(READERS, "reader")
    self._lock = threading.Lock()  # an order keeps what it last drew, and the reading of left batches may still run
    self._datasets, self._iterator, self._next = {}, None, -1

  def batch(self, step: int) -> dict[str, np.ndarray]:
    """{"images": uint8 [b s s 3], "labels": int32 [b]}, [b k ...] for k streams: this process's rows of batch `step`.

    Raises:
      DataError: an image cannot be decoded, and bad images are not replaced, or there are too many.
    """
    tf = tensorflow()
    while True:
      if self._next != step:
        if step not in self._datasets:  # an evaluation always starts at 0
          self._datasets = {step: self._dataset(tf, step)}
        self._iterator, self._next = self._datasets[step].as_numpy_iterator(), step
      try:
        images, labels = next(self._iterator)
      except tf.errors.OpError as error:
        self._next = -1
        self._leave_to_pillow(step, error)
        continue
      if isinstance(self._images, decode.Images):
        self._images.check()
      self._next += 1
      return dict(images=images, labels=labels)

  def _indices(self, step: int) -> tuple[np.ndarray, np.ndarray]:
    """This process's examples of batch `step`, and their places in the whole batch, [b] or [b k]."""
    with self._lock:
      indices = self._order(step)
    return indices[self._rows], np.arange(indices.size).reshape(indices.shape)[self._rows]

  def _dataset(self, tf, first: int):
    """The `tf.data.Dataset` of (images, labels) of the batches from `first`."""
    options = tf.data.Options()
    options.deterministic, options.autotune.enabled = True, False
    options.threading.private_threadpool_size, options.threading.max_intra_op_parallelism = self._threads, 1
    steps = tf.data.Dataset.range(first, self._steps).with_options(options)
    if self._crop is None:
      return steps.map(lambda step: tf.numpy_function(self._gather, [step], (tf.uint8, tf.int32))).prefetch(_AHEAD)
    shape = self._indices(first)[0].shape

    def read(step):
      kinds = dict(data=tf.string, jpeg=tf.bool, box=tf.int32, scale=tf.float32, corner=tf.float32, label=tf.int32)
      parts = tf.numpy_function(self._read, [step], tuple(kinds.values()))
      return {key: tf.ensure_shape(part, (np.prod(shape), *_SHAPES.get(key, ())))
              for key, part in zip(kinds, parts, strict=True)}

    def cut(image):
      return _cut(tf, image, self._crop.size, self._resized), image["label"]

    def regroup(images, labels):
      return tf.reshape(images, (*shape, *images.shape[1:])), tf.reshape(labels, shape)

    images = steps.map(read).prefetch(_AHEAD).unbatch().map(cut, num_parallel_calls=self._threads)
    batches = images.batch(np.prod(shape), drop_remainder=True)
    return (batches if len(shape) == 1 else batches.map(regroup)).prefetch(_AHEAD)

  def _gather(self, step: int):
    indices, _ = self._indices(step)
    return self._images[indices], self._labels[indices]

  def _read(self, step: int):
    """What the graph needs of every image of batch `step`: a JPEG, of which it decodes the box, or the pixels of one.
    """
    indices, places = (array.ravel() for array in self._indices(step))

    def opened(part):
      return [self._images.open(index, functools.partial(self._part, step, place)) for index, place in part.T]

    parts = np.array_split(np.stack((indices, places)), min(READERS, len(indices)), axis=1)
    images = [image for part in self._readers.map(opened, parts) for image in part]
    sizes = np.array([(image.height, image.width) for image in images])
    boxes, scales, corners = self._crop(step, places, sizes)
    data = np.empty(len(images), object)
    for number, image in enumerate(images):
      if image.jpeg:
        data[number] = image.jpeg
      else:
        part, boxes[number], scales[number], corners[number] = image.pixels
        data[number] = part.tobytes()
    return data, np.array([image.jpeg is not None for image in images]), boxes, scales, corners, self._labels[indices]

  def _part(self, step: int, place: int, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
    """What a batch holds of one image at `place` of batch `step`: pixels, and their box, scale and corner.

    These are the pixels of the image's box, or of the square already where the box is large.
    """
    box, scale, corner = (part[0] for part in self._crop(step, np.array([place]), np.array([pixels.shape[:2]])))
    (top, left, height, width), size = box, self._crop.size
    part = pixels[top : top + height, left : left + width]
    if height * width > max(_LARGE, size * size):
      part = self._resized(tensorflow(), part[None], box, scale, corner, size).numpy()
      return part, np.array([0, 0, size, size], np.int32), np.ones(2, np.float32), np.zeros(2, np.float32)
    return part, box, scale, corner

  def _resized(self, tf, pixels, box, scale, corner, size: int):
    """uint8 [size size 3] of the pixels of a box, [1 h w 3]."""
    if self._bicubic:
      return _bicubic(tf, pixels, scale, corner, size)
    return _bilinear(tf, pixels, box, scale, corner, size, self._crop.exact)

  def _leave_to_pillow(self, step: int, error: Exception) -> None:
    """After TensorFlow has failed on batch `step`: the JPEGs that it cannot decode are Pillow's from now on."""
    tf = tensorflow()
    failed = set()
    for index in self._indices(step)[0].ravel().tolist():
      try:
        jpeg = self._images.open(index).jpeg
        if jpeg:
          tf.io.decode_jpeg(jpeg, channels=3)
      except tf.errors.OpError:
        failed.add(index)
    if not failed:
      raise DataError(f"batch {step} could not be read: {str(error)[:300]}") from error
    self._images.by_pillow |= failed


_SHAPES = dict(box=(4,), scale=(2,), corner=(2,))


def _cut(tf, image, size: int, resized):
  """uint8 [size size 3]: the box of an image, resized; a square is resized to itself."""
  box = image["box"]
  pixels = tf.cond(
      image["jpeg"],
      lambda: tf.io.decode_and_crop_jpeg(image["data"], box, channels=3, dct_method="INTEGER_ACCURATE"),
      lambda: tf.reshape(tf.io.decode_raw(image["data"], tf.uint8), tf.concat((box[2:], [3]), axis=0)))
  square = resized(tf, pixels[None], box, image["scale"], image["corner"], size)
  return tf.ensure_shape(square, (size, size, 3))


def _bicubic(tf, pixels, scale, corner, size: int):
  """uint8 [size size 3] of [1 h w 3], as Pillow computes it: rows first, with whole pixels in between."""
  kept = tf.concat(([1.0], scale[1:]), axis=0), tf.concat(([0.0], -corner[1:]), axis=0)
  rest = tf.concat((scale[:1], [1.0]), axis=0), tf.concat((-corner[:1], [0.0]), axis=0)
  for (factors, translation), sides in ((kept, (tf.shape(pixels)[1], size)), (rest, (size, size))):
    moved = tf.raw_ops.ScaleAndTranslate(images=pixels, size=tf.stack(sides), scale=factors, translation=translation,
                                         kernel_type="keyscubic", antialias=True)
    pixels = tf.cast(tf.clip_by_value(moved + 0.5, 0, 255), tf.uint8)
  return pixels[0]


def _bilinear(tf, pixels, box, scale, corner, size: int, exact: bool):
  """uint8 [size size 3] of the pixels of a box, [1 h w 3].

  Exactly: as Pillow does, with a triangle that is widened where the image shrinks. For training, where that would take
  longer than the rest: linearly where the image grows, which is the same, and by area where it shrinks.
  """
  def by_area():
    return tf.raw_ops.ResizeArea(images=pixels, size=tf.minimum(box[2:], size))

  def linearly(pixels):
    # It takes uint8 too, but converts each pixel whenever it meets it.
    return tf.raw_ops.ResizeBilinear(images=tf.cast(pixels, tf.float32), size=[size, size], half_pixel_centers=True)

  if exact:
    resized = tf.raw_ops.ScaleAndTranslate(images=pixels, size=[size, size], scale=scale, translation=-corner,
                                           kernel_type="triangle", antialias=True)
  else:
    shrinks, grows = tf.reduce_any(box[2:] > size), tf.reduce_any(box[2:] < size)
    resized = tf.switch_case(tf.cast(shrinks, tf.int32) * (1 + tf.cast(grows, tf.int32)), (
        lambda: linearly(pixels), by_area, lambda: linearly(by_area())))
  return tf.cast(resized[0] + 0.5, tf.uint8)
