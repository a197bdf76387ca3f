"""Meta-Weight-Net, a learned weight for each loss (Shu et al., NeurIPS 2019) on CIFAR-LT.

python -m ltjax.main --config=configs/meta_weight_net_cifar.py --workdir=runs/mw_net   CIFAR-10-LT, imbalance 100
    --config=configs/meta_weight_net_cifar.py:cifar100,imbalance=50    another data set and imbalance
Published on CIFAR-10-LT 73.6 (imbalance 100; 87.6 at 10, 84.5 at 20, 79.1 at 50, 67.2 at 200; CAMC table V). On
CIFAR-100-LT 41.6 (imbalance 100; 58.9 at 10, 53.3 at 20, 45.7 at 50, 36.6 at 200; CAMC table V).
ltjax: see benchmarks/results.
ResNet-32 and the constants of the released code (xjtushujun/Meta-weight-net_class-imbalance): 100 epochs, batch size
100, Nesterov momentum, a network of 100 hidden units with a learning rate of 1e-5, and ten images of each class held
out, as each=10. CAMC copies the numbers from Jamal et al. (CVPR 2020).
Deviations: each epoch leaves out the last N mod 100 images of its permutation (static shapes); the held-out images are
outside the long-tailed set where a class has others, so the head class alone is smaller (the released code takes them
first and makes the rest long-tailed), and they are drawn a class at a time with equal probability; crops pad with
zeros, where the code reflects; the last epoch is reported, not the best on the test set.
"""
from ltjax import recipes


def get_config(arguments="cifar10"):
  given = recipes.arguments(arguments, dataset=recipes.CIFAR, imbalance=100.0, each=10)
  config = recipes.cifar_lt(given["dataset"], imbalance=given["imbalance"], holdout_each=given["each"])
  config.head = dict(name="Linear")
  config.stages = ("representation",)
  config.representation = recipes.stage(
      epochs=100, batch_size=100, lr=dict(name="multi_step", base=0.1, at=(80, 90), factors=(0.1, 0.01)),
      optimizer=recipes.sgd(5e-4, nesterov=True), loss=dict(name="cross_entropy"),
      transforms=(dict(name="meta_weight_net", hidden=100, rate=1e-5, sampler=dict(name="class_balanced")),))
  return config
