"""Normalised classifiers for long-tailed representations (NormFC of CAMC; Zhang et al., 2021) on iNaturalist 2018.

python -m ltjax.main --config=configs/norm_fc_inat.py --workdir=runs/norm_fc_inat    default
    --config=configs/norm_fc_inat.py:classifier=wn                                   other arguments
No published numbers on iNaturalist: table II is ImageNet-LT's.
ltjax: see benchmarks/results.
ResNet-50. One run gives the three evaluations of the paper's table II: as trained (stage representation), re-trained
with class-balanced sampling (classifier), and nearest class mean (post-hoc). Its rows are classifier=linear,
classifier=wn, classifier=wn_g, g=1 and, as it stands, g=0.5. The paper's optimiser and epochs; weight decay 1e-4 and no
colour jitter as in Kang et al., whom the paper follows.
Deviations: each epoch leaves out the last N mod 256 images of its permutation (static shapes); the last epoch, not the
best on the test set, is reported and starts the next stage; the second stage re-trains a normalised classifier for all
rows, where the paper re-trains a linear one for linear, wn, wn_g and g=1.
"""
from ltjax import recipes


def get_config(arguments="resnet50"):
  given = recipes.arguments(
      arguments, backbone=recipes.resnets("resnet50"), classifier=("norm_fc", "linear", "wn", "wn_g"), g=0.5,
      batch_size=0)
  config = recipes.inat(
      augment=recipes.crop_flip(224),
      backbone=recipes.resnet(given["backbone"]))
  config.head = dict(norm_fc=dict(name="NormalizedLinear", scale=given["g"]), linear=dict(name="Linear"),
                     wn=dict(name="WeightNorm"), wn_g=dict(name="WeightNorm", shared=True))[given["classifier"]]
  config.stages = ("representation", "classifier")
  config.representation = recipes.stage(
      epochs=200, batch_size=256, lr=dict(name="cosine", base=0.1), optimizer=recipes.sgd(1e-4),
      loss=dict(name="cross_entropy"))
  config.classifier = recipes.stage(
      epochs=10, batch_size=256, lr=dict(name="cosine", base=0.1), optimizer=recipes.sgd(1e-4), train=("head/.*",),
      batch_norm="eval", sampler=dict(name="class_balanced"), loss=dict(name="cross_entropy"),
      head=dict(name="NormalizedLinear", scale=16.0, normalize_features=True))
  config.posthoc = (dict(name="nearest_class_mean", metric="cosine", stage="representation"),)
  return recipes.scaled_batch(config, given["batch_size"])
