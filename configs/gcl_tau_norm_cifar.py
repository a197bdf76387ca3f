"""GCL with tau-normalisation (Kang et al., ICLR 2020) in place of cRT on CIFAR-LT (thesis table 5.6).

python -m ltjax.main --config=configs/gcl_tau_norm_cifar.py --workdir=runs/gcl_tau_norm    CIFAR-10-LT, imbalance 100
    --config=configs/gcl_tau_norm_cifar.py:imbalance=50    another imbalance
Published on CIFAR-10-LT 82.16 (imbalance 100; thesis table 5.6).
ltjax: see benchmarks/results.
As gcl_cifar.py with retrain=false; the classifier is normalised after training.
Deviations: each epoch leaves out the last N mod 64 images of its permutation (static shapes); the last epoch is
reported, not the best on the test set; tau is fixed at 0.7, because there is no validation set; the thesis does not
report how it chose tau.
"""
from ltjax import recipes


def get_config(arguments="cifar10"):
  config = recipes.cifar_lt(**recipes.arguments(arguments, dataset=("cifar10",), imbalance=100.0))
  config.head = dict(name="Cosine")
  config.stages = ("representation",)
  config.representation = recipes.stage(
      epochs=200, batch_size=64, lr=dict(name="multi_step", base=0.1, at=(160, 180), factors=(0.1, 0.01), warmup=5),
      optimizer=recipes.sgd(2e-4), mixup=1.0,
      adjust=dict(name="gcl", scale=30.0, noise_scale=0.5),
      loss=dict(name="cross_entropy"))
  config.posthoc = (dict(name="tau_normalize", tau=0.7),)
  return config
