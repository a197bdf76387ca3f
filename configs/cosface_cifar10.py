"""Large margin cosine loss (CosFace; Wang et al., CVPR 2018) on CIFAR-10-LT.

python -m ltjax.main --config=configs/cosface_cifar10.py --workdir=runs/cosface_c10          imbalance 100
python -m ltjax.main --config=configs/cosface_cifar10.py:50 --workdir=runs/cosface_c10_50    any other
Published 72.08 (imbalance 100; thesis table 3.2).
ltjax: see benchmarks/results.
ResNet-32; the schedule of KPS's released code, whose authors ran it.
Deviations: the last N mod 64 images of an epoch's permutation are left out (static shapes); the last epoch is reported,
not the best on the test set; scale 30 and margin 0.35 are given nowhere.
"""
from ltjax import recipes


def get_config(imbalance="100"):
  config = recipes.cifar_lt(classes=10, imbalance=float(imbalance))
  config.head = dict(name="Cosine")
  config.stages = ("representation",)
  config.representation = recipes.stage(
      epochs=200, batch_size=64, lr=dict(name="multi_step", base=0.1, at=(160, 180), factors=(0.1, 0.01), warmup=5),
      optimizer=recipes.sgd(2e-4),
      adjust=dict(name="cosface", margin=0.35, scale=30.0), loss=dict(name="cross_entropy"))
  return config
