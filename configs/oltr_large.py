"""Modulated attention and a memory of class centroids (OLTR; Liu et al., CVPR 2019) on large data sets.

python -m ltjax.main --config=configs/oltr_large.py --workdir=runs/oltr    ImageNet-LT
    --config=configs/oltr_large.py:places_lt,batch_size=64                 another data set
Published on ImageNet-LT with ResNet-10 37.3, with backbone=resnext50 46.3, with backbone=resnext152 50.3, on Places-LT
35.9 (CAMC table IV); on ImageNet-LT with backbone=resnet50 47.72 (thesis table 5.7), with backbone=resnext50 41.9 (AFA
table IV). All are copies.
ltjax: see benchmarks/results.
The released configurations (zhmiao/OpenLongTailRecognition-OLTR): on ImageNet-LT 30 epochs of cross entropy, then 60
that cycle through the classes, four images at a time, with batch size 256; on Places-LT 30 and 30 with batch size 128,
the second with a frozen network. On iNaturalist 2018, which the paper does not have, ours are those of ImageNet-LT with
a ResNet-50. On Places-LT the last block, drawn anew, and the head train first, so give ImageNet weights:
--config.pretrained=resnet152.pth.
Deviations: each epoch leaves out the last images that fill no batch (static shapes); the last epoch, not the best on
validation images, is reported; the network has no layer between pooling and head (the code has one with 512 units); the
gradient of a centroid is divided by 5 through its learning rate, where the code divides by 1 + the number of images of
its class; on Places-LT the released code first trains the complete network, ours the last block.
"""
from ltjax import recipes


def get_config(arguments="imagenet_lt"):
  given = recipes.arguments(arguments, dataset=recipes.LARGE, backbone="", batch_size=0)
  places = given["dataset"] == "places_lt"
  config = recipes.large_scale(given["dataset"], given["backbone"] or dict(imagenet_lt="resnet10").get(
      given["dataset"], ""))
  config.head, common = dict(name="Linear"), dict(
      batch_size=128 if places else 256, optimizer=recipes.sgd(5e-4))
  config.stages = ("representation", "memory")
  config.representation = recipes.large_stage(
      given["dataset"], **common, epochs=30, lr=dict(name="multi_step", base=0.1, at=(10, 20), factors=(0.1, 0.01)),
      **dict(lr_factors=(("backbone/.*", 0.01),)) if places else {})
  at, base, slow, centroids = ((10, 20), 0.01, 0.01, 0.2) if places else ((20, 40), 0.1, 0.1, 0.02)
  config.memory = recipes.stage(
      **common, epochs=30 if places else 60, lr=dict(name="multi_step", base=base, at=at, factors=(0.1, 0.01)),
      sampler=dict(name="class_aware", samples_per_class=4), head=dict(name="OLTR"), batch_norm="train",
      head_init=dict(name="class_mean"), train=("head/.*",) if places else (".*",), lr_factors=(
          ("backbone/.*", slow), ("head/attention_.*", slow), ("head/centroids", centroids))[int(places):],
      loss=dict(name="discriminative_centroids", weight=0.01, repulsion=0.01, margin=10.0))
  return recipes.scaled_batch(config, given["batch_size"])
