"""Cross entropy on CIFAR-100-LT, ResNet-32: the baseline of LDAM-DRW (Cao et al., NeurIPS 2019) and all since.

python -m ltjax.main --config=configs/ce_cifar100.py --workdir=runs/ce_c100    imbalance 100
    --config=configs/ce_cifar100.py:100,mixup=1.0                              any other, and arguments
Published 38.43 (imbalance 100; 34.84 at 200, 43.90 at 50; thesis table 5.2), 39.43 (imbalance 100; 44.20 at 50; FBL
paper table 2). With mixup=1.0 40.01 (35.84 at 200, 45.16 at 50).
ltjax: see benchmarks/results.
Deviations: the last N mod 128 images of an epoch's permutation are left out (static shapes); the last epoch is
reported, not the best on the test set.
"""
from ltjax import recipes


def get_config(imbalance="100"):
  given = recipes.arguments(imbalance, imbalance=100.0, mixup=0.0)
  config = recipes.cifar_lt(classes=100, imbalance=given["imbalance"])
  config.head = dict(name="Linear")
  config.stages = ("representation",)
  config.representation = recipes.stage(
      epochs=200, batch_size=128, lr=dict(name="multi_step", base=0.1, at=(160, 180), factors=(0.01, 0.0001), warmup=5),
      optimizer=recipes.sgd(2e-4), mixup=given["mixup"], loss=dict(name="cross_entropy"))
  return config
