"""Seesaw loss (Wang et al., CVPR 2021) on CIFAR-LT.

python -m ltjax.main --config=configs/seesaw_cifar.py --workdir=runs/seesaw    CIFAR-10-LT, imbalance 100
    --config=configs/seesaw_cifar.py:cifar100,imbalance=50    others
No published number: the paper is about detection.
ltjax: see benchmarks/results.
ResNet-32, the schedule of ldam_drw_cifar.py, the paper's constants; the counts are those of the images drawn so far.
Deviations: the last N mod 128 images of an epoch's permutation are left out (static shapes); the last epoch is
reported, not the best on the test set.
"""
from ltjax import recipes


def get_config(arguments="cifar10"):
  config = recipes.cifar_lt(**recipes.arguments(arguments, dataset=recipes.CIFAR, imbalance=100.0))
  config.head = dict(name="Linear")
  config.stages = ("representation",)
  config.representation = recipes.stage(
      epochs=200, batch_size=128, lr=dict(name="multi_step", base=0.1, at=(160, 180), factors=(0.01, 0.0001), warmup=5),
      optimizer=recipes.sgd(2e-4), adjust=dict(name="seesaw", p=0.8, q=2.0), loss=dict(name="cross_entropy"))
  return config
