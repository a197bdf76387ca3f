"""Sigmoid equalisation loss (Tan et al., CVPR 2020) on CIFAR-LT.

python -m ltjax.main --config=configs/sigmoid_equalization_cifar.py --workdir=runs/seql    CIFAR-10-LT, imbalance 100
    --config=configs/sigmoid_equalization_cifar.py:cifar100,imbalance=50    another data set and imbalance
No published number on CIFAR-LT: the paper's sigmoid form is for detection.
ltjax: see benchmarks/results.
ResNet-32 and the schedule of ldam_drw_cifar.py. The classifier's bias starts at -log(C - 1), so that the first
probabilities are 1/C. Ours: the threshold 0.005, as in equalization_cifar.py; the paper's 0.00177 is for LVIS.
Deviations: each epoch leaves out the last N mod 128 images of its permutation (static shapes); the last epoch is
reported, not the best on the test set.
"""
from ltjax import recipes


def get_config(arguments="cifar10"):
  config = recipes.cifar_lt(**recipes.arguments(arguments, dataset=recipes.CIFAR, imbalance=100.0))
  config.head = dict(name="Linear", rare_start=True)
  config.stages = ("representation",)
  config.representation = recipes.stage(
      epochs=200, batch_size=128, lr=dict(name="multi_step", base=0.1, at=(160, 180), factors=(0.01, 0.0001), warmup=5),
      optimizer=recipes.sgd(2e-4), loss=dict(name="sigmoid_equalization", threshold=0.005))
  return config
