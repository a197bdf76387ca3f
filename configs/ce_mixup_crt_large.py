"""Cross entropy with mixup, then classifier re-training (cRT; Kang et al., ICLR 2020) on large data sets.

python -m ltjax.main --config=configs/ce_mixup_crt_large.py --workdir=runs/ce_mixup_crt    ImageNet-LT
    --config=configs/ce_mixup_crt_large.py:places_lt,batch_size=128                        another data set
Published on ImageNet-LT 51.68, on iNaturalist 2018 70.16, on Places-LT 38.51 (thesis table 5.3).
ltjax: see benchmarks/results.
ResNet-50, on Places-LT ResNet-152, with the schedule of thesis table 5.1 as in ce_imagenet_lt.py, ce_places_lt.py and
ce_inat.py. The second stage has the epochs of table 5.1 (10; 30 on iNaturalist and Places-LT), cosine decay from the
first learning rate times the "decay ratio" 0.1, class-balanced draws and a new classifier. On Places-LT the last block,
drawn anew, and the head train, so give ImageNet weights: --config.pretrained=resnet152.pth.
Deviations: each epoch leaves out the last images that fill no batch (static shapes); the last epoch, not the best on
the test set, is reported and starts the next stage.
"""
from ltjax import recipes


def get_config(arguments="imagenet_lt"):
  given = recipes.arguments(arguments, dataset=recipes.LARGE, batch_size=0)
  config = recipes.large_scale(given["dataset"])
  config.head = dict(name="Linear")
  config.stages = ("representation", "classifier")
  config.representation = first = recipes.large_stage(given["dataset"], mixup=0.2)
  config.classifier = recipes.stage(
      epochs=10 if given["dataset"] == "imagenet_lt" else 30, batch_size=first.batch_size,
      lr=dict(name="cosine", base=0.02 if given["dataset"] == "places_lt" else 0.01),
      optimizer=first.optimizer.to_dict(), train=("head/.*",),
      reset=("head/.*",), batch_norm="eval", sampler=dict(name="class_balanced"), loss=dict(name="cross_entropy"))
  return recipes.scaled_batch(config, given["batch_size"])
