"""Additive angular margin loss (ArcFace; Deng et al., CVPR 2019) on large data sets.

python -m ltjax.main --config=configs/arcface_large.py --workdir=runs/arcface    ImageNet-LT
    --config=configs/arcface_large.py:places_lt,batch_size=128                   another data set
Published on ImageNet-LT 44.54, with backbone=resnext50 48.49, on iNaturalist 2018 63.86 (thesis table 3.3).
ltjax: see benchmarks/results.
ResNet-50, on Places-LT ResNet-152, with the schedule of thesis table 5.1 as in ce_imagenet_lt.py, ce_places_lt.py and
ce_inat.py. Scale 30 and margin 0.5 are ours, because the thesis gives none. On Places-LT the last block, drawn anew,
and the head train, so give ImageNet weights: --config.pretrained=resnet152.pth.
Deviations: each epoch leaves out the last images that fill no batch (static shapes); the last epoch, not the best on
the test set, is reported; the thesis quotes the numbers or gives no schedule for them.
"""
from ltjax import recipes


def get_config(arguments="imagenet_lt"):
  given = recipes.arguments(arguments, dataset=recipes.LARGE, backbone="", batch_size=0)
  config = recipes.large_scale(given["dataset"], given["backbone"])
  config.head = dict(name="Cosine")
  config.stages = ("representation",)
  config.representation = recipes.large_stage(
      given["dataset"], adjust=dict(name="arcface", margin=0.5, scale=30.0))
  return recipes.scaled_batch(config, given["batch_size"])
