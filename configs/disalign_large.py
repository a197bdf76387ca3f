"""Distribution alignment (DisAlign; Zhang et al., CVPR 2021) on large data sets.

python -m ltjax.main --config=configs/disalign_large.py --workdir=runs/disalign    ImageNet-LT
    --config=configs/disalign_large.py:places_lt,batch_size=128                    another data set
Published on ImageNet-LT 52.91, on iNaturalist 2018 70.06, on Places-LT 39.30 (thesis table 5.3).
ltjax: see benchmarks/results.
ResNet-50, on Places-LT ResNet-152, with the schedule of thesis table 5.1 as in ce_imagenet_lt.py, ce_places_lt.py and
ce_inat.py. The second stage freezes it and learns a scale and an offset per class and a confidence per image: 10 epochs
with cosine decay from 0.1 and batch size 256, as in the released code. Ours: class weights 1/n, where the authors' run
on ImageNet-LT has n^-1.2. On Places-LT the last block, drawn anew, and the head train, so give ImageNet weights:
--config.pretrained=resnet152.pth.
Deviations: each epoch leaves out the last images that fill no batch (static shapes); the last epoch, not the best on
the test set, is reported and starts the next stage; the thesis quotes the numbers or gives no schedule for them.
"""
from ltjax import recipes


def get_config(arguments="imagenet_lt"):
  given = recipes.arguments(arguments, dataset=recipes.LARGE, batch_size=0)
  config = recipes.large_scale(given["dataset"])
  config.head = dict(name="Linear")
  config.stages = ("representation", "classifier")
  config.representation = recipes.large_stage(given["dataset"])
  config.classifier = recipes.stage(
      epochs=10, batch_size=256, lr=dict(name="cosine", base=0.1), optimizer=config.representation.optimizer.to_dict(),
      train=("head/(logit|confidence)_.*",), head=dict(name="DisAlign"), loss=dict(name="cross_entropy"),
      class_weights=dict(name="inverse_frequency"))
  return recipes.scaled_batch(config, given["batch_size"])
