"""Normalised classifiers for long-tailed representations (NormFC of CAMC; Zhang et al., 2021) on CIFAR-LT.

python -m ltjax.main --config=configs/norm_fc_cifar.py --workdir=runs/norm_fc    CIFAR-10-LT, imbalance 100
    --config=configs/norm_fc_cifar.py:cifar100,imbalance=50    another data set and imbalance
    preset=paper    the paper; what it leaves silent is our choice (default); none
    preset=kang     second stage as in Kang et al.'s code: class-aware sampling, BatchNorm trains, new classifier; none
No published number on CIFAR-LT: table II reports ImageNet-LT.
ltjax: see benchmarks/results.
ResNet-32 (the paper names no backbone for CIFAR); the paper's optimiser and epochs, weight decay 2e-4 as in the other
CIFAR configs, because the paper gives none. One run gives the three evaluations of table II: as trained (stage
representation), re-trained (classifier) and by nearest class mean (post-hoc). With retrain=linear the second stage
re-trains a linear classifier, as the paper does for its rows linear, wn, wn_g and g=1 (section IV-B); with
retrain=normalized (default) the one of equation 8, table III without CAMC. The second stage has equation 8 with g=16
and starts from the class directions of the first.
Deviations: each epoch leaves out the last N mod 256 images of its permutation (static shapes); the last epoch is
reported and starts the next stage.
"""
from ltjax import recipes


def get_config(arguments="cifar10"):
  given = recipes.arguments(
      arguments, dataset=recipes.CIFAR, imbalance=100.0, preset=recipes.RETRAINED,
      classifier=("norm_fc", "linear", "wn", "wn_g"), retrain=("normalized", "linear"), g=0.5)
  config = recipes.cifar_lt(given["dataset"], imbalance=given["imbalance"])
  config.preset = given["preset"]
  config.head = dict(norm_fc=dict(name="NormalizedLinear", scale=given["g"]), linear=dict(name="Linear"),
                     wn=dict(name="WeightNorm"), wn_g=dict(name="WeightNorm", shared=True))[given["classifier"]]
  config.stages, retraining = ("representation", "classifier"), recipes.retraining(config.preset.name)
  config.representation = recipes.stage(
      epochs=200, batch_size=256, lr=dict(name="cosine", base=0.1), optimizer=recipes.sgd(2e-4),
      loss=dict(name="cross_entropy"))
  config.classifier = recipes.stage(
      epochs=10, batch_size=256, lr=dict(name="cosine", base=0.1), optimizer=recipes.sgd(2e-4), train=("head/.*",),
      **retraining | (dict(reset=("head/.*",)) if given["retrain"] == "linear" else {}),
      loss=dict(name="cross_entropy"),
      head=dict(normalized=dict(name="NormalizedLinear", scale=16.0, normalize_features=True),
                linear=dict(name="Linear"))[given["retrain"]])
  config.posthoc = (dict(name="nearest_class_mean", metric="cosine", stage="representation"),)
  return config
