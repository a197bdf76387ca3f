"""Distribution alignment (DisAlign; Zhang et al., CVPR 2021) on CIFAR-LT.

python -m ltjax.main --config=configs/disalign_cifar.py --workdir=runs/disalign    CIFAR-10-LT, imbalance 100
    --config=configs/disalign_cifar.py:cifar100,imbalance=50    others
No published number on these data sets.
ltjax: see benchmarks/results.
ce_cifar.py, then 10 epochs of learning rate 0.1 at batch size 256 in which scale, bias and confidence are learned on
top of a frozen linear classifier. The paper re-weights with n^-rho, rho 1.2 for its ResNeXt; here rho is 1.
Deviations: the last N mod 128 images of an epoch's permutation are left out (static shapes); the last epoch is
reported, not the best on the test set.
"""
from ltjax import recipes


def get_config(arguments="cifar10"):
  config = recipes.cifar_lt(**recipes.arguments(arguments, dataset=recipes.CIFAR, imbalance=100.0))
  config.head = dict(name="Linear")
  config.stages = ("representation", "classifier")
  config.representation = recipes.stage(
      epochs=200, batch_size=128, lr=dict(name="multi_step", base=0.1, at=(160, 180), factors=(0.01, 0.0001), warmup=5),
      optimizer=recipes.sgd(2e-4), loss=dict(name="cross_entropy"))
  config.classifier = recipes.stage(
      epochs=10, batch_size=256, lr=dict(name="cosine", base=0.1), optimizer=recipes.sgd(2e-4),
      train=("head/(logit|confidence)_.*",), head=dict(name="DisAlign"), loss=dict(name="cross_entropy"),
      class_weights=dict(name="inverse_frequency"))
  return config
