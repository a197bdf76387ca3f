"""The cosine classifier (Gidaris and Komodakis, CVPR 2018; Qi et al., CVPR 2018) on large data sets.

python -m ltjax.main --config=configs/cosine_large.py --workdir=runs/cosine    ImageNet-LT
    --config=configs/cosine_large.py:places_lt,batch_size=128                  another data set
Published on ImageNet-LT 47.6 (many 67.3, medium 41.3, few 14.0; AFA table IV).
ltjax: see benchmarks/results.
z_c = g <x/|x|, w_c/|w_c|> with cross entropy. AFA copies the number from Tang et al. (TDE, NeurIPS 2020), whose code
has no configuration of it: ResNeXt-50, the schedule and the scale 16 are those of its TDE, as in tde_large.py, with one
head; scale= changes it. On Places-LT the last block, drawn anew, and the head train, so give ImageNet weights:
--config.pretrained=resnet152.pth.
Deviations: each epoch leaves out the last images that fill no batch (static shapes); the last epoch, not the best on
the test set, is reported.
"""
from ltjax import recipes


def get_config(arguments="imagenet_lt"):
  given = recipes.arguments(arguments, dataset=recipes.LARGE, scale=16.0, batch_size=0)
  config = recipes.large_scale(given["dataset"])
  if given["dataset"] == "imagenet_lt":
    config.backbone = recipes.resnet("resnext50")
  config.head = dict(name="NormalizedLinear", scale=given["scale"], normalize_features=True)
  config.stages = ("representation",)
  config.representation = recipes.large_stage(
      given["dataset"], epochs=90, batch_size=512, lr=dict(name="cosine", base=0.2),
      optimizer=recipes.sgd(1e-4 if given["dataset"] == "inat" else 5e-4))
  return recipes.scaled_batch(config, given["batch_size"])
