"""Logit adjustment by the training prior (Menon et al., ICLR 2021; with tau 1 the balanced softmax) on large data sets.

python -m ltjax.main --config=configs/logit_adjustment_large.py --workdir=runs/logit_adjustment    ImageNet-LT
    --config=configs/logit_adjustment_large.py:places_lt,batch_size=128                            another data set
Published on ImageNet-LT 51.11, on iNaturalist 2018 66.36 (thesis table 5.3); 48.89 and 68.44 in thesis table 3.3, 50.44
and 66.36 in table 4.3.
ltjax: see benchmarks/results.
ResNet-50, on Places-LT ResNet-152, with the schedule of thesis table 5.1 as in ce_imagenet_lt.py, ce_places_lt.py and
ce_inat.py. On Places-LT the last block, drawn anew, and the head train, so give ImageNet weights:
--config.pretrained=resnet152.pth.
Deviations: each epoch leaves out the last images that fill no batch (static shapes); the last epoch, not the best on
the test set, is reported; the thesis quotes the numbers or gives no schedule for them.
"""
from ltjax import recipes


def get_config(arguments="imagenet_lt"):
  given = recipes.arguments(arguments, dataset=recipes.LARGE, batch_size=0)
  config = recipes.large_scale(given["dataset"])
  config.head = dict(name="Linear")
  config.stages = ("representation",)
  config.representation = recipes.large_stage(
      given["dataset"], adjust=dict(name="logit_adjustment", tau=1.0))
  return recipes.scaled_batch(config, given["batch_size"])
