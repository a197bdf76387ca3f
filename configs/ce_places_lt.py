"""Cross entropy: the baseline of GCL's thesis (ch. 5) on Places-LT.

python -m ltjax.main --config=configs/ce_places_lt.py --workdir=runs/ce_places    default
    --config=configs/ce_places_lt.py:mixup=0.2,batch_size=128                     other arguments
Published 27.13 (thesis table 5.3). With mixup=0.2 29.51 (thesis table 5.3).
ltjax: see benchmarks/results.
ResNet-152; the schedule of thesis table 5.1, as in the gcl config, with warm-up and decays as GCL's released code has
them (0.1, then 0.01). Only the last block of the network and the head train, so give ImageNet weights:
--config.pretrained=resnet152.pth. As in the released codes of GCL, FBL and MiSLAS, the last block is drawn anew and
trains with its BatchNorm, and all else evaluates; part=stage4 goes on with the complete last stage, in which every
BatchNorm evaluates.
Deviations: each epoch leaves out the last N mod 512 images of its permutation (static shapes); the last epoch is
reported, not the best on the test set.
"""
from ltjax import recipes


def get_config(arguments="resnet152"):
  given = recipes.arguments(
      arguments, backbone=recipes.resnets("resnet152"), mixup=0.0, part=("stage4_block3", "stage4"), batch_size=0)
  config = recipes.places_lt(
      augment=recipes.crop_flip(224),
      backbone=recipes.resnet(given["backbone"]))
  config.head = dict(name="Linear")
  config.stages = ("representation",)
  config.representation = recipes.stage(
      epochs=90, batch_size=512, lr=dict(name="multi_step", base=0.2, at=(60, 80), factors=(0.1, 0.01), warmup=5),
      optimizer=recipes.sgd(5e-4), **recipes.last_block(given["backbone"], given["part"]),
      mixup=given["mixup"], loss=dict(name="cross_entropy"))
  return recipes.scaled_batch(config, given["batch_size"])
