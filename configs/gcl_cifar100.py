"""Gaussian clouded logit adjustment with CBEN re-training (Li et al., CVPR 2022; thesis ch. 5) on CIFAR-100-LT.

python -m ltjax.main --config=configs/gcl_cifar100.py --workdir=runs/gcl_c100          imbalance 100
python -m ltjax.main --config=configs/gcl_cifar100.py:50 --workdir=runs/gcl_c100_50    any other
Published 48.71 (imbalance 100; 44.88 at 200, 53.55 at 50; thesis table 5.2). ltjax: see benchmarks/results.
ResNet-32; the released code's schedule and constants, with the thesis's CBEN sampler in the second stage.
Deviations: the last N mod 64 images of an epoch's permutation are left out (static shapes); the last epoch is reported
and bridged, not the best on the test set.
"""
from ltjax import recipes


def get_config(imbalance="100"):
  config = recipes.cifar_lt(classes=100, imbalance=float(imbalance))
  config.head = dict(name="Cosine")
  config.stages = ("representation", "classifier")
  config.representation = recipes.stage(
      epochs=200, batch_size=64, lr=dict(name="multi_step", base=0.1, at=(160, 180), factors=(0.1, 0.01), warmup=5),
      weight_decay=2e-4, sampler=dict(name="instance"), mixup=1.0,
      adjust=dict(name="gcl", scale=30.0, noise_scale=0.5), loss=dict(name="cross_entropy"))
  config.classifier = recipes.stage(
      epochs=30, batch_size=64, lr=dict(name="cosine", base=0.002), weight_decay=2e-4, train=("head/.*",),
      batch_norm="eval", sampler=dict(name="cben", a=0.999, b=0.0009), mixup=1.0,
      adjust=dict(name="gcl", scale=20.0, margin=0.1, noise_scale=0.5),
      loss=dict(name="focal", gamma=1.0, detach=True))
  return config
