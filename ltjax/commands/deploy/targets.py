"""The formats that a model is written in. Each is read again by its own runtime, which knows nothing of ltjax."""

import contextlib
import importlib.util
import io
import json
import logging
import pathlib
import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from ltjax.commands.deploy.model import Model
from ltjax.data import quiet
from ltjax.errors import ConfigError

CLASSES, INPUT, OUTPUT = "classes.json", "images", "probabilities"
PLATFORMS = ("cpu", "cuda", "tpu")  # one file runs on all of them


class Target(NamedTuple):
  """A format.

  Attributes:
    file: what is written, below the folder of the export.
    write: writes a model to a folder.
    load: reads it from a folder with the format's own runtime: uint8 images [b h w c] -> probabilities [b classes].
    needs: (module, package) pairs that must be there.
  """

  file: str
  write: Callable[[Model, pathlib.Path], None]
  load: Callable[[pathlib.Path], Callable[[np.ndarray], np.ndarray]]
  needs: tuple[tuple[str, str], ...] = ()


@contextlib.contextmanager
def _quietly():
  """Around converters, which greet, warn and print what a user of ltjax can do nothing about."""
  before = logging.root.manager.disable
  logging.disable(max(before, logging.WARNING))
  try:
    with (warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()),
          quiet.no_greetings()):
      yield
  finally:
    logging.disable(before)


@contextlib.contextmanager
def _converting(target: str):
  """Around a converter or its runtime, which raise errors of any class for what they do not know."""
  try:
    with _quietly():
      yield
  except Exception as error:
    reason = " ".join(str(error).split())[:300]
    raise ConfigError(f"--to={target}: its converter cannot express this model ({type(error).__name__}: {reason}); "
                      "--to=stablehlo and --to=savedmodel take every model") from error


def _check(target: str) -> None:
  """Raises where a package is missing that a target needs."""
  missing = [package for module, package in TARGETS[target].needs if importlib.util.find_spec(module) is None]
  if missing:
    raise ConfigError(f"--to={target} needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not "
                      f"installed: pip install {' '.join(repr(name) if '<' in name else name for name in missing)}")


def write(target: str, model: Model, folder: pathlib.Path) -> None:
  """Writes a model and its class names to a folder.

  Raises:
    ConfigError: a package is missing, or the converter cannot express the model.
  """
  _check(target)
  (folder / CLASSES).write_text(json.dumps(list(model.class_names), indent=1) + "\n", encoding="utf-8")
  with _converting(target):
    TARGETS[target].write(model, folder)


