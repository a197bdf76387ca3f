"""Key point sensitive loss with gradient adjustment (KPS; Li et al., TPAMI 2022; thesis ch. 3) on Places-LT.

python -m ltjax.main --config=configs/kps_places_lt.py --workdir=runs/kps_places    default
    --config=configs/kps_places_lt.py:ga=false,batch_size=64                        other arguments
No published number on Places-LT.
ltjax: see benchmarks/results.
ResNet-152; the schedule of FBL on Places-LT (thesis table 4.1), the margin of iNaturalist and gradient adjustment from
the first decay: the thesis does not train on Places-LT. Only the last block of the network and the head train, so give
ImageNet weights: --config.pretrained=resnet152.pth. As in the released codes of GCL, FBL and MiSLAS, the last block is
drawn anew and trains with its BatchNorm, and all else evaluates; part=stage4 goes on with the complete last stage, in
which every BatchNorm evaluates.
Deviations: each epoch leaves out the last N mod 512 images of its permutation (static shapes); the last epoch is
reported, not the best on the test set; the schedule is ours.
"""
from ltjax import recipes


def get_config(arguments="resnet152"):
  given = recipes.arguments(
      arguments, backbone=recipes.resnets("resnet152"), ga=True, mixup=0.0, max_margin=0.3,
      part=("stage4_block3", "stage4"), batch_size=0)
  config = recipes.places_lt(
      augment=recipes.crop_flip(224),
      backbone=recipes.resnet(given["backbone"]))
  config.head = dict(name="Cosine")
  config.stages = ("representation",)
  adjust = dict(name="switch", at=60) if given["ga"] else 0.0
  config.representation = recipes.stage(
      epochs=90, batch_size=512, lr=dict(name="multi_step", base=0.2, at=(60, 80), factors=(0.1, 0.01), warmup=5),
      optimizer=recipes.sgd(5e-4), **recipes.last_block(given["backbone"], given["part"]),
      mixup=given["mixup"],
      adjust=dict(name="kps", max_margin=given["max_margin"], base=50.0, scale=15.0, adjust=adjust),
      loss=dict(name="cross_entropy"))
  return recipes.scaled_batch(config, given["batch_size"])
