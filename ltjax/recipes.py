"""What configs are written with: one function a data set, and `stage`. They return plain literals."""

from ml_collections import ConfigDict


def cifar_lt(*, classes: int, imbalance: float) -> ConfigDict:
  """CIFAR-10-LT or CIFAR-100-LT with ResNet-32, pad-4 crops and flips; `dataset.dir` empty means TFDS."""
  return _run(
      dataset=dict(name=f"cifar{classes}", dir="", imbalance=float(imbalance), profile="exponential", subset_seed=0),
      augment=dict(crop_padding=4, flip=True), backbone=dict(name="ResNetCIFAR", depth=32))


def digits_lt(*, imbalance: float) -> ConfigDict:
  """scikit-learn's digits with a residual network small enough for a laptop; digits are shifted, never mirrored."""
  config = _run(
      dataset=dict(name="digits", imbalance=float(imbalance), profile="exponential", subset_seed=0),
      augment=dict(crop_padding=1, flip=False), backbone=dict(name="ResNetCIFAR", depth=8))
  config.log_every_steps = 22
  return config


def _run(*, dataset: dict, augment: dict, backbone: dict) -> ConfigDict:
  return ConfigDict(dict(
      seed=0, dataset=dataset, augment=augment, backbone=backbone, head=dict(name="Linear"), precision="float32",
      stages=(), posthoc=(), eval_every_epochs=1, checkpoint_every_epochs=10, log_every_steps=50, eval_batch_size=500,
      steps_per_call=0))  # 0: one on a CPU, 50 on an accelerator


RUN_KEYS = tuple(_run(dataset={}, augment={}, backbone={}))


def stage(*, epochs: int, batch_size: int, lr, loss: dict, weight_decay: float, adjust: dict | None = None,
          sampler: dict | None = None, mixup: float = 0.0, class_weights: dict | None = None, train: tuple = (".*",),
          lr_factors: tuple = (), head: dict | None = None, branches: dict | None = None, reset: tuple = (),
          batch_norm: str = "", momentum: float = 0.9) -> ConfigDict:
  """One stage: a fresh optimiser and a trainable set.

  Args:
    epochs: passes of N // batch_size steps.
    batch_size: global batch size; the last N mod batch_size examples of an epoch's permutation are not used.
    lr: a number or a schedule.
    loss: a loss of `ltjax.losses`, by name, with its hyper-parameters (numbers or schedules).
    weight_decay: coupled L2 on every trained parameter.
    adjust: a logit adjustment of `ltjax.losses` that goes before the loss.
    sampler: a sampler of `ltjax.data.samplers`; instance sampling where none is given.
    mixup: alpha of the Beta distribution; 0 is off.
    class_weights: weights from class counts; the loss becomes sum(w l) / sum(w).
    train: regular expressions on parameter paths; what none of them matches is frozen.
    lr_factors: (regular expression, factor on the learning rate) pairs.
    head: a head of its own for this stage, in place of the config's; it takes over the parameters of the stage before
      that have its paths, and draws the others.
    branches: a second batch beside the first, dict(sampler=..., share=...), for two-branch backbones (BBN).
    reset: regular expressions of parameters that start afresh instead of from the stage before.
    batch_norm: train: batch statistics, running ones move; eval: running statistics, fixed; shift: as train, with the
      affine parameters frozen. Where none is given, train if everything is trained, else eval.
    momentum: of SGD.
  """
  return ConfigDict(dict(
      epochs=epochs, batch_size=batch_size, lr=lr, loss=loss, weight_decay=weight_decay, adjust=adjust,
      sampler=sampler or dict(name="instance"), mixup=mixup, class_weights=class_weights, train=train,
      lr_factors=lr_factors, head=head, branches=branches, reset=reset,
      batch_norm=batch_norm or ("train" if train == (".*",) else "eval"), momentum=momentum))
