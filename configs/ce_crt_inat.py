"""Cross entropy, then classifier re-training (cRT; Kang et al., ICLR 2020) on iNaturalist 2018.

python -m ltjax.main --config=configs/ce_crt_inat.py --workdir=runs/ce_crt_inat    default
    --config=configs/ce_crt_inat.py:mixup=0.2                                      other arguments
Published 67.6 (CAMC table IV, a copy); with GCL's schedule and mixup the thesis has 70.16 (table 5.3).
ltjax: see benchmarks/results.
ResNet-50 and the released code's configuration (facebookresearch/classifier-balancing), class-aware sampling in the
second stage. epochs=200 is its longer run.
Deviations: each epoch leaves out the last N mod 512 images of its permutation (static shapes); the last epoch, not the
best on the test set, is reported and starts the next stage; the learning rate of the last epoch is not 0 (the released
code's is); the frozen network's BatchNorm evaluates (the released code has --config.classifier.batch_norm=train).
"""
from ltjax import recipes


def get_config(arguments="resnet50"):
  given = recipes.arguments(arguments, backbone=recipes.resnets("resnet50"), mixup=0.0, epochs=90, batch_size=0)
  config = recipes.inat(
      augment=recipes.crop_flip(224),
      backbone=recipes.resnet(given["backbone"]))
  config.head = dict(name="Linear")
  config.stages = ("representation", "classifier")
  config.representation = recipes.stage(
      epochs=given["epochs"], batch_size=512, lr=dict(name="cosine", base=0.2), optimizer=recipes.sgd(1e-4),
      mixup=given["mixup"], loss=dict(name="cross_entropy"))
  config.classifier = recipes.stage(
      epochs=30, batch_size=512, lr=dict(name="cosine", base=0.2), optimizer=recipes.sgd(1e-4), train=("head/.*",),
      reset=("head/.*",), batch_norm="eval", sampler=dict(name="class_aware", samples_per_class=4),
      loss=dict(name="cross_entropy"))
  return recipes.scaled_batch(config, given["batch_size"])
