"""What images are before a network sees them: pretrained weights bring their own normalisation and interpolation."""

import json
import pathlib

from ltjax.errors import ConfigError
from ltjax.models import import_torch
from ltjax.models.import_names import NORMALIZATIONS


def resolve(spec, dataset) -> tuple:
  """`spec` and `dataset` with the interpolation, mean and standard deviation that the run uses.

  What the config leaves open comes from the weights that the run starts with: a file, as far as the names in it tell,
  or the results of another run. Without any, the statistics are the data set's and the interpolation is bilinear.

  Args:
    spec: a `config.spec.RunSpec`.
    dataset: a `data.sources.Dataset`.

  Raises:
    ConfigError: a normalisation of three channels for images with another number.
    DataError: no such file of weights, or one of an unknown network.
  """
  mean, std, interpolation = _of_weights(spec.pretrained) or (dataset.mean, dataset.std, "bilinear")
  if spec.normalization in NORMALIZATIONS:
    mean, std = NORMALIZATIONS[spec.normalization]
    if len(mean) != len(dataset.mean):
      raise ConfigError(f"normalization: {spec.normalization!r} has {len(mean)} channels, but the images have "
                        f"{len(dataset.mean)}; write normalization='dataset'")
  if spec.normalization == "dataset" or len(mean) != len(dataset.mean):
    mean, std = dataset.mean, dataset.std
  return (spec._replace(interpolation=spec.interpolation or interpolation),
          dataset._replace(mean=tuple(mean), std=tuple(std)))


def _of_weights(pretrained: str) -> tuple | None:
  """(mean, std, interpolation) that the weights were trained with; None where nothing tells."""
  source = pathlib.Path(pretrained).expanduser()
  if not pretrained:
    return None
  if not source.is_dir():
    return import_torch.preprocessing(pretrained)[:3]
  try:
    data = json.loads((source / "results.json").read_text())["data"]
    return data["mean"], data["std"], data.get("interpolation", "bilinear")
  except (OSError, ValueError, KeyError, TypeError):  # a run under way, or no run, which `bridge.pretrained` reports
    return None
