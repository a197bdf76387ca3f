"""Feature-balanced loss (FBL; Li et al., ICME 2022; thesis ch. 4) on Places-LT.

python -m ltjax.main --config=configs/fbl_places_lt.py --workdir=runs/fbl_places    default
    --config=configs/fbl_places_lt.py:batch_size=256                                other arguments
    preset=paper    thesis table 4.1 (default); 38.66
    preset=code     the released command, whose defaults are 200 epochs and weight decay 2e-4; 38.66 is the authors'
Published 38.66 (paper table 3).
ltjax: see benchmarks/results.
ResNet-152; thesis table 4.1 (the paper's text has 180 epochs), with the warm-up, lambda (150) and curriculum of the
released code. Only the last block of the network and the head train, so give ImageNet weights:
--config.pretrained=resnet152.pth. As in the released codes of GCL, FBL and MiSLAS, the last block is drawn anew and
trains with its BatchNorm, and all else evaluates; part=stage4 goes on with the complete last stage, in which every
BatchNorm evaluates.
Deviations: each epoch leaves out the last N mod 512 images of its permutation (static shapes); the last epoch is
reported, not the best on the test set.
"""
from ltjax import recipes


def get_config(arguments="resnet152"):
  given = recipes.arguments(
      arguments, backbone=recipes.resnets("resnet152"), preset=("paper", "code"),
      part=("stage4_block3", "stage4"), batch_size=0)
  config = recipes.places_lt(
      augment=recipes.crop_flip(224),
      backbone=recipes.resnet(given["backbone"]))
  config.preset, config.head = given["preset"], dict(name="Linear")
  epochs, weight_decay = dict(paper=(90, 5e-4), code=(200, 2e-4))[config.preset.name]
  config.stages = ("representation",)
  config.representation = recipes.stage(
      epochs=epochs, batch_size=512, lr=dict(name="multi_step", base=0.2, at=(60, 80), factors=(0.1, 0.01), warmup=5),
      optimizer=recipes.sgd(weight_decay), **recipes.last_block(given["backbone"], given["part"]),
      adjust=dict(name="fbl", alpha=dict(name="parabolic", end=150.0, shorten=10)),
      loss=dict(name="cross_entropy"))
  return recipes.scaled_batch(config, given["batch_size"])
