"""Softmax equalisation loss (Tan et al., CVPR 2020) on CIFAR-LT.

python -m ltjax.main --config=configs/equalization_cifar.py --workdir=runs/equalization    CIFAR-10-LT, imbalance 100
    --config=configs/equalization_cifar.py:cifar100,imbalance=50    another data set and imbalance
Published on CIFAR-10-LT 73.98 (imbalance 100; thesis table 3.2). On CIFAR-100-LT 42.74 (imbalance 100; thesis table
3.2).
ltjax: see benchmarks/results.
ResNet-32; the schedule and constants of LDAM-DRW's released code. Threshold and keep rate come from BagofTricks-LT,
because the authors released no code of the softmax form.
Deviations: each epoch leaves out the last N mod 128 images of its permutation (static shapes); the last epoch is
reported, not the best on the test set; the published number comes from Menon et al., who train with another schedule.
"""
from ltjax import recipes


def get_config(arguments="cifar10"):
  config = recipes.cifar_lt(**recipes.arguments(arguments, dataset=recipes.CIFAR, imbalance=100.0))
  config.head = dict(name="Linear")
  config.stages = ("representation",)
  config.representation = recipes.stage(
      epochs=200, batch_size=128, lr=dict(name="multi_step", base=0.1, at=(160, 180), factors=(0.01, 0.0001), warmup=5),
      optimizer=recipes.sgd(2e-4),
      adjust=dict(name="softmax_equalization", threshold=0.005, keep=0.9), loss=dict(name="cross_entropy"))
  return config
