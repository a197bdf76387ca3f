"""Feature-balanced loss (FBL; Li et al., ICME 2022; thesis ch. 4) on ImageNet-LT.

python -m ltjax.main --config=configs/fbl_imagenet_lt.py --workdir=runs/fbl_imagenet    default
    --config=configs/fbl_imagenet_lt.py:batch_size=256                                  other arguments
    preset=paper    the paper's training details (default); 50.70
    preset=code     the released command, whose defaults are 200 epochs and weight decay 2e-4; 50.70 is the authors'
Published 50.70 (paper table 3).
ltjax: see benchmarks/results.
ResNet-50; the paper's 180 epochs with the decays (120, 160), warm-up, lambda (150) and curriculum of the released code;
the weight decay (2e-4) of thesis table 4.1, which has 200 epochs and decays at 160 and 180.
Deviations: each epoch leaves out the last N mod 512 images of its permutation (static shapes); the last epoch is
reported, not the best on the test set.
"""
from ltjax import recipes


def get_config(arguments="resnet50"):
  given = recipes.arguments(
      arguments, backbone=recipes.resnets("resnet50"), preset=("paper", "code"), batch_size=0)
  config = recipes.imagenet_lt(
      augment=recipes.crop_flip(224),
      backbone=recipes.resnet(given["backbone"]))
  config.preset, config.head = given["preset"], dict(name="Linear")
  config.stages = ("representation",)
  config.representation = recipes.stage(
      epochs=dict(paper=180, code=200)[config.preset.name], batch_size=512,
      lr=dict(name="multi_step", base=0.2, at=(120, 160), factors=(0.1, 0.01), warmup=5),
      optimizer=recipes.sgd(2e-4),
      adjust=dict(name="fbl", alpha=dict(name="parabolic", end=150.0, shorten=10)), loss=dict(name="cross_entropy"))
  return recipes.scaled_batch(config, given["batch_size"])
