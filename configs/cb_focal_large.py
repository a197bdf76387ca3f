"""Class-balanced focal loss (Cui et al., CVPR 2019) on large data sets.

python -m ltjax.main --config=configs/cb_focal_large.py --workdir=runs/cb_focal    ImageNet-LT
    --config=configs/cb_focal_large.py:places_lt,batch_size=128                    another data set
Published on iNaturalist 2018 61.12 (thesis table 3.3).
ltjax: see benchmarks/results.
ResNet-50, on Places-LT ResNet-152, with the schedule of thesis table 5.1 as in ce_imagenet_lt.py, ce_places_lt.py and
ce_inat.py. The loss, weights (beta 0.9999) and classifier bias are those of cb_focal_cifar.py. On Places-LT the last
block, drawn anew, and the head train, so give ImageNet weights: --config.pretrained=resnet152.pth.
Deviations: each epoch leaves out the last images that fill no batch (static shapes); the last epoch, not the best on
the test set, is reported; the thesis quotes the numbers or gives no schedule for them.
"""
from ltjax import recipes


def get_config(arguments="imagenet_lt"):
  given = recipes.arguments(arguments, dataset=recipes.LARGE, batch_size=0)
  config = recipes.large_scale(given["dataset"])
  config.head = dict(name="Linear", rare_start=True)
  config.stages = ("representation",)
  config.representation = recipes.large_stage(
      given["dataset"], loss=dict(name="class_balanced_focal", gamma=1.0), reduce="mean",
      class_weights=dict(name="effective_number", beta=0.9999))
  config.representation.optimizer = dict(config.representation.optimizer, no_decay=("head/bias",))
  return recipes.scaled_batch(config, given["batch_size"])
