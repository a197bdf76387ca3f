"""Focal loss (Lin et al., ICCV 2017) on CIFAR-100-LT.

python -m ltjax.main --config=configs/focal_cifar100.py --workdir=runs/focal_c100          imbalance 100
python -m ltjax.main --config=configs/focal_cifar100.py:50 --workdir=runs/focal_c100_50    any other
Published 37.25 (imbalance 100; thesis table 3.2).
ltjax: see benchmarks/results.
ResNet-32; the schedule and constants of LDAM-DRW's released code. The softmax form with gamma 1.
Deviations: the last N mod 128 images of an epoch's permutation are left out (static shapes); the last epoch is
reported, not the best on the test set.
"""
from ltjax import recipes


def get_config(imbalance="100"):
  config = recipes.cifar_lt(classes=100, imbalance=float(imbalance))
  config.head = dict(name="Linear")
  config.stages = ("representation",)
  config.representation = recipes.stage(
      epochs=200, batch_size=128, lr=dict(name="multi_step", base=0.1, at=(160, 180), factors=(0.01, 0.0001), warmup=5),
      optimizer=recipes.sgd(2e-4), loss=dict(name="focal", gamma=1.0))
  return config
