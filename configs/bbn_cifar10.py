"""Bilateral-branch network with cumulative learning (BBN; Zhou et al., CVPR 2020) on CIFAR-10-LT.

python -m ltjax.main --config=configs/bbn_cifar10.py --workdir=runs/bbn_c10          imbalance 100
python -m ltjax.main --config=configs/bbn_cifar10.py:50 --workdir=runs/bbn_c10_50    any other
Published 79.82 (imbalance 100; thesis table 5.2).
ltjax: see benchmarks/results.
The two-branch ResNet-32, schedule and constants of the released code.
Deviations: the last N mod 128 images of an epoch's permutation are left out (static shapes); the last epoch is
reported, not the best on the test set.
"""
from ltjax import recipes


def get_config(imbalance="100"):
  config = recipes.cifar_lt(classes=10, imbalance=float(imbalance))
  config.backbone = dict(name="ResNetBBN", depth=32)
  config.head = dict(name="Linear")
  config.stages = ("representation",)
  config.representation = recipes.stage(
      epochs=200, batch_size=128, lr=dict(name="multi_step", base=0.1, at=(120, 160), factors=(0.01, 0.0001), warmup=5),
      optimizer=recipes.sgd(2e-4), loss=dict(name="cross_entropy"),
      transforms=(dict(name="two_branches", sampler=dict(name="reverse"),
                       share=dict(name="parabolic", start=1.0, end=0.0)),))
  return config
