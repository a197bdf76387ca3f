"""Cross entropy with mixup, then classifier re-training (cRT; Kang et al., ICLR 2020) on CIFAR-LT.

python -m ltjax.main --config=configs/ce_mixup_crt_cifar.py --workdir=runs/ce_mixup_crt    CIFAR-10-LT, imbalance 100
    --config=configs/ce_mixup_crt_cifar.py:cifar100,imbalance=50    another data set and imbalance
Published on CIFAR-10-LT 79.15 (imbalance 100; 73.06 at 200, 84.21 at 50; thesis table 5.2). On CIFAR-100-LT 45.12
(imbalance 100; 41.73 at 200, 50.86 at 50; thesis table 5.2).
ltjax: see benchmarks/results.
ResNet-32; the first stage is ce_cifar.py's with mixup, the second has the 10 cosine epochs of the thesis's table 5.1.
Deviations: each epoch leaves out the last N mod 128 images of its permutation (static shapes); the last epoch, not the
best on the test set, is reported and starts the next stage; the second stage's learning rate is 0.1, where thesis table
5.1 has a decay ratio of 0.2; the frozen backbone's BatchNorm evaluates.
"""
from ltjax import recipes


def get_config(arguments="cifar10"):
  config = recipes.cifar_lt(**recipes.arguments(arguments, dataset=recipes.CIFAR, imbalance=100.0))
  config.head = dict(name="Linear")
  config.stages = ("representation", "classifier")
  config.representation = recipes.stage(
      epochs=200, batch_size=128, lr=dict(name="multi_step", base=0.1, at=(160, 180), factors=(0.01, 0.0001), warmup=5),
      optimizer=recipes.sgd(2e-4), mixup=1.0, loss=dict(name="cross_entropy"))
  config.classifier = recipes.stage(
      epochs=10, batch_size=128, lr=dict(name="cosine", base=0.1), optimizer=recipes.sgd(2e-4), train=("head/.*",),
      reset=("head/.*",), batch_norm="eval", sampler=dict(name="class_balanced"), loss=dict(name="cross_entropy"))
  return config