def load(target: str, folder: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
  """What a folder holds, as a function: uint8 images [b h w c] -> probabilities [b classes]."""
  _check(target)
  with _converting(target):
    return TARGETS[target].load(folder)


def _symbolic(model: Model) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct((*jax.export.symbolic_shape("batch"), *model.shape), np.uint8)


# -- StableHLO --------------------------------------------------------------------------------------------------------


def _write_stablehlo(model: Model, folder: pathlib.Path) -> None:
  def run(images):
    return model.run(model.variables, images)

  exported = jax.export.export(jax.jit(run), platforms=PLATFORMS)(_symbolic(model))
  (folder / TARGETS["stablehlo"].file).write_bytes(exported.serialize())


def _load_stablehlo(folder: pathlib.Path) -> Callable:
  exported = jax.export.deserialize(bytearray((folder / TARGETS["stablehlo"].file).read_bytes()))
  call = jax.jit(exported.call)
  return lambda images: np.asarray(call(images))


# -- TensorFlow -------------------------------------------------------------------------------------------------------


def _module(model: Model, batch: int | None = None):
  """The model as a `tf.Module` with a function `predict`; its parameters are variables, as a graph holds 2 GiB."""
  tf = quiet.tensorflow()
  from jax.experimental import jax2tf

  module = tf.Module()
  variables = jax.tree.map(tf.Variable, model.variables)
  module.parameters = jax.tree.leaves(variables)
  h, w, c = model.shape
  call = jax2tf.convert(model.run, polymorphic_shapes=[None, f"({batch or 'batch'}, {h}, {w}, {c})"],
                        with_gradient=False, native_serialization_platforms=PLATFORMS)
  module.predict = tf.function(lambda images: {OUTPUT: call(variables, images)}, autograph=False, input_signature=[
      tf.TensorSpec((batch, h, w, c), tf.uint8, name=INPUT)])
  return tf, module


def _write_savedmodel(model: Model, folder: pathlib.Path) -> None:
  tf, module = _module(model)
  module.class_names = tf.saved_model.Asset(str(folder / CLASSES))
  tf.saved_model.save(module, str(folder / TARGETS["savedmodel"].file), signatures=module.predict)


def _load_savedmodel(folder: pathlib.Path) -> Callable:
  tf = quiet.tensorflow()
  loaded = tf.saved_model.load(str(folder / TARGETS["savedmodel"].file))

  def call(images):
    try:
      return loaded.predict(tf.constant(images))[OUTPUT].numpy()
    except tf.errors.InvalidArgumentError as error:
      if "deserialize" not in str(error):
        raise
      raise ConfigError(f"--to=savedmodel: TensorFlow {tf.__version__} is too old to read what jax {jax.__version__} "
                        "writes; pip install 'jax<0.11', or take --to=stablehlo") from error

  return call


def _write_tflite(model: Model, folder: pathlib.Path) -> None:
  tf, module = _module(model, batch=1)

  # The converter knows no slice of a tensor whose batch dimension is free, so one image after the other is run.
  @tf.function(autograph=False, input_signature=[tf.TensorSpec((None, *model.shape), tf.uint8, name=INPUT)])
  def predict(images):
    return tf.map_fn(lambda image: module.predict(image[None])[OUTPUT][0], images, fn_output_signature=tf.TensorSpec(
        (len(model.class_names),), tf.float32))

  converter = tf.lite.TFLiteConverter.from_concrete_functions([predict.get_concrete_function()], module)
  (folder / TARGETS["tflite"].file).write_bytes(converter.convert())


def _load_tflite(folder: pathlib.Path) -> Callable:
  try:
    from ai_edge_litert.interpreter import Interpreter
  except ImportError:
    Interpreter = quiet.tensorflow().lite.Interpreter
  interpreter = Interpreter(str(folder / TARGETS["tflite"].file))
  (given,), (found,) = interpreter.get_input_details(), interpreter.get_output_details()
  interpreter.allocate_tensors()  # it greets when it does so for the first time

  def call(images):
    interpreter.resize_tensor_input(given["index"], images.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(given["index"], images)
    interpreter.invoke()
    return interpreter.get_tensor(found["index"])

  return call


# -- ONNX -------------------------------------------------------------------------------------------------------------


def _write_onnx(model: Model, folder: pathlib.Path) -> None:
  from jax2onnx import to_onnx

  def run(images):
    return model.run(model.variables, images)

  made = to_onnx(run, inputs=[jax.ShapeDtypeStruct(("batch", *model.shape), np.uint8)], input_names=[INPUT],
                 output_names=[OUTPUT], model_name="ltjax")
  entry = made.metadata_props.add()
  entry.key, entry.value = "class_names", json.dumps(list(model.class_names))
  (folder / TARGETS["onnx"].file).write_bytes(made.SerializeToString())


def _load_onnx(folder: pathlib.Path) -> Callable:
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.log_severity_level = 3  # it warns of every shape that it infers otherwise than the converter
  session = onnxruntime.InferenceSession(str(folder / TARGETS["onnx"].file), options)
  return lambda images: session.run([OUTPUT], {INPUT: images})[0]


TARGETS = dict(
    stablehlo=Target("model.stablehlo", _write_stablehlo, _load_stablehlo),
    savedmodel=Target("saved_model", _write_savedmodel, _load_savedmodel, (("tensorflow", "tensorflow"),)),
    tflite=Target("model.tflite", _write_tflite, _load_tflite, (("tensorflow", "tensorflow"),)),
    onnx=Target("model.onnx", _write_onnx, _load_onnx, (("jax2onnx", "jax2onnx<0.14"), ("onnxruntime", "onnxruntime"))))
