"""Cross entropy, then classifier re-training (cRT; Kang et al., ICLR 2020) on Places-LT.

python -m ltjax.main --config=configs/ce_crt_places_lt.py --workdir=runs/ce_crt_places    default
    --config=configs/ce_crt_places_lt.py:mixup=0.2                                        other arguments
Published 36.7 (CAMC table IV, a copy); with GCL's schedule and mixup the thesis has 38.51 (table 5.3).
ltjax: see benchmarks/results.
ResNet-152; the second stage, and the learning rates of classifier and network (0.1, 0.01), as in the released code's
configuration (facebookresearch/classifier-balancing), class-aware sampling in the second stage. Only the last block of
the network and the head train, so give ImageNet weights: --config.pretrained=resnet152.pth. As in the released codes of
GCL, FBL and MiSLAS, the last block is drawn anew and trains with its BatchNorm, and all else evaluates; part=stage4
goes on with the complete last stage, in which every BatchNorm evaluates.
Deviations: each epoch leaves out the last N mod 256 images of its permutation (static shapes); the last epoch, not the
best on the test set, is reported and starts the next stage; the learning rate of the last epoch is not 0 (the released
code's is); the frozen network's BatchNorm evaluates (the released code has --config.classifier.batch_norm=train); the
30 epochs of the first stage are ours, because the authors released no configuration for it.
"""
from ltjax import recipes


def get_config(arguments="resnet152"):
  given = recipes.arguments(
      arguments, backbone=recipes.resnets("resnet152"), mixup=0.0, part=("stage4_block3", "stage4"), batch_size=0)
  config = recipes.places_lt(
      augment=recipes.crop_flip(224, jitter=0.4),
      backbone=recipes.resnet(given["backbone"]))
  config.head = dict(name="Linear")
  config.stages = ("representation", "classifier")
  config.representation = recipes.stage(
      epochs=30, batch_size=256, lr=dict(name="cosine", base=0.1), optimizer=recipes.sgd(5e-4),
      **recipes.last_block(given["backbone"], given["part"]), lr_factors=(("backbone/.*", 0.1),),
      mixup=given["mixup"], loss=dict(name="cross_entropy"))
  config.classifier = recipes.stage(
      epochs=10, batch_size=256, lr=dict(name="cosine", base=0.1), optimizer=recipes.sgd(5e-4), train=("head/.*",),
      reset=("head/.*",), batch_norm="eval", sampler=dict(name="class_aware", samples_per_class=4),
      loss=dict(name="cross_entropy"))
  return recipes.scaled_batch(config, given["batch_size"])
