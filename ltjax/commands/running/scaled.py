"""Runs of fewer epochs: every schedule that counts in epochs is shortened with its stage."""

from collections.abc import Mapping

from ml_collections import ConfigDict

_IN_EPOCHS = ("at", "warmup", "shorten")


def options(config: ConfigDict, scale: float) -> tuple[str, ...]:
  """The options that multiply the epochs of all stages by `scale`, and what is counted in epochs with them."""
  found = []
  for name in config.stages:
    stage = config[name].to_dict()
    epochs = max(1, round(stage["epochs"] * scale))
    found.append(f"--config.{name}.epochs={epochs}")
    for key, block in stage.items():
      changed = _changed(block, epochs / stage["epochs"])
      if changed != block:
        found.append(f"--config.{name}.{key}={changed!r}")
  if config.eval_every_epochs * scale < 1 and scale < 1:
    found.append("--config.checkpoint_every_epochs=1")
  return tuple(found)


def _changed(block, factor: float):
  if isinstance(block, Mapping):
    scheduled = block.get("name") in ("multi_step", "cosine", "linear", "sine", "rising_cosine", "parabolic", "switch")
    return {key: _times(value, factor) if scheduled and key in _IN_EPOCHS else _changed(value, factor)
            for key, value in block.items()}
  if isinstance(block, tuple | list):
    return tuple(_changed(entry, factor) for entry in block)
  return block


def _times(value, factor: float):
  return tuple(_times(entry, factor) for entry in value) if isinstance(value, tuple | list) else value * factor
