"""The run that faults are injected into: the two stages of GCL on digits, with a network of one convolution.

Its arguments: the epochs per stage, the epoch of the first stage at which its learning rate becomes infinite, and the
reaction to it.
"""

from configs import gcl_digits
from ltjax import recipes


def get_config(text="6"):
  given = recipes.arguments(text, epochs=6, breaks_at=0, on_nonfinite=("stop", "skip"), calls=1)
  config = gcl_digits.get_config()
  with config.unlocked():
    config.backbone = dict(name="tests.tiny:OneConv")
  config.dataset.imbalance = 5.0
  config.log_every_steps, config.eval_every_epochs, config.checkpoint_every_epochs = 3, 1, 1
  config.steps_per_call, config.on_nonfinite = given["calls"], given["on_nonfinite"]
  for stage in config.stages:
    config[stage].epochs, config[stage].batch_size = given["epochs"], 120  # of 1, 2 or 3 processes
  if given["breaks_at"]:
    with config.unlocked():
      config.representation.lr = dict(name="multi_step", base=0.1, at=(given["breaks_at"],), factors=(1e30,), warmup=0)
  return config
