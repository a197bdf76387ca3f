"""Learnable weight scaling after cross entropy (LWS; Kang et al., ICLR 2020) on CIFAR-LT.

python -m ltjax.main --config=configs/lws_cifar.py --workdir=runs/lws    CIFAR-10-LT, imbalance 100
    --config=configs/lws_cifar.py:cifar100,imbalance=50    another data set and imbalance
No published number in tests/golden/published_results.csv.
ltjax: see benchmarks/results.
The first stage is that of ce_cifar.py. The second freezes it and learns one scale per class with class-aware sampling,
as the released code does for 5 epochs on ImageNet-LT. Ours: 10 epochs, with cosine decay from 0.1.
Deviations: each epoch leaves out the last N mod 128 images of its permutation (static shapes); the last epoch, not the
best on the test set, is reported and starts the next stage.
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
