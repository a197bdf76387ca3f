"""Learning to reweight examples (L2RW; Ren et al., ICML 2018) on CIFAR-LT.

python -m ltjax.main --config=configs/l2rw_cifar.py --workdir=runs/l2rw    CIFAR-10-LT, imbalance 100
    --config=configs/l2rw_cifar.py:cifar100,imbalance=50    another data set and imbalance
Published on CIFAR-10-LT 74.2 (imbalance 100; 85.2 at 10, 83.1 at 20, 78.9 at 50, 66.5 at 200; CAMC table V). On
CIFAR-100-LT 40.2 (imbalance 100; 53.7 at 10, 51.6 at 20, 44.4 at 50, 33.4 at 200; CAMC table V).
ltjax: see benchmarks/results.
ResNet-32. Ten images of each class are held out, as each=10; in every step a batch of them weighs the images of the
training batch. CAMC copies the numbers from Jamal et al. (CVPR 2020) and gives no setting; epochs, batch size, learning
rate and weight decay are those of Meta-Weight-Net's released code, as in meta_weight_net_cifar.py.
Deviations: each epoch leaves out the last N mod 100 images of its permutation (static shapes); the held-out images are
outside the long-tailed set where a class has others, and are drawn a class at a time with equal probability; the last
epoch is reported, not the best on the test set.
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
      transforms=(dict(name="learning_to_reweight", sampler=dict(name="class_balanced")),))
  return config
