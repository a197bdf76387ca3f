"""Label distribution disentangling (LADE; Hong et al., CVPR 2021) on large data sets.

python -m ltjax.main --config=configs/lade_large.py --workdir=runs/lade    ImageNet-LT
    --config=configs/lade_large.py:places_lt,batch_size=128                another data set
Published on ImageNet-LT 51.40 (thesis table 5.7, which does not name its backbone).
ltjax: see benchmarks/results.
The released configurations: on ImageNet-LT ResNeXt-50, 180 epochs, batch size 256, cosine decay from 0.05; on
iNaturalist ResNet-50, 200 epochs, cosine decay from 0.1, with remine 0.5 and weight 0.05; on Places-LT a ResNet-152 for
30 epochs with batch size 128, learning rates 0.1 and, for the network, 0.001, divided by 10 every 10 epochs. On
Places-LT the last block, drawn anew, and the head train, so give ImageNet weights: --config.pretrained=resnet152.pth.
Deviations: each epoch leaves out the last images that fill no batch (static shapes); the last epoch, not the best on
the test set, is reported; on Places-LT the released code trains the complete network, ours the last block.
"""
from ltjax import recipes


def get_config(arguments="imagenet_lt"):
  given = recipes.arguments(arguments, dataset=recipes.LARGE, batch_size=0)
  config = recipes.large_scale(given["dataset"])
  if given["dataset"] == "imagenet_lt":
    config.backbone = recipes.resnet("resnext50")
  config.head = dict(name="Linear")
  config.stages = ("representation",)
  steps = dict(name="multi_step", base=0.1, at=(10, 20), factors=(0.1, 0.01), warmup=0)
  weight, remine = (0.05, 0.5) if given["dataset"] == "inat" else (0.1, 0.1)
  config.representation = recipes.large_stage(
      given["dataset"], loss=dict(name="prior_lade", weight=weight, remine=remine), **dict(
          imagenet_lt=dict(epochs=180, lr=dict(name="cosine", base=0.05), optimizer=recipes.sgd(5e-4)),
          places_lt=dict(epochs=30, batch_size=128, lr=steps, lr_factors=(("backbone/.*", 0.01),)),
          inat=dict(epochs=200, lr=dict(name="cosine", base=0.1)))[given["dataset"]])
  return recipes.scaled_batch(config, given["batch_size"])
