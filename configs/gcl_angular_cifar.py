"""Gaussian clouds on the angle (Li et al., TAI 2024) with CBEN re-training on CIFAR-LT.

python -m ltjax.main --config=configs/gcl_angular_cifar.py --workdir=runs/gcl_angular    CIFAR-10-LT, imbalance 100
    --config=configs/gcl_angular_cifar.py:cifar100,imbalance=50    another data set and imbalance
No published number in tests/golden/published_results.csv.
ltjax: see benchmarks/results.
gcl_cifar.py with the angular form in both stages: eps_0 is 0.1 and the second stage's margin 0.5, as in the released
code.
Deviations: each epoch leaves out the last N mod 64 images of its permutation (static shapes); the last epoch, not the
best on the test set, is reported and starts the next stage.
"""
from ltjax import recipes


def get_config(arguments="cifar10"):
  config = recipes.cifar_lt(**recipes.arguments(arguments, dataset=recipes.CIFAR, imbalance=100.0))
  config.head = dict(name="Cosine")
  config.stages = ("representation", "classifier")
  config.representation = recipes.stage(
      epochs=200, batch_size=64, lr=dict(name="multi_step", base=0.1, at=(160, 180), factors=(0.1, 0.01), warmup=5),
      optimizer=recipes.sgd(2e-4), mixup=1.0, adjust=dict(name="gcl_angular", scale=30.0, noise_scale=0.1),
      loss=dict(name="cross_entropy"))
  config.classifier = recipes.stage(
      epochs=30, batch_size=64, lr=dict(name="cosine", base=0.002), optimizer=recipes.sgd(2e-4), train=("head/.*",),
      sampler=dict(name="cben", a=0.999, b=0.0009), mixup=1.0,
      adjust=dict(name="gcl_angular", scale=20.0, margin=0.5, noise_scale=0.1),
      loss=dict(name="focal", gamma=1.0, detach=True))
  return config
