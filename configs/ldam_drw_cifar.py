"""Label-distribution-aware margins with deferred re-weighting (Cao et al., NeurIPS 2019) on CIFAR-LT.

python -m ltjax.main --config=configs/ldam_drw_cifar.py --workdir=runs/ldam_drw    CIFAR-10-LT, imbalance 100
    --config=configs/ldam_drw_cifar.py:cifar100,imbalance=50    another data set and imbalance
Published on CIFAR-10-LT 77.03 (imbalance 100; 73.52 at 200, 81.03 at 50; thesis table 5.2). On CIFAR-100-LT 42.04
(imbalance 100; 38.91 at 200, 47.62 at 50; thesis table 5.2).
ltjax: see benchmarks/results.
ResNet-32; the schedule and constants of LDAM-DRW's released code.
Deviations: each epoch leaves out the last N mod 128 images of its permutation (static shapes); the last epoch is
reported, not the best on the test set.
"""
from ltjax import recipes


def get_config(arguments="cifar10"):
  config = recipes.cifar_lt(**recipes.arguments(arguments, dataset=recipes.CIFAR, imbalance=100.0))
  config.head = dict(name="Cosine")
  config.stages = ("representation",)
  config.representation = recipes.stage(
      epochs=200, batch_size=128, lr=dict(name="multi_step", base=0.1, at=(160, 180), factors=(0.01, 0.0001), warmup=5),
      optimizer=recipes.sgd(2e-4),
      adjust=dict(name="ldam", max_margin=0.5, scale=30.0), loss=dict(name="cross_entropy"),
      class_weights=dict(name="effective_number", beta=dict(name="switch", at=160, before=0.0, after=0.9999)))
  return config
