"""Cross entropy: the baseline of GCL's thesis (ch. 5) on ImageNet-LT.

python -m ltjax.main --config=configs/ce_imagenet_lt.py --workdir=runs/ce_imagenet    default
    --config=configs/ce_imagenet_lt.py:mixup=0.2,batch_size=128                       other arguments
Published 44.51 (many 64.91, medium 38.10, few 11.28; thesis table 5.7). With mixup=0.2 45.66 (thesis table 5.3),
with backbone=resnext50 46.65 (thesis table 3.3).
ltjax: see benchmarks/results.
ResNet-50; the schedule of thesis table 5.1, as in the gcl config, with warm-up and decays as GCL's released code has
them (0.1, then 0.01). Colour jitter as in Kang et al., whom the thesis follows.
Deviations: each epoch leaves out the last N mod 256 images of its permutation (static shapes); the last epoch is
reported, not the best on the test set.
"""
from ltjax import recipes


def get_config(arguments="resnet50"):
  given = recipes.arguments(arguments, backbone=recipes.resnets("resnet50"), mixup=0.0, batch_size=0)
  config = recipes.imagenet_lt(
      augment=recipes.crop_flip(224, jitter=0.4),
      backbone=recipes.resnet(given["backbone"]))
  config.head = dict(name="Linear")
  config.stages = ("representation",)
  config.representation = recipes.stage(
      epochs=200, batch_size=256, lr=dict(name="multi_step", base=0.1, at=(160, 180), factors=(0.1, 0.01), warmup=5),
      optimizer=recipes.sgd(2e-4), mixup=given["mixup"], loss=dict(name="cross_entropy"))
  return recipes.scaled_batch(config, given["batch_size"])
