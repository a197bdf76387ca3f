"""Gaussian clouded logit adjustment with CBEN re-training (Li et al., CVPR 2022; thesis ch. 5) on long-tailed digits.

python -m ltjax.main --config=configs/gcl_digits.py --workdir=runs/digits
No published number: scikit-learn's digits are the embedded data set. ltjax: see README.
Deviations from the CIFAR recipe of gcl_cifar.py: a ResNet-8, 60 epochs, batch 32, weight decay 1e-4, no flips, and no
mixup in the second stage (the authors expect better results without it).
"""
from ltjax import recipes


def get_config(imbalance="50"):
  config = recipes.digits_lt(imbalance=float(imbalance))
  config.head = dict(name="Cosine")
  config.stages = ("representation", "classifier")
  config.representation = recipes.stage(
      epochs=60, batch_size=32, lr=dict(name="multi_step", base=0.1, at=(48, 54), factors=(0.1, 0.01), warmup=5),
      optimizer=recipes.sgd(1e-4), mixup=1.0,
      adjust=dict(name="gcl", scale=30.0, noise_scale=0.5), loss=dict(name="cross_entropy"))
  config.classifier = recipes.stage(
      epochs=30, batch_size=32, lr=dict(name="cosine", base=0.002), optimizer=recipes.sgd(1e-4), train=("head/.*",),
      batch_norm="eval", sampler=dict(name="cben", a=0.999, b=0.0009),
      adjust=dict(name="gcl", scale=20.0, margin=0.1, noise_scale=0.5),
      loss=dict(name="focal", gamma=1.0, detach=True))
  return config
