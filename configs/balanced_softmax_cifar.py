"""Balanced softmax (Ren et al., NeurIPS 2020) with AutoAugment and Cutout on CIFAR-LT: a strong baseline.

python -m ltjax.main --config=configs/balanced_softmax_cifar.py --workdir=runs/bs    CIFAR-100-LT, imbalance 100
    --config=configs/balanced_softmax_cifar.py:cifar10,imbalance=50,epochs=400    others
Published on CIFAR-100-LT, imbalance 100: 50.3 with 200 epochs, 50.8 with epochs=400, as contrastive methods quote it.
ltjax: see benchmarks/results.
ResNet-32; shifts, flips, AutoAugment's CIFAR policy and a Cutout of 16 pixels; the loss is logit adjustment with tau 1.
Ours, as no configuration of these baselines was released: batch size 128, learning rate 0.1 with 5 epochs of warm-up
and tenfold decays after 80 and 90 per cent of the epochs, weight decay 5e-4.
Deviations: the last N mod 128 images of an epoch's permutation are left out (static shapes); the last epoch is
reported, not the best on the test set.
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
