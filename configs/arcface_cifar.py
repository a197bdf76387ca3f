"""Additive angular margin loss (ArcFace; Deng et al., CVPR 2019) on CIFAR-LT.

python -m ltjax.main --config=configs/arcface_cifar.py --workdir=runs/arcface    CIFAR-10-LT, imbalance 100
    --config=configs/arcface_cifar.py:cifar100,imbalance=50    another data set and imbalance
Published on CIFAR-10-LT 73.76 (imbalance 100; thesis table 3.2). On CIFAR-100-LT 39.06 (imbalance 100; thesis table
3.2).
ltjax: see benchmarks/results.
ResNet-32; the schedule of the released KPS code, whose authors report the number.
Deviations: each epoch leaves out the last N mod 64 images of its permutation (static shapes); the last epoch is
reported, not the best on the test set; scale 30 and margin 0.5 are ours, because the thesis gives none.
"""
from ltjax import recipes


def get_config(arguments="cifar10"):
  config = recipes.cifar_lt(**recipes.arguments(arguments, dataset=recipes.CIFAR, imbalance=100.0))
  config.head = dict(name="Cosine")
  config.stages = ("representation",)
  config.representation = recipes.stage(
      epochs=200, batch_size=64, lr=dict(name="multi_step", base=0.1, at=(160, 180), factors=(0.1, 0.01), warmup=5),
      optimizer=recipes.sgd(2e-4),
      adjust=dict(name="arcface", margin=0.5, scale=30.0), loss=dict(name="cross_entropy"))
  return config
