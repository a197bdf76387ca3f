"""Class-balanced cross entropy (Cui et al., CVPR 2019) on CIFAR-LT.

python -m ltjax.main --config=configs/cb_ce_cifar.py --workdir=runs/cb_ce    CIFAR-10-LT, imbalance 100
    --config=configs/cb_ce_cifar.py:cifar100,imbalance=50    another data set and imbalance
No published number in tests/golden/published_results.csv.
ltjax: see benchmarks/results.
ResNet-32 and the schedule of ldam_drw_cifar.py. The weights have beta 0.9999, as in cb_focal_cifar.py, and the loss is
divided by their sum over the batch.
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
      optimizer=recipes.sgd(2e-4), loss=dict(name="cross_entropy"),
      class_weights=dict(name="effective_number", beta=0.9999))
  return config
