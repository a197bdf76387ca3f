"""Bilateral-branch network with cumulative learning (BBN; Zhou et al., CVPR 2020) on CIFAR-LT.

python -m ltjax.main --config=configs/bbn_cifar.py --workdir=runs/bbn    CIFAR-10-LT, imbalance 100
    --config=configs/bbn_cifar.py:cifar100,imbalance=50    another data set and imbalance
Published on CIFAR-10-LT 79.82 (imbalance 100; thesis table 5.2). On CIFAR-100-LT 42.56 (imbalance 100; thesis table
5.2).
ltjax: see benchmarks/results.
The two-branch ResNet-32, schedule and constants of the released code.
Deviations: each epoch leaves out the last N mod 128 images of its permutation (static shapes); the last epoch is
reported, not the best on the test set.
"""
from ltjax import recipes


def get_config(arguments="cifar10"):
  config = recipes.cifar_lt(**recipes.arguments(arguments, dataset=recipes.CIFAR, imbalance=100.0))
  config.backbone = dict(name="ResNetBBN", depth=32)
  config.head = dict(name="Linear")
  config.stages = ("representation",)
  config.representation = recipes.stage(
      epochs=200, batch_size=128, lr=dict(name="multi_step", base=0.1, at=(120, 160), factors=(0.01, 0.0001), warmup=5),
      optimizer=recipes.sgd(2e-4), loss=dict(name="cross_entropy"),
      transforms=(dict(name="two_branches", sampler=dict(name="reverse"),
                       share=dict(name="parabolic", start=1.0, end=0.0)),))
  return config
