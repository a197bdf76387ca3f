"""Key point sensitive loss on the angle (KPS; Li et al., TPAMI 2022; thesis equation 3.20) on CIFAR-LT.

python -m ltjax.main --config=configs/kps_angular_cifar.py --workdir=runs/kps_angular    CIFAR-10-LT, imbalance 100
    --config=configs/kps_angular_cifar.py:cifar100,imbalance=50    another data set and imbalance
No published number: the thesis has no experiment with it.
ltjax: see benchmarks/results.
kps_cifar.py with a radius and a margin on the angle as well. Ours: max_angle 0.2 and angle_power 1.
Deviations: each epoch leaves out the last N mod 64 images of its permutation (static shapes); the last epoch is
reported, not the best on the test set.
"""
from ltjax import recipes


def get_config(arguments="cifar10"):
  config = recipes.cifar_lt(**recipes.arguments(arguments, dataset=recipes.CIFAR, imbalance=100.0))
  config.head = dict(name="Cosine")
  config.stages = ("representation",)
  config.representation = recipes.stage(
      epochs=200, batch_size=64, lr=dict(name="multi_step", base=0.1, at=(160, 180), factors=(0.1, 0.01), warmup=5),
      optimizer=recipes.sgd(2e-4), loss=dict(name="cross_entropy"),
      adjust=dict(name="kps_angular", max_angle=0.2, angle_power=1.0, max_margin=0.2, base=50.0, scale=15.0,
                  adjust=dict(name="switch", at=120)))
  return config
