"""Normalised classifiers for long-tailed representations (NormFC of CAMC; Zhang et al., 2021) on CIFAR-LT.

python -m ltjax.main --config=configs/norm_fc_cifar.py --workdir=runs/norm_fc    CIFAR-10-LT, imbalance 100
    --config=configs/norm_fc_cifar.py:cifar100,imbalance=50    others
ltjax: see benchmarks/results.
ResNet-32; the paper's optimiser and epochs, weight decay 2e-4 as in the other CIFAR configs (not said). All rows are
re-trained as CAMC's second stage without calibration is: its equation 8, g=16, from the directions of the first.
Deviations: the last N mod 256 images of an epoch's permutation are left out (static shapes); the last epoch is reported
and bridged.
"""
from ltjax import recipes


def get_config(arguments="cifar10"):
  given = recipes.arguments(
      arguments, dataset=recipes.CIFAR, imbalance=100.0, classifier=("norm_fc", "linear", "wn", "wn_g"), g=0.5)
  config = recipes.cifar_lt(given["dataset"], imbalance=given["imbalance"])
  config.head = dict(norm_fc=dict(name="NormalizedLinear", scale=given["g"]), linear=dict(name="Linear"),
                     wn=dict(name="WeightNorm"), wn_g=dict(name="WeightNorm", shared=True))[given["classifier"]]
  config.stages = ("representation", "classifier")
  config.representation = recipes.stage(
      epochs=200, batch_size=256, lr=dict(name="cosine", base=0.1), optimizer=recipes.sgd(2e-4),
      loss=dict(name="cross_entropy"))
  config.classifier = recipes.stage(
      epochs=10, batch_size=256, lr=dict(name="cosine", base=0.1), optimizer=recipes.sgd(2e-4), train=("head/.*",),
      batch_norm="eval", sampler=dict(name="class_balanced"), loss=dict(name="cross_entropy"),
      head=dict(name="NormalizedLinear", scale=16.0, normalize_features=True))
  config.posthoc = (dict(name="nearest_class_mean", metric="cosine", stage="representation"),)
  return config
