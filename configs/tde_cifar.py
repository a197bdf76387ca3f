"""De-confounded training with total direct effect (TDE; Tang et al., NeurIPS 2020) on CIFAR-LT.

python -m ltjax.main --config=configs/tde_cifar.py --workdir=runs/tde    CIFAR-10-LT, imbalance 100
    --config=configs/tde_cifar.py:cifar100,imbalance=50    another data set and imbalance
Published on CIFAR-10-LT 80.60 (imbalance 100; thesis table 5.2). On CIFAR-100-LT 44.15 (imbalance 100; thesis table
5.2).
ltjax: see benchmarks/results.
The released code's backbone (BBN's ResNet-32 with 128 features), schedule and constants: alpha is 1.0 on CIFAR-10 and
1.5 on CIFAR-100.
Deviations: each epoch leaves out the last N mod 256 images of its permutation (static shapes); the last epoch is
reported, not the best on the test set.
"""
from ltjax import recipes


def get_config(arguments="cifar10"):
  given = recipes.arguments(
      arguments, dataset=recipes.CIFAR, imbalance=100.0, alpha=dict(cifar10=1.0, cifar100=1.5))
  config = recipes.cifar_lt(given["dataset"], imbalance=given["imbalance"])
  config.backbone = dict(name="ResNetBBN", depth=32)
  config.head = dict(name="TDE", alpha=given["alpha"], tau=16.0, gamma=0.03125, num_heads=2)
  config.stages = ("representation",)
  config.representation = recipes.stage(
      epochs=200, batch_size=256, lr=dict(name="multi_step", base=0.2, at=(120, 160), factors=(0.01, 0.0001), warmup=5),
      optimizer=recipes.sgd(5e-4), loss=dict(name="cross_entropy"))
  return config
