"""Label-distribution-aware margins with deferred re-weighting (Cao et al., NeurIPS 2019) on large data sets.

python -m ltjax.main --config=configs/ldam_drw_large.py --workdir=runs/ldam_drw    ImageNet-LT
    --config=configs/ldam_drw_large.py:places_lt,batch_size=128                    another data set
Published on ImageNet-LT 48.80, on iNaturalist 2018 68.00 (thesis table 3.3); on ImageNet-LT 49.96 in thesis table 5.7.
ltjax: see benchmarks/results.
ResNet-50, on Places-LT ResNet-152, with the schedule of thesis table 5.1 as in ce_imagenet_lt.py, ce_places_lt.py and
ce_inat.py. Margin and scale of the released CIFAR code; re-weighting starts with the first decay of the learning rate,
as there. On Places-LT the last block, drawn anew, and the head train, so give ImageNet weights:
--config.pretrained=resnet152.pth.
Deviations: each epoch leaves out the last images that fill no batch (static shapes); the last epoch, not the best on
the test set, is reported; the thesis quotes the numbers or gives no schedule for them.
"""
from ltjax import recipes


def get_config(arguments="imagenet_lt"):
  given = recipes.arguments(arguments, dataset=recipes.LARGE, batch_size=0)
  config = recipes.large_scale(given["dataset"])
  config.head = dict(name="Cosine")
  config.stages = ("representation",)
  at = dict(imagenet_lt=160, places_lt=60, inat=120)[given["dataset"]]
  config.representation = recipes.large_stage(
      given["dataset"], adjust=dict(name="ldam", max_margin=0.5, scale=30.0),
      class_weights=dict(name="effective_number", beta=dict(name="switch", at=at, before=0.0, after=0.9999)))
  return recipes.scaled_batch(config, given["batch_size"])
