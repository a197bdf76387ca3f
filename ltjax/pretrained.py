"""Where the first stage of a run starts: `config.pretrained`, a file of PyTorch's or the work folder of another run."""

import json
import pathlib

import flax.traverse_util
import jax.numpy as jnp

from ltjax.errors import WorkdirError
from ltjax.models import import_torch
from ltjax.workdir import manifest
from ltjax.workdir.checkpoint import Checkpoints


def into(variables: dict, config) -> dict:
  """`variables` of the first stage with what another training has learned, as `config.pretrained` says.

  Of a file of PyTorch's that is the backbone; of a work folder, all of its last stage's model, or with
  `config.reset_head` its backbone, which is how one fine-tunes for other classes.

  Args:
    variables: {"params", "batch_stats"}, arrays or shapes.
    config: the whole config.

  Raises:
    DataError: the file does not fit.
    WorkdirError: the folder is no run, or its model is another, whose arrays are listed.
  """
  path = pathlib.Path(config.pretrained)
  if not path.is_dir():
    return import_torch.into(variables, config.pretrained)
  stored = Checkpoints(_last_stage(path) / "checkpoints", read_only=True).stored_model()

  def taken(tree: dict) -> dict[str, str]:
    return {path: text for path, text in manifest.describe(tree).items()
            if not (config.reset_head and path.split("/")[1] == "head")}

  if different := manifest.differences(taken(variables), taken(stored)):
    raise WorkdirError(f"pretrained: the model of {path} does not fit the config's: {different}; "
                       "--config.reset_head=True draws the head anew, where that is all that differs")
  places = {tuple(path.split("/")) for path in taken(variables)}
  found = flax.traverse_util.flatten_dict(stored)
  flat = {place: jnp.asarray(found[place]) if place in places else leaf
          for place, leaf in flax.traverse_util.flatten_dict(variables).items()}
  return {kind: {} for kind in variables} | flax.traverse_util.unflatten_dict(flat)


def _last_stage(workdir: pathlib.Path) -> pathlib.Path:
  try:
    return workdir / json.loads((workdir / "config.json").read_text())["stages"][-1]
  except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
    raise WorkdirError(f"pretrained: {workdir} is not the work folder of a run ({type(error).__name__}: {error}); give "
                       "one, or a file of weights") from error
