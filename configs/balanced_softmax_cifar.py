"""Balanced softmax (Ren et al., NeurIPS 2020) with AutoAugment and Cutout on CIFAR-LT: a strong baseline.

python -m ltjax.main --config=configs/balanced_softmax_cifar.py --workdir=runs/bs    CIFAR-100-LT, imbalance 100
    --config=configs/balanced_softmax_cifar.py:cifar10,imbalance=50,epochs=400    other arguments
Published on CIFAR-100-LT 50.3 (imbalance 100), and 50.8 with epochs=400, in papers on contrastive learning, as their
baseline.
ltjax: see benchmarks/results.
ResNet-32; the loss is logit adjustment with tau 1. Shifts, flips, AutoAugment's CIFAR policy, a Cutout of 16 pixels,
weight decay 5e-4 and decays of the learning rate after 80 and 90 per cent of the epochs are those of PaCo's released
code (Cui et al., ICCV 2021). Ours, because no code of these baselines is released: batch size 128 and learning rate 0.1
with 5 epochs of warm-up.
Deviations: Cutout fills with the mean colour, as in its own paper, where PaCo's code fills with black; each epoch
leaves out the last N mod 128 images of its permutation (static shapes); the last epoch is reported, not the best on
the test set.
"""
from ltjax import recipes


def get_config(arguments="cifar100"):
  given = recipes.arguments(arguments, dataset=("cifar100", "cifar10"), imbalance=100.0, epochs=200)
  epochs = given.pop("epochs")
  config = recipes.cifar_lt(**given)
  config.augment = (dict(name="random_crop", padding=4), dict(name="flip"), dict(name="auto_augment", policy="cifar10"),
                    dict(name="cutout", size=16))
  config.head = dict(name="Linear")
  config.stages = ("representation",)
  config.representation = recipes.stage(
      epochs=epochs, batch_size=128, optimizer=recipes.sgd(5e-4),
      lr=dict(name="multi_step", base=0.1, at=(epochs * 4 // 5, epochs * 9 // 10), factors=(0.1, 0.01), warmup=5),
      adjust=dict(name="logit_adjustment", tau=1.0), loss=dict(name="cross_entropy"))
  return config
