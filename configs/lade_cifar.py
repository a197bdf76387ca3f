"""Label distribution disentangling (LADE; Hong et al., CVPR 2021) on CIFAR-LT.

python -m ltjax.main --config=configs/lade_cifar.py --workdir=runs/lade    CIFAR-10-LT, imbalance 100
    --config=configs/lade_cifar.py:cifar100,imbalance=50    others
No published number on CIFAR-10-LT; the released numbers come from the two-branch network of BBN.
ltjax: see benchmarks/results.
The two-branch ResNet-32, learning rate, batch size and weight decay of the released CIFAR code; PriorCE plus 0.1 LADE.
Deviations: the last N mod 256 images of an epoch's permutation are left out (static shapes); the last epoch is
reported, not the best on the test set;
the schedule is that of tde_cifar.py, whose code the released one shares.
"""
from ltjax import recipes


def get_config(arguments="cifar10"):
  config = recipes.cifar_lt(**recipes.arguments(arguments, dataset=recipes.CIFAR, imbalance=100.0))
  config.backbone = dict(name="ResNetBBN", depth=32)
  config.head = dict(name="Linear")
  config.stages = ("representation",)
  config.representation = recipes.stage(
      epochs=200, batch_size=256, lr=dict(name="multi_step", base=0.2, at=(120, 160), factors=(0.01, 0.0001), warmup=5),
      optimizer=recipes.sgd(5e-4), loss=dict(name="prior_lade", weight=0.1, remine=0.1))
  return config
