"""Class-balanced focal loss (Cui et al., CVPR 2019) on CIFAR-10-LT.

python -m ltjax.main --config=configs/cb_focal_cifar10.py --workdir=runs/cb_focal_c10          imbalance 100
python -m ltjax.main --config=configs/cb_focal_cifar10.py:50 --workdir=runs/cb_focal_c10_50    any other
Published 74.57 (imbalance 100; thesis table 3.2).
ltjax: see benchmarks/results.
ResNet-32; the schedule and constants of LDAM-DRW's released code. The sigmoid form with gamma 1 and the weights of beta
0.9999.
Deviations: the last N mod 128 images of an epoch's permutation are left out (static shapes); the last epoch is
reported, not the best on the test set; the last layer's bias does not start at -log(C - 1) and is decayed as all else;
a batch's weights are divided by their sum, not by its size; the paper chose gamma and beta for each data set.
"""
from ltjax import recipes


def get_config(imbalance="100"):
  config = recipes.cifar_lt(classes=10, imbalance=float(imbalance))
  config.head = dict(name="Linear")
  config.stages = ("representation",)
  config.representation = recipes.stage(
      epochs=200, batch_size=128, lr=dict(name="multi_step", base=0.1, at=(160, 180), factors=(0.01, 0.0001), warmup=5),
      weight_decay=2e-4, sampler=dict(name="instance"),
      loss=dict(name="class_balanced_focal", gamma=1.0), class_weights=dict(name="effective_number", beta=0.9999))
  return config
