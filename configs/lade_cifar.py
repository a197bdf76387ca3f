"""Label distribution disentangling (LADE; Hong et al., CVPR 2021) on CIFAR-LT.

python -m ltjax.main --config=configs/lade_cifar.py --workdir=runs/lade    CIFAR-10-LT, imbalance 100
    --config=configs/lade_cifar.py:cifar100,imbalance=50    another data set and imbalance
No published number in tests/golden/published_results.csv.
ltjax: see benchmarks/results.
The two-branch ResNet-32, schedule and constants of the released CIFAR-100 code: PriorCE plus 0.1 LADE. lambda is 0.01,
as in the authors' command for imbalance 100; their file has 0.1.
Deviations: each epoch leaves out the last N mod 256 images of its permutation (static shapes); the last epoch is
reported, not the best on the test set; CIFAR-10, for which no code is
released, has the constants of CIFAR-100.
"""
from ltjax import recipes


def get_config(arguments="cifar10"):
  config = recipes.cifar_lt(**recipes.arguments(arguments, dataset=recipes.CIFAR, imbalance=100.0))
  config.backbone = dict(name="ResNetBBN", depth=32)
  config.head = dict(name="Linear")
  config.stages = ("representation",)
  config.representation = recipes.stage(
      epochs=200, batch_size=256, lr=dict(name="multi_step", base=0.2, at=(120, 160), factors=(0.01, 0.0001), warmup=5),
      optimizer=recipes.sgd(5e-4), loss=dict(name="prior_lade", weight=0.1, remine=0.01))
  return config
