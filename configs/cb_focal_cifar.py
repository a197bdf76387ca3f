"""Class-balanced focal loss (Cui et al., CVPR 2019) on CIFAR-LT.

python -m ltjax.main --config=configs/cb_focal_cifar.py --workdir=runs/cb_focal    CIFAR-10-LT, imbalance 100
    --config=configs/cb_focal_cifar.py:cifar100,imbalance=50    another data set and imbalance
Published on CIFAR-10-LT 74.57 (imbalance 100; thesis table 3.2). On CIFAR-100-LT 39.60 (imbalance 100; thesis table
3.2).
ltjax: see benchmarks/results.
ResNet-32; the schedule and constants of the released code: the sigmoid form, averaged over the batch, and a classifier
bias that starts at -log(C - 1) without weight decay.
Deviations: each epoch leaves out the last N mod 128 images of its permutation (static shapes); in the first five epochs
the learning rate rises once an epoch, not once a step; the network is that of LDAM-DRW, with other shortcuts and
initial kernels; gamma is 1 and beta 0.9999, where the paper tunes both for each data set; the paper drew its images
without a seed.
"""
from ltjax import recipes


def get_config(arguments="cifar10"):
  config = recipes.cifar_lt(**recipes.arguments(arguments, dataset=recipes.CIFAR, imbalance=100.0))
  config.head = dict(name="Linear", rare_start=True)
  config.stages = ("representation",)
  config.representation = recipes.stage(
      epochs=200, batch_size=128, lr=dict(name="multi_step", base=0.1, at=(160, 180), factors=(0.01, 0.0001), warmup=5),
      optimizer=recipes.sgd(2e-4, no_decay=("head/bias",)),
      loss=dict(name="class_balanced_focal", gamma=1.0), class_weights=dict(name="effective_number", beta=0.9999),
      reduce="mean")
  return config
