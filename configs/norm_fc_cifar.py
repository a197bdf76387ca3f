"""Normalised classifiers for long-tailed representations (NormFC of CAMC; Zhang et al., 2021) on CIFAR-LT.

python -m ltjax.main --config=configs/norm_fc_cifar.py --workdir=runs/norm_fc    CIFAR-10-LT, imbalance 100
    --config=configs/norm_fc_cifar.py:cifar100,imbalance=50    another data set and imbalance
No published number on CIFAR-LT: table II reports ImageNet-LT.
ltjax: see benchmarks/results.
ResNet-32 (the paper names no backbone for CIFAR); the paper's optimiser and epochs, weight decay 2e-4 as in the other
CIFAR configs, because the paper gives none. One run gives the three evaluations of table II: as trained (stage
representation), re-trained (classifier) and by nearest class mean (post-hoc). The second stage has equation 8 with g=16
and starts from the class directions of the first.
Deviations: each epoch leaves out the last N mod 256 images of its permutation (static shapes); the last epoch is
reported and starts the next stage; the second stage re-trains a normalised classifier for all rows, where the paper
re-trains a linear one for linear, wn, wn_g and g=1.
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
