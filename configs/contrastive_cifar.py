"""Supervised contrastive learning beside a classifier (Hybrid-SC; Wang et al., CVPR 2021) on CIFAR-LT.

python -m ltjax.main --config=configs/contrastive_cifar.py --workdir=runs/contrastive    CIFAR-10-LT, imbalance 100
    --config=configs/contrastive_cifar.py:cifar100,imbalance=50    another data set and imbalance
Published on CIFAR-10-LT 81.40 (imbalance 100; 85.36 at 50; thesis tables 4.7, 5.2). On CIFAR-100-LT 46.72 (imbalance
100; 51.87 at 50; thesis tables 4.7, 5.2).
ltjax: see benchmarks/results.
ResNet-32 with two branches: two views of a batch for the contrastive loss on projections, a class-balanced batch for
the classifier; the share moves from the first to the second as 1 - (t/T)^2. No code was released, and the thesis
quotes the numbers alone. So these are ours: 200 epochs, 512 images a batch, 0.5 with steps at epochs 120 and 160,
weight decay 1e-4, temperature 0.1, a hidden layer as wide as the features before 128 projections, and colour jitter.
Deviations: each epoch leaves out the last N mod 512 images of its permutation (static shapes); BatchNorm sees the three
parts of a batch together; the last epoch is reported, not the best on the test set.
"""
from ltjax import recipes


def get_config(arguments="cifar10"):
  given = recipes.arguments(arguments, dataset=recipes.CIFAR, imbalance=100.0, temperature=0.1)
  config = recipes.cifar_lt(given["dataset"], imbalance=given["imbalance"])
  config.augment = (*config.augment, dict(name="jitter", strengths=(0.4, 0.4, 0.4)))
  config.head = dict(name="ProjectedLinear", dim=128)
  config.stages = ("representation",)
  config.representation = recipes.stage(
      epochs=200, batch_size=512, lr=dict(name="multi_step", base=0.5, at=(120, 160), factors=(0.1, 0.01), warmup=5),
      optimizer=recipes.sgd(1e-4), loss=dict(
          name="hybrid_contrastive", temperature=given["temperature"],
          share=dict(name="parabolic", start=1.0, end=0.0)),
      transforms=(dict(name="contrastive_views", sampler=dict(name="class_balanced")),))
  return config
