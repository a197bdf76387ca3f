"""Normalised classifiers for long-tailed representations (NormFC of CAMC; Zhang et al., 2021) on Places-LT.

python -m ltjax.main --config=configs/norm_fc_places_lt.py --workdir=runs/norm_fc_places    default
    --config=configs/norm_fc_places_lt.py:classifier=wn                                     other arguments
No published numbers on Places-LT: table II is ImageNet-LT's.
ltjax: see benchmarks/results.
ResNet-152. One run gives the three evaluations of the paper's table II: as trained (stage representation), re-trained
with class-balanced sampling (classifier), and nearest class mean (post-hoc). Its rows are classifier=linear,
classifier=wn, classifier=wn_g, g=1 and, as it stands, g=0.5. The paper's optimiser and epochs; weight decay 5e-4 and
colour jitter as in Kang et al., whom the paper follows. Only the last stage of the network and the head train, so give
ImageNet weights: --config.pretrained=resnet152.pth. The released code of GCL and FBL trains the last block alone
(part=stage4_block3), initialises it anew and trains its BatchNorm; here all BatchNorm layers evaluate.
Deviations: each epoch leaves out the last N mod 256 images of its permutation (static shapes); the last epoch, not the
best on the test set, is reported and starts the next stage; the second stage re-trains a normalised classifier for all
rows, where the paper re-trains a linear one for linear, wn, wn_g and g=1.
"""
from ltjax import recipes


def get_config(arguments="resnet152"):
  given = recipes.arguments(
      arguments, backbone=recipes.resnets("resnet152"), classifier=("norm_fc", "linear", "wn", "wn_g"), g=0.5,
      part=("stage4", "stage4_block3"), batch_size=0)
  config = recipes.places_lt(
      augment=recipes.crop_flip(224, jitter=0.4),
      backbone=recipes.resnet(given["backbone"]))
  config.head = dict(norm_fc=dict(name="NormalizedLinear", scale=given["g"]), linear=dict(name="Linear"),
                     wn=dict(name="WeightNorm"), wn_g=dict(name="WeightNorm", shared=True))[given["classifier"]]
  config.stages = ("representation", "classifier")
  config.representation = recipes.stage(
      epochs=200, batch_size=256, lr=dict(name="cosine", base=0.1), optimizer=recipes.sgd(5e-4),
      train=(f"backbone/{given['part']}.*", "head/.*"), batch_norm="eval",
      loss=dict(name="cross_entropy"))
  config.classifier = recipes.stage(
      epochs=10, batch_size=256, lr=dict(name="cosine", base=0.1), optimizer=recipes.sgd(5e-4), train=("head/.*",),
      batch_norm="eval", sampler=dict(name="class_balanced"), loss=dict(name="cross_entropy"),
      head=dict(name="NormalizedLinear", scale=16.0, normalize_features=True))
  config.posthoc = (dict(name="nearest_class_mean", metric="cosine", stage="representation"),)
  return recipes.scaled_batch(config, given["batch_size"])
