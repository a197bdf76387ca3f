"""Focal loss (Lin et al., ICCV 2017) on large data sets.

python -m ltjax.main --config=configs/focal_large.py --workdir=runs/focal    ImageNet-LT
    --config=configs/focal_large.py:places_lt,batch_size=128                 another data set
Published on ImageNet-LT 45.80, on iNaturalist 2018 60.30 (thesis table 3.3). On ImageNet-LT with backbone=resnext50
43.7 (AFA table IV), with backbone=resnet10 30.5, on Places-LT 34.6 (CAMC table IV); all three are copies.
ltjax: see benchmarks/results.
ResNet-50, on Places-LT ResNet-152, with the schedule of thesis table 5.1 as in ce_imagenet_lt.py, ce_places_lt.py and
ce_inat.py. The softmax form with gamma 1, as in focal_cifar.py. On Places-LT the last block, drawn anew, and the head
train, so give ImageNet weights: --config.pretrained=resnet152.pth.
Deviations: each epoch leaves out the last images that fill no batch (static shapes); the last epoch, not the best on
the test set, is reported; the thesis quotes the numbers or gives no schedule for them.
"""
from ltjax import recipes


def get_config(arguments="imagenet_lt"):
  given = recipes.arguments(arguments, dataset=recipes.LARGE, backbone="", batch_size=0)
  config = recipes.large_scale(given["dataset"], given["backbone"])
  config.head = dict(name="Linear")
  config.stages = ("representation",)
  config.representation = recipes.large_stage(
      given["dataset"], loss=dict(name="focal", gamma=1.0))
  return recipes.scaled_batch(config, given["batch_size"])
