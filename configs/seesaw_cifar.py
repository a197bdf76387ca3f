"""Seesaw loss (Wang et al., CVPR 2021) on CIFAR-LT.

python -m ltjax.main --config=configs/seesaw_cifar.py --workdir=runs/seesaw    CIFAR-10-LT, imbalance 100
    --config=configs/seesaw_cifar.py:cifar100,imbalance=50    another data set and imbalance
No published number on CIFAR-LT: the paper is about instance segmentation.
ltjax: see benchmarks/results.
ResNet-32 and the schedule of ldam_drw_cifar.py; p and q are the paper's. The counts are those of the images drawn so
far.
Deviations: each epoch leaves out the last N mod 128 images of its permutation (static shapes); the last epoch is
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
