"""Which parts of a stage go together: what each of them gives and takes is known only from all of them."""

from collections.abc import Callable

from ml_collections import ConfigDict

from ltjax.config import bind as build
from ltjax.errors import ConfigError


def check(config: ConfigDict, name: str, objective: build.Objective) -> None:
  """Raises where the adjustment needs what the head does not give, or two batches meet what takes one."""
  (head, where), backbone, adjust = build.head(config, name), build.backbone(config), objective.adjust
  head_name, options = head.function.__name__, head.constants
  gives_cosines = head_name == "Cosine" or options.get("cosine", False)
  takes_norm_out = gives_cosines or head_name in ("CAMC", "TDE") or options.get("normalize_features", False)
  if adjust and "cosines" in adjust.arguments and not gives_cosines:
    raise ConfigError(f"{name}.adjust: {adjust.function.__name__} takes cosines, but the head {head_name!r} does not "
                      "give them; write head=dict(name='Cosine')")
  if adjust and adjust.function.__module__.endswith(".angular") and head_name != "Cosine":
    raise ConfigError(f"{name}.adjust: {adjust.function.__name__} works on the angle and needs cosines in [-1, 1], "
                      f"which the head {head_name!r} scales beyond; write head=dict(name='Cosine')")
  if adjust and "features" in adjust.arguments and takes_norm_out:
    raise ConfigError(f"{name}.adjust: {adjust.function.__name__} works on the norm of the features, which the head "
                      f"{head_name!r} takes out; write head=dict(name='Linear')")
  if objective.weights and objective.loss.function.__module__.endswith(".disentangling"):
    raise ConfigError(f"{name}.class_weights: {objective.loss.function.__name__} is the loss of a batch, which weights "
                      "that differ between its examples make no sense of; write class_weights=None")
  if (adjust and adjust.function.__name__ == "softmax_equalization"
      and objective.loss.function.__module__.endswith(".disentangling")):
    raise ConfigError(f"{name}.loss: {objective.loss.function.__name__} looks down the columns of the logits, "
                      "some of which softmax_equalization takes out at random; write loss=dict(name='cross_entropy'), "
                      "or adjust=None")
  if "num_prototypes" in head.arguments:
    _check_place(config, name, where, head_name)
  if objective.branches and options.get("crops"):
    raise ConfigError(f"{where}.crops: crops of {options['crops']} x {options['crops']} are taken of one batch, but "
                      f"{name} has branches; take one of them out")
  if objective.branches and backbone.function not in build.BRANCHED:
    raise ConfigError(f"{name}.branches: the backbone {backbone.function.__name__!r} takes one batch, not one for each "
                      f"branch; write backbone=dict(name={build.BRANCHED[0].__name__!r})")
  if objective.branches and config[name].mixup:
    raise ConfigError(f"{name}.mixup: branches are two batches already, which mixup would mix once more; "
                      "write mixup=0.0, or take branches out")
  groups, batch_size = backbone.constants.get("bn_groups", 1), config[name].batch_size
  if config[name].batch_norm != "eval" and batch_size % groups:
    raise ConfigError(f"backbone.bn_groups: {groups} does not divide {name}.batch_size={batch_size}; give a multiple")
  if objective.generation:
    _check_generation(config, name, head_name, objective.loss.function)


def _check_generation(config: ConfigDict, name: str, head_name: str, loss: Callable) -> None:
  """Raises where features are to be generated but nothing makes them, or what goes with them has no meaning."""
  if config.backbone.get("insert") is None:
    raise ConfigError(f"{name}.generation: nothing in the backbone makes features; write "
                      f"backbone=dict(name={config.backbone.name!r}, ..., insert=dict(name='AFA')), or generation=None")
  for key, meaning in dict(mixup="a mixed image has no class to generate for",
                           branches="features are generated from one batch, not two").items():
    if config[name][key]:
      raise ConfigError(f"{name}.{key}: {meaning}; take {key} or generation out")
  if config.backbone.get("bn_groups", 1) > 1:
    raise ConfigError("backbone.bn_groups: the statistics of groups cannot leave out rows that are not valid; write "
                      f"bn_groups=1, or {name}.generation=None")
  if head_name == "TDE":
    raise ConfigError(f"{name}.generation: the head 'TDE' would take rows that are not valid into its running mean; "
                      "use another head, or write generation=None")
  if loss.__module__.endswith(".disentangling"):
    raise ConfigError(f"{name}.loss: {loss.__name__} is of a whole batch, so rows that are not valid would count; "
                      "use another loss, or write generation=None")


def _check_place(config: ConfigDict, name: str, where: str, head_name: str) -> None:
  """Raises unless `name` is the last of several stages."""
  if name != config.stages[-1]:
    raise ConfigError(f"{where}: {head_name} belongs to the last stage, {config.stages[-1]!r}, but {name!r} has it; "
                      f"write --config.{config.stages[-1]}.head=..., and another head for {name!r}")
  if len(config.stages) == 1:
    raise ConfigError(f"{where}: {head_name} takes its prototypes from the stage before, but {name!r} is the only one "
                      f"of stages={tuple(config.stages)!r}; put one before it that learns the representation")
