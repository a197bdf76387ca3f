"""Calibrated class activation maps (CAMC; Zhang et al., 2021) on Caltech-101, long-tailed.

python -m ltjax.main --config=configs/camc_caltech.py --workdir=runs/camc_caltech
    --config.dataset.root=DIR    where the images lie elsewhere: DIR/train/<class>/ and DIR/test/<class>/
No published number. ltjax: see benchmarks/results. The data and the network of gcl_caltech.py, whose maps at 64 pixels
have 2 x 2 places: too coarse for the report to show.
Deviations: the schedule is ours, the rest is as in camc_cifar.py:cifar100.
"""
from ltjax import recipes


def get_config():
  config = recipes.folder(
      root="data/caltech101_lt40", augment=recipes.crop_flip(64),
      backbone=recipes.resnet("resnet10") | dict(width=32))
  config.head = dict(name="NormalizedLinear", scale=0.5)
  config.log_every_steps, config.eval_every_epochs = 20, 5
  config.stages = ("representation", "classifier")
  config.representation = recipes.stage(
      epochs=40, batch_size=32, lr=dict(name="cosine", base=0.05, warmup=3), optimizer=recipes.sgd(5e-4),
      loss=dict(name="cross_entropy"))
  config.classifier = recipes.stage(
      epochs=5, batch_size=32, lr=dict(name="cosine", base=0.05), optimizer=recipes.sgd(5e-4), train=("head/.*",),
      batch_norm="eval", sampler=dict(name="class_balanced"), loss=dict(name="cross_entropy"),
      head=dict(name="CAMC", scale=16.0, threshold=100, num_prototypes=5))
  return config
