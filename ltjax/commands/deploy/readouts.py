"""The readout that a user asks for: a post-hoc method, a temperature from held-out images, a prior of the classes."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from ltjax import posthoc
from ltjax.commands import evaluate
from ltjax.errors import ConfigError, WorkdirError, nearest, writing
from ltjax.report import readout
from ltjax.report.readout import Readout
from ltjax.workdir import manifest
from ltjax.workdir.log import write_durably

CALIBRATION, METHODS = "calibration.json", "posthoc.json"  # in the work folder


def make(workdir: pathlib.Path, stage, variables: dict, *, prior: str = "", calibrated: bool = False,
         method: str = "") -> Readout:
  """The readout of a finished run's last stage.

  Args:
    workdir: of the run; a temperature that is fitted for the first time is written there.
    stage: its last stage.
    variables: {"params", "batch_stats"} of the stage.
    prior: see `evaluate.target_prior`; "" for the one that the model assumes.
    calibrated: whether the logits are divided by a temperature.
    method: a post-hoc method that `ltjax posthoc` has run; "" for none.

  Raises:
    ConfigError: no such method or prior, no held-out images, or a prior for a method that assumes none.
  """
  if method:
    scale = readout.logit_scale(stage) if method == "logit_adjustment" else 1.0
    entry = stored(workdir, stage, variables, method)
    found, assumed = Readout(scale, method=_function(entry, stage, variables)), None
  else:
    found, assumed = readout.of_stage(stage), readout.assumed_prior(stage)
  if prior and assumed is None:
    raise ConfigError(f"--prior: what {method} assumes of the classes is not known; leave out --posthoc or --prior")
  if calibrated:
    found = found._replace(temperature=temperature(workdir, stage, variables, found, assumed, method)["temperature"])
  if prior:
    found = found._replace(shift=readout.shift(assumed, evaluate.target_prior(prior, stage)))
  return found


def temperature(workdir: pathlib.Path, stage, variables: dict, found: Readout, assumed: np.ndarray | None,
                method: str) -> dict:
  """The entry of `method` in the work folder's calibration.json, fitted where there is none of these parameters.

  The probabilities are made right for held-out images, whose classes are as frequent as in training; this correction of
  the prior is part of the fit and not of its result.
  """
  path, weights = workdir / CALIBRATION, manifest.fingerprint(jax.device_get(variables))
  known = _read(path, dict)
  if known.get(method, {}).get("weights_sha256") == weights:
    return known[method]
  if not evaluate.results(workdir)["data"]["held_out_images"]:
    raise ConfigError(f"--calibrated: {workdir} holds out no images that a temperature could be fitted on; train with "
                      "--config.dataset.holdout=0.1")
  images, labels = evaluate.own_split(workdir, "held_out", stage.dataset.class_names)
  outputs = stage.extractor(variables)(images, "features", "logits")
  logits = outputs["logits"] if found.method is None else found.method(outputs["features"], outputs["logits"])
  shift = None if assumed is None else readout.shift(assumed, np.asarray(stage.class_counts, float))
  value, before, after = readout.temperature(found.scale * np.asarray(logits), labels, shift)
  entry = dict(temperature=value, images=len(labels), negative_log_likelihood=dict(before=before, after=after),
               weights_sha256=weights)
  with writing(path):
    write_durably(path, json.dumps(known | {method: entry}, indent=1) + "\n")
  return entry


# -- post-hoc methods -------------------------------------------------------------------------------------------------


def store(workdir: pathlib.Path, entries: list[dict], variables: dict) -> None:
  """Adds the results of methods to the work folder's posthoc.json, in the place of those of the same name."""
  path, weights = workdir / METHODS, manifest.fingerprint(jax.device_get(variables))
  known = {entry["name"]: entry for entry in _read(path, list)}
  known |= {entry["name"]: entry | dict(weights_sha256=weights) for entry in entries}
  with writing(path):
    write_durably(path, json.dumps(list(known.values()), indent=1) + "\n")


def stored(workdir: pathlib.Path, stage, variables: dict, method: str) -> dict:
  """The result of a post-hoc method of the last stage.

  Raises:
    ConfigError: `ltjax posthoc` has not run it, or the model has been trained on since.
  """
  entries = {entry["name"]: entry for entry in _read(workdir / METHODS, list) if entry["stage"] == stage.name}
  if method not in entries:
    raise ConfigError(f"--posthoc: {workdir} has no results of {method!r}{nearest(method, entries)}; there are "
                      f"{', '.join(entries) or 'none'}; `python -m ltjax posthoc {workdir}` makes them")
  if entries[method]["weights_sha256"] != manifest.fingerprint(jax.device_get(variables)):
    raise ConfigError(f"--posthoc: the results of {method} in {workdir} are of another model; run `python -m ltjax "
                      f"posthoc {workdir}` again")
  return entries[method]


def _function(entry: dict, stage, variables: dict):
  """(features [b d], logits [b c]) -> logits [b c] of a stored method."""
  given = entry["hyper_parameters"]
  if entry["name"] == "nearest_class_mean":
    return functools.partial(_nearest, means=np.float32(entry["means"]), given=given)
  kernel = jax.device_get(variables["params"].get("head", {}).get("kernel"))

  def method(features, logits):
    outputs = dict(features=jnp.asarray(features), logits=jnp.asarray(logits))
    return posthoc.method_logits(entry["name"], given, lambda of, key: outputs[key], kernel, None,
                                 stage.class_counts)

  return method


def _nearest(features, logits, *, means, given):
  del logits
  return posthoc.nearest_mean_logits(jnp.asarray(features), means, **given)


def _read(path: pathlib.Path, kind: type):
  """The JSON in a file of the work folder; an empty one where there is no file."""
  try:
    found = json.loads(path.read_text()) if path.exists() else kind()
    if not isinstance(found, kind):
      raise ValueError(f"expected a {kind.__name__}")
  except (OSError, ValueError) as error:
    raise WorkdirError(f"{path} cannot be read ({error}); remove it") from error
  return found
