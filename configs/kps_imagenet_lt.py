"""Key point sensitive loss with gradient adjustment (KPS; Li et al., TPAMI 2022; thesis ch. 3) on ImageNet-LT.

python -m ltjax.main --config=configs/kps_imagenet_lt.py --workdir=runs/kps_imagenet    default
    --config=configs/kps_imagenet_lt.py:ga=false,batch_size=64                          other arguments
Published 51.28 with ResNet-50, 52.83 with backbone=resnext50 (thesis table 3.3), 52.95 with mixup (table 3.5):
mixup=0.2, because the thesis gives no value for it.
ltjax: see benchmarks/results.
ResNet-50; thesis table 3.1 and section 3.5; no warm-up. Gradient adjustment starts with the first decay of the learning
rate, epoch 120 (as in the released CIFAR code; the thesis gives no epoch). Ablation: ga=false.
Deviations: each epoch leaves out the last N mod 128 images of its permutation (static shapes); the last epoch is
reported, not the best on the test set; random-resized crops, where the thesis crops 224 pixels of images scaled to 256.
"""
from ltjax import recipes


def get_config(arguments="resnet50"):
  given = recipes.arguments(
      arguments, backbone=recipes.resnets("resnet50"), ga=True, mixup=0.0, max_margin=0.35, batch_size=0)
  config = recipes.imagenet_lt(
      augment=recipes.crop_flip(224),
      backbone=recipes.resnet(given["backbone"]))
  config.head = dict(name="Cosine")
  config.stages = ("representation",)
  adjust = dict(name="switch", at=120) if given["ga"] else 0.0
  config.representation = recipes.stage(
      epochs=180, batch_size=128, lr=dict(name="multi_step", base=0.1, at=(120, 160), factors=(0.1, 0.01)),
      optimizer=recipes.sgd(1e-4), mixup=given["mixup"],
      adjust=dict(name="kps", max_margin=given["max_margin"], base=50.0, scale=15.0, adjust=adjust),
      loss=dict(name="cross_entropy"))
  return recipes.scaled_batch(config, given["batch_size"])
