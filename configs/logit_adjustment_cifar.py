"""Logit adjustment by the training prior (Menon et al., ICLR 2021; with tau 1 the balanced softmax) on CIFAR-LT.

python -m ltjax.main --config=configs/logit_adjustment_cifar.py --workdir=runs/la    CIFAR-10-LT, imbalance 100
    --config=configs/logit_adjustment_cifar.py:cifar100,imbalance=50    another data set and imbalance
Published on CIFAR-10-LT 80.92 (imbalance 100; thesis table 3.2). On CIFAR-100-LT 43.89 (imbalance 100; thesis table
3.2).
ltjax: see benchmarks/results.
ResNet-32; the schedule and constants of LDAM-DRW's released code.
Deviations: each epoch leaves out the last N mod 128 images of its permutation (static shapes); the last epoch is
reported, not the best on the test set; the authors' code trains another network on another image set for more than
1,200 epochs.
"""
from ltjax import recipes


def get_config(arguments="cifar10"):
  config = recipes.cifar_lt(**recipes.arguments(arguments, dataset=recipes.CIFAR, imbalance=100.0))
  config.head = dict(name="Linear")
  config.stages = ("representation",)
  config.representation = recipes.stage(
      epochs=200, batch_size=128, lr=dict(name="multi_step", base=0.1, at=(160, 180), factors=(0.01, 0.0001), warmup=5),
      optimizer=recipes.sgd(2e-4), adjust=dict(name="logit_adjustment", tau=1.0),
      loss=dict(name="cross_entropy"))
  return config
