"""Cross entropy on CIFAR-LT, ResNet-32: the baseline of LDAM-DRW (Cao et al., NeurIPS 2019) and of the papers after it.

python -m ltjax.main --config=configs/ce_cifar.py --workdir=runs/ce    CIFAR-10-LT, imbalance 100
    --config=configs/ce_cifar.py:cifar100,imbalance=50    another data set and imbalance
Published on CIFAR-10-LT 70.70 (imbalance 100; 65.68 at 200, 74.81 at 50; thesis table 5.2), 71.07 (imbalance 100; 75.31
at 50; FBL paper table 2). With mixup=1.0 72.96 (65.84 at 200, 79.48 at 50). On CIFAR-100-LT 38.43 (imbalance 100; 34.84
at 200, 43.90 at 50; thesis table 5.2), 39.43 (imbalance 100; 44.20 at 50; FBL paper table 2). With mixup=1.0 40.01
(35.84 at 200, 45.16 at 50).
ltjax: see benchmarks/results.
The schedule of LDAM-DRW's released code. The code of FBL, behind 71.07 and 39.43, has batch size 64; that of GCL has
batch size 64 and decays to 0.1 and 0.01 of the learning rate.
Deviations: each epoch leaves out the last N mod 128 images of its permutation (static shapes); the last epoch is
reported, not the best on the test set.
"""
from ltjax import recipes


def get_config(arguments="cifar10"):
  given = recipes.arguments(
      arguments, dataset=recipes.CIFAR, imbalance=100.0, mixup=0.0)
  config = recipes.cifar_lt(given["dataset"], imbalance=given["imbalance"])
  config.head = dict(name="Linear")
  config.stages = ("representation",)
  config.representation = recipes.stage(
      epochs=200, batch_size=128, lr=dict(name="multi_step", base=0.1, at=(160, 180), factors=(0.01, 0.0001), warmup=5),
      optimizer=recipes.sgd(2e-4), mixup=given["mixup"], loss=dict(name="cross_entropy"))
  return config
