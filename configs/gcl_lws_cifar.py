"""GCL with learnable scales (LWS; Kang et al., ICLR 2020) in place of cRT on CIFAR-LT (thesis table 5.6).

python -m ltjax.main --config=configs/gcl_lws_cifar.py --workdir=runs/gcl_lws    CIFAR-10-LT, imbalance 100
    --config=configs/gcl_lws_cifar.py:imbalance=50    another imbalance
Published on CIFAR-10-LT 82.25 (imbalance 100; thesis table 5.6).
ltjax: see benchmarks/results.
As gcl_cifar.py, but the second stage freezes the classifier and learns one scale per class.
Deviations: each epoch leaves out the last N mod 64 images of its permutation (static shapes); the last epoch, not the
best on the test set, is reported and starts the next stage; the scales train with the schedule of the re-trained
classifier, because the thesis gives none for them.
"""
from ltjax import recipes


def get_config(arguments="cifar10"):
  config = recipes.cifar_lt(**recipes.arguments(arguments, dataset=("cifar10",), imbalance=100.0))
  config.head = dict(name="Cosine")
  config.stages = ("representation", "classifier")
  config.representation = recipes.stage(
      epochs=200, batch_size=64, lr=dict(name="multi_step", base=0.1, at=(160, 180), factors=(0.1, 0.01), warmup=5),
      optimizer=recipes.sgd(2e-4), mixup=1.0,
      adjust=dict(name="gcl", scale=30.0, noise_scale=0.5),
      loss=dict(name="cross_entropy"))
  config.classifier = recipes.stage(
      epochs=30, batch_size=64, lr=dict(name="cosine", base=0.002), optimizer=recipes.sgd(2e-4), train=("head/scale",),
      head=dict(name="LearnableScale", cosine=True),
      batch_norm="eval", sampler=dict(name="cben", a=0.999, b=0.0009), mixup=1.0,
      adjust=dict(name="gcl", scale=20.0, margin=0.1, noise_scale=0.5),
      loss=dict(name="focal", gamma=1.0, detach=True))
  return config
