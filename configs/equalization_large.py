"""Softmax equalisation loss (Tan et al., CVPR 2020) on large data sets.

python -m ltjax.main --config=configs/equalization_large.py --workdir=runs/equalization    ImageNet-LT
    --config=configs/equalization_large.py:places_lt,batch_size=128                        another data set
Published on ImageNet-LT 47.30, with backbone=resnext50 49.10, on iNaturalist 2018 61.63 (thesis table 3.3).
ltjax: see benchmarks/results.
ResNet-50, on Places-LT ResNet-152, with the schedule of thesis table 5.1 as in ce_imagenet_lt.py, ce_places_lt.py and
ce_inat.py. The threshold is ours: half of 1/C, as 0.005 is for CIFAR-100 in equalization_cifar.py; so is the keep rate
0.9. On Places-LT the last block, drawn anew, and the head train, so give ImageNet weights:
--config.pretrained=resnet152.pth.
Deviations: each epoch leaves out the last images that fill no batch (static shapes); the last epoch, not the best on
the test set, is reported; the thesis quotes the numbers or gives no schedule for them.
"""
from ltjax import recipes


def get_config(arguments="imagenet_lt"):
  given = recipes.arguments(
      arguments, dataset=recipes.LARGE, threshold=dict(imagenet_lt=0.0005, places_lt=0.0014, inat=0.00006),
      backbone="", batch_size=0)
  config = recipes.large_scale(given["dataset"], given["backbone"])
  config.head = dict(name="Linear")
  config.stages = ("representation",)
  config.representation = recipes.large_stage(
      given["dataset"], adjust=dict(name="softmax_equalization", threshold=given["threshold"], keep=0.9))
  return recipes.scaled_batch(config, given["batch_size"])
