"""Learnable weight scaling after cross entropy (LWS; Kang et al., ICLR 2020) on CIFAR-LT.

python -m ltjax.main --config=configs/lws_cifar.py --workdir=runs/lws    CIFAR-10-LT, imbalance 100
    --config=configs/lws_cifar.py:cifar100,imbalance=50    others
No published number on these data sets.
ltjax: see benchmarks/results.
ce_cifar.py, then 10 epochs in which one scale a class is learned on a frozen linear classifier; the released code has
5 epochs on large data sets, class-aware sampling as here.
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
      epochs=10, batch_size=128, lr=dict(name="cosine", base=0.1), optimizer=recipes.sgd(2e-4), train=("head/scale",),
      head=dict(name="LearnableScale"), sampler=dict(name="class_aware", samples_per_class=4),
      loss=dict(name="cross_entropy"))
  return config
