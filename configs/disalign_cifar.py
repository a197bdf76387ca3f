"""Distribution alignment (DisAlign; Zhang et al., CVPR 2021) on CIFAR-LT.

python -m ltjax.main --config=configs/disalign_cifar.py --workdir=runs/disalign    CIFAR-10-LT, imbalance 100
    --config=configs/disalign_cifar.py:cifar100,imbalance=50    another data set and imbalance
No published number in tests/golden/published_results.csv.
ltjax: see benchmarks/results.
The first stage is that of ce_cifar.py. The second freezes it and learns a scale and an offset per class and a
confidence per image: 10 epochs with cosine decay from 0.1 and batch size 256, as in the released code. Ours: class
weights 1/n, where the authors' run on ImageNet-LT has n^-1.2, and weight decay 2e-4.
Deviations: each epoch leaves out the last N mod 128 images of its permutation, N mod 256 in the second stage (static
shapes); the last epoch, not the best on the test set, is reported and starts the next stage.
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
