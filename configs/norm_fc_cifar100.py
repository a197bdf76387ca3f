"""Normalised classifiers for long-tailed representations (NormFC of CAMC; Zhang et al., 2021) on CIFAR-100-LT.

python -m ltjax.main --config=configs/norm_fc_cifar100.py --workdir=runs/norm_fc_c100    imbalance 100
    --config=configs/norm_fc_cifar100.py:100,classifier=wn                               any other, and arguments
One run gives the three evaluations of the paper's table II: as trained (stage representation), re-trained with
class-balanced sampling (classifier), and nearest class mean (post-hoc). Its rows are classifier=linear, classifier=wn,
classifier=wn_g, g=1 and, as it stands, g=0.5.
No published numbers on CIFAR: table II is ImageNet-LT's, 48.1, 51.3 and 51.2 (linear 46.4, 50.0 and 49.8).
ltjax: see benchmarks/results.
ResNet-32; the paper's optimiser and epochs, weight decay 2e-4 as in the other CIFAR configs (not said). All rows are
re-trained as CAMC's second stage without calibration is: its equation 8, g=16, from the directions of the first.
Deviations: the last N mod 256 images of an epoch's permutation are left out (static shapes); the last epoch is reported
and bridged.
"""
from ltjax import recipes


def get_config(imbalance="100"):
  given = recipes.arguments(imbalance, imbalance=100.0, classifier=("norm_fc", "linear", "wn", "wn_g"), g=0.5)
  config = recipes.cifar_lt(classes=100, imbalance=given["imbalance"])
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
