"""Cross entropy, then classifier re-training (cRT; Kang et al., ICLR 2020) on ImageNet-LT.

python -m ltjax.main --config=configs/ce_crt_imagenet_lt.py --workdir=runs/ce_crt_imagenet    default
    --config=configs/ce_crt_imagenet_lt.py:mixup=0.2                                          other arguments
Published 49.6 with ResNeXt-50 (many 61.8, medium 46.2, few 27.4), 44.4 after the first stage (the released code's
page). CAMC copies 49.5, backbone=resnet10 41.8 and backbone=resnext152 52.4 (table IV). With GCL's schedule, ResNet-50
and mixup the thesis has 51.68 (table 5.3).
ltjax: see benchmarks/results.
ResNeXt-50 and the released code's configuration (facebookresearch/classifier-balancing), class-aware sampling in the
second stage.
Deviations: each epoch leaves out the last N mod 512 images of its permutation (static shapes); the last epoch, not the
best on the test set, is reported and starts the next stage; the learning rate of the last epoch is not 0 (the released
code's is); the frozen network's BatchNorm evaluates (the released code has --config.classifier.batch_norm=train).
"""
from ltjax import recipes


def get_config(arguments="resnext50"):
  given = recipes.arguments(arguments, backbone=recipes.resnets("resnext50"), mixup=0.0, batch_size=0)
  config = recipes.imagenet_lt(
      augment=recipes.crop_flip(224, jitter=0.4),
      backbone=recipes.resnet(given["backbone"]))
  config.head = dict(name="Linear")
  config.stages = ("representation", "classifier")
  config.representation = recipes.stage(
      epochs=90, batch_size=512, lr=dict(name="cosine", base=0.2), optimizer=recipes.sgd(5e-4),
      mixup=given["mixup"], loss=dict(name="cross_entropy"))
  config.classifier = recipes.stage(
      epochs=10, batch_size=512, lr=dict(name="cosine", base=0.2), optimizer=recipes.sgd(5e-4), train=("head/.*",),
      reset=("head/.*",), batch_norm="eval", sampler=dict(name="class_aware", samples_per_class=4),
      loss=dict(name="cross_entropy"))
  return recipes.scaled_batch(config, given["batch_size"])
