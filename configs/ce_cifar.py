"""Cross entropy on CIFAR-LT, ResNet-32: the baseline of LDAM-DRW (Cao et al., NeurIPS 2019) and of the papers after it.

python -m ltjax.main --config=configs/ce_cifar.py --workdir=runs/ce    CIFAR-10-LT, imbalance 100
    --config=configs/ce_cifar.py:cifar100,imbalance=50    another data set and imbalance
    preset=paper    LDAM-DRW's released code and thesis table 5.1 (default); 70.70, on CIFAR-100-LT 38.43
    preset=code     GCL's released code: batch size 64, decays to 0.1 and 0.01; 70.70 and 38.43 are its authors'
    preset=fbl      FBL's released code: batch size 64; 71.07, on CIFAR-100-LT 39.43
    preset=short    ours, 12 epochs, to compare implementations; none published
Published on CIFAR-10-LT 70.70 (imbalance 100; 65.68 at 200, 74.81 at 50; thesis table 5.2); with preset=fbl 71.07
(75.31 at 50; FBL paper table 2); with mixup=1.0 72.96 (65.84 at 200, 79.48 at 50). On CIFAR-100-LT 38.43 (imbalance
100; 34.84 at 200, 43.90 at 50; thesis table 5.2); with preset=fbl 39.43 (44.20 at 50; FBL paper table 2); with
mixup=1.0 40.01 (35.84 at 200, 45.16 at 50).
ltjax: see benchmarks/results.
Deviations: each epoch leaves out the last images that fill no batch (static shapes); the last epoch is reported, not
the best on the test set.
"""
from ltjax import recipes

LONG = dict(name="multi_step", base=0.1, at=(160, 180), factors=(0.01, 0.0001), warmup=5)
PRESETS = dict(
    paper=dict(epochs=200, batch_size=128, lr=LONG),
    code=dict(epochs=200, batch_size=64, lr=LONG | dict(factors=(0.1, 0.01))),
    fbl=dict(epochs=200, batch_size=64, lr=LONG),
    short=dict(epochs=12, batch_size=128,
               lr=dict(name="multi_step", base=0.1, at=(0, 1, 9, 10), factors=(0.2, 1.0, 0.1, 0.01), warmup=0)))


def get_config(arguments="cifar10"):
  given = recipes.arguments(
      arguments, dataset=recipes.CIFAR, imbalance=100.0, preset=tuple(PRESETS), mixup=0.0)
  config = recipes.cifar_lt(given["dataset"], imbalance=given["imbalance"])
  config.preset, config.head = given["preset"], dict(name="Linear")
  config.stages = ("representation",)
  config.representation = recipes.stage(
      **PRESETS[config.preset.name], optimizer=recipes.sgd(2e-4), mixup=given["mixup"],
      loss=dict(name="cross_entropy"))
  return config
