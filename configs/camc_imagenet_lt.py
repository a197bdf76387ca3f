"""Calibrated class activation maps (CAMC; Zhang et al., 2021) on ImageNet-LT.

python -m ltjax.main --config=configs/camc_imagenet_lt.py --workdir=runs/camc_imagenet    default
    --config=configs/camc_imagenet_lt.py:pick=kmeans                                      other arguments
    preset=paper    the paper; what it leaves silent is our choice (default); 52.4
    preset=kang     second stage as in Kang et al.'s code: class-aware sampling, BatchNorm trains, new classifier; none
Published 52.4 with ResNeXt-50 (many 65.6, medium 48.0, few 29.7; table III), 44.7 with backbone=resnet10, 55.1 with
backbone=resnext152 (table IV), 51.7 with threshold=20, 51.6 with threshold=inf (table III).
ltjax: see benchmarks/results.
ResNeXt-50; the paper's optimiser, epochs, magnitudes (g 0.5, then 16), 5 prototypes and threshold 100; weight decay
5e-4 and colour jitter as in Kang et al., whom the paper follows. Ablations: pick=first or kmeans; shared_fusion=true;
fusion_size=1; fusion_layers=2; normalize_prototypes=true; num_prototypes=; g=.
Deviations: each epoch leaves out the last N mod 256 images of its permutation (static shapes); the last epoch, not the
best on the test set, is reported and starts the next stage.
"""
from ltjax import recipes


def get_config(arguments="resnext50"):
  given = recipes.arguments(
      arguments, backbone=recipes.resnets("resnext50"), preset=recipes.RETRAINED, g=0.5,
      threshold=100.0, num_prototypes=5,
      pick=("random", "first", "kmeans"), shared_fusion=False, fusion_size=3, fusion_layers=1,
      normalize_prototypes=False, batch_size=0)
  backbone, batch_size, g = (given.pop(key) for key in ("backbone", "batch_size", "g"))
  config = recipes.imagenet_lt(
      augment=recipes.crop_flip(224, jitter=0.4),
      backbone=recipes.resnet(backbone))
  config.preset, config.head = given.pop("preset"), dict(name="NormalizedLinear", scale=g)
  config.stages = ("representation", "classifier")
  config.representation = recipes.stage(
      epochs=200, batch_size=256, lr=dict(name="cosine", base=0.1), optimizer=recipes.sgd(5e-4),
      loss=dict(name="cross_entropy"))
  config.classifier = recipes.stage(
      epochs=10, batch_size=256, lr=dict(name="cosine", base=0.1), optimizer=recipes.sgd(5e-4), train=("head/.*",),
      **recipes.retraining(config.preset.name), loss=dict(name="cross_entropy"),
      head=dict(given, name="CAMC", scale=16.0))
  return recipes.scaled_batch(config, batch_size)
