"""Feature-balanced loss (FBL; Li et al., ICME 2022; thesis ch. 4) on Places-LT.

python -m ltjax.main --config=configs/fbl_places_lt.py --workdir=runs/fbl_places    default
    --config=configs/fbl_places_lt.py:batch_size=256                                other arguments
Published 38.66 (paper table 3).
ltjax: see benchmarks/results.
ResNet-152; thesis table 4.1, with the warm-up, lambda (150) and curriculum of the released code. Only the last stage of
the network and the head train, so give ImageNet weights: --config.pretrained=resnet152.pth. The released code of GCL
and FBL trains the last block alone (part=stage4_block3), initialises it anew and trains its BatchNorm; here all
BatchNorm layers evaluate.
Deviations: each epoch leaves out the last N mod 512 images of its permutation (static shapes); the last epoch is
reported, not the best on the test set.
"""
from ltjax import recipes


def get_config(arguments="resnet152"):
  given = recipes.arguments(
      arguments, backbone=recipes.resnets("resnet152"), part=("stage4", "stage4_block3"), batch_size=0)
  config = recipes.places_lt(
      augment=recipes.crop_flip(224),
      backbone=recipes.resnet(given["backbone"]))
  config.head = dict(name="Linear")
  config.stages = ("representation",)
  config.representation = recipes.stage(
      epochs=90, batch_size=512, lr=dict(name="multi_step", base=0.2, at=(60, 80), factors=(0.1, 0.01), warmup=5),
      optimizer=recipes.sgd(5e-4), train=(f"backbone/{given['part']}.*", "head/.*"), batch_norm="eval",
      adjust=dict(name="fbl", alpha=dict(name="parabolic", end=150.0, shorten=10)),
      loss=dict(name="cross_entropy"))
  return recipes.scaled_batch(config, given["batch_size"])
