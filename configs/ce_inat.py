"""Cross entropy: the baseline of GCL's thesis (ch. 5) on iNaturalist 2018.

python -m ltjax.main --config=configs/ce_inat.py --workdir=runs/ce_inat    default
    --config=configs/ce_inat.py:mixup=0.2,batch_size=128                   other arguments
Published 63.80 (thesis table 5.3). With mixup=0.2 65.77 (thesis table 5.3).
ltjax: see benchmarks/results.
ResNet-50; the schedule of thesis table 5.1, as in the gcl config, with warm-up and decays as GCL's released code has
them (0.1, then 0.01).
Deviations: each epoch leaves out the last N mod 256 images of its permutation (static shapes); the last epoch is
reported, not the best on the test set.
"""
from ltjax import recipes


def get_config(arguments="resnet50"):
  given = recipes.arguments(arguments, backbone=recipes.resnets("resnet50"), mixup=0.0, batch_size=0)
  config = recipes.inat(
      augment=recipes.crop_flip(224),
      backbone=recipes.resnet(given["backbone"]))
  config.head = dict(name="Linear")
  config.stages = ("representation",)
  config.representation = recipes.stage(
      epochs=180, batch_size=256, lr=dict(name="multi_step", base=0.1, at=(120, 160), factors=(0.1, 0.01), warmup=5),
      optimizer=recipes.sgd(1e-4), mixup=given["mixup"], loss=dict(name="cross_entropy"))
  return recipes.scaled_batch(config, given["batch_size"])
