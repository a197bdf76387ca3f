"""De-confounded training with total direct effect (TDE; Tang et al., NeurIPS 2020) on large data sets.

python -m ltjax.main --config=configs/tde_large.py --workdir=runs/tde    ImageNet-LT
    --config=configs/tde_large.py:places_lt,batch_size=128               another data set
Published on ImageNet-LT 51.8 (many 62.7, medium 48.8, few 31.6; AFA table IV).
ltjax: see benchmarks/results.
The released configuration of ImageNet-LT: ResNeXt-50, 90 epochs, batch size 512, cosine decay from 0.2, weight decay
5e-4, two heads, tau 16, gamma 1/32, alpha 3. The one of Places-LT is the same, from scratch; ours is a pretrained
ResNet-152, as in all configs of Places-LT, and for iNaturalist a ResNet-50 with weight decay 1e-4. On Places-LT the
last block, drawn anew, and the head train, so give ImageNet weights: --config.pretrained=resnet152.pth.
Deviations: each epoch leaves out the last images that fill no batch (static shapes); the last epoch, not the best on
the test set, is reported.
"""
from ltjax import recipes


def get_config(arguments="imagenet_lt"):
  given = recipes.arguments(arguments, dataset=recipes.LARGE, batch_size=0)
  config = recipes.large_scale(given["dataset"])
  if given["dataset"] == "imagenet_lt":
    config.backbone = recipes.resnet("resnext50")
  config.head = dict(name="TDE", alpha=3.0, tau=16.0, gamma=0.03125, num_heads=2)
  config.stages = ("representation",)
  config.representation = recipes.large_stage(
      given["dataset"], epochs=90, batch_size=512, lr=dict(name="cosine", base=0.2),
      optimizer=recipes.sgd(1e-4 if given["dataset"] == "inat" else 5e-4))
  return recipes.scaled_batch(config, given["batch_size"])
