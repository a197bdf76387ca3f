"""Calibrated class activation maps (CAMC; Zhang et al., 2021) on Places-LT.

python -m ltjax.main --config=configs/camc_places_lt.py --workdir=runs/camc_places    default
    --config=configs/camc_places_lt.py:pick=kmeans                                    other arguments
    preset=paper    the paper; what it leaves silent is our choice (default); 39.1
    preset=kang     second stage as in Kang et al.'s code: class-aware sampling, BatchNorm trains, new classifier; none
Published 39.1 (table IV).
ltjax: see benchmarks/results.
ResNet-152; the paper's optimiser, epochs, magnitudes (g 0.5, then 16), 5 prototypes and threshold 100 (of ImageNet-LT;
the paper gives none here); weight decay 5e-4 and colour jitter as in Kang et al., whom the paper follows. Ablations:
pick=first or kmeans; shared_fusion=true; fusion_size=1; fusion_layers=2; normalize_prototypes=true; num_prototypes=;
g=. Only the last block of the network and the head train, so give ImageNet weights: --config.pretrained=resnet152.pth.
As in the released codes of GCL, FBL and MiSLAS, the last block is drawn anew and trains with its BatchNorm, and all
else evaluates; part=stage4 goes on with the complete last stage, in which every BatchNorm evaluates.
Deviations: each epoch leaves out the last N mod 256 images of its permutation (static shapes); the last epoch, not the
best on the test set, is reported and starts the next stage.
"""
from ltjax import recipes


def get_config(arguments="resnet152"):
  given = recipes.arguments(
      arguments, backbone=recipes.resnets("resnet152"), preset=recipes.RETRAINED, g=0.5,
      threshold=100.0, num_prototypes=5,
      pick=("random", "first", "kmeans"), shared_fusion=False, fusion_size=3, fusion_layers=1,
      normalize_prototypes=False, part=("stage4_block3", "stage4"), batch_size=0)
  backbone, part, batch_size, g = (given.pop(key) for key in ("backbone", "part", "batch_size", "g"))
  config = recipes.places_lt(
      augment=recipes.crop_flip(224, jitter=0.4),
      backbone=recipes.resnet(backbone))
  config.preset, config.head = given.pop("preset"), dict(name="NormalizedLinear", scale=g)
  config.stages = ("representation", "classifier")
  config.representation = recipes.stage(
      epochs=200, batch_size=256, lr=dict(name="cosine", base=0.1), optimizer=recipes.sgd(5e-4),
      **recipes.last_block(backbone, part),
      loss=dict(name="cross_entropy"))
  config.classifier = recipes.stage(
      epochs=10, batch_size=256, lr=dict(name="cosine", base=0.1), optimizer=recipes.sgd(5e-4), train=("head/.*",),
      **recipes.retraining(config.preset.name), loss=dict(name="cross_entropy"),
      head=dict(given, name="CAMC", scale=16.0))
  return recipes.scaled_batch(config, batch_size)
