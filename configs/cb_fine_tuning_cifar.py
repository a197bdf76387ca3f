"""Class-balanced fine-tuning (Cui et al., CVPR 2018) on CIFAR-LT.

python -m ltjax.main --config=configs/cb_fine_tuning_cifar.py --workdir=runs/cb_fine_tuning   CIFAR-10-LT, imbalance 100
    --config=configs/cb_fine_tuning_cifar.py:cifar100,imbalance=50    another data set and imbalance
Published on CIFAR-10-LT 71.3 (imbalance 100; 86.4 at 10, 86.3 at 20, 77.4 at 50, 66.2 at 200; CAMC table V). On
CIFAR-100-LT 41.8 (imbalance 100; 57.6 at 10, 52.3 at 20, 46.4 at 50, 38.7 at 200; CAMC table V).
ltjax: see benchmarks/results.
First cross entropy on all images as in ce_cifar.py, then the complete network goes on with classes drawn equally often
and a small learning rate. CAMC copies the numbers from Jamal et al. (CVPR 2020), who give no setting of the second
stage: its 20 epochs and the cosine decay from 0.001 are ours; rate= changes the latter. Cui et al. fine-tune large
networks on a balanced part of iNaturalist, at a rate far below the first one.
Deviations: each epoch leaves out the last N mod 128 images of its permutation (static shapes); the second stage draws
from the long-tailed set, so images of small classes repeat; the last epoch is reported and starts the next stage.
"""
from ltjax import recipes


def get_config(arguments="cifar10"):
  given = recipes.arguments(arguments, dataset=recipes.CIFAR, imbalance=100.0, rate=0.001)
  config = recipes.cifar_lt(given["dataset"], imbalance=given["imbalance"])
  config.head = dict(name="Linear")
  config.stages = ("representation", "fine_tuning")
  common = dict(batch_size=128, optimizer=recipes.sgd(2e-4), loss=dict(name="cross_entropy"))
  config.representation = recipes.stage(
      epochs=200, lr=dict(name="multi_step", base=0.1, at=(160, 180), factors=(0.01, 0.0001), warmup=5), **common)
  config.fine_tuning = recipes.stage(
      epochs=20, lr=dict(name="cosine", base=given["rate"]), sampler=dict(name="class_balanced"), **common)
  return config
