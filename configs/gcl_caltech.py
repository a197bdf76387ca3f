"""Gaussian clouded logit adjustment with CBEN re-training (Li et al., CVPR 2022; thesis ch. 5) on Caltech-101.

python -m ltjax.main --config=configs/gcl_caltech.py --workdir=runs/gcl_caltech
    --config.dataset.root=DIR    where the images lie elsewhere: DIR/train/<class>/ and DIR/test/<class>/
No published number. ltjax: see benchmarks/results/caltech.md. 40 classes of Caltech-101 (Fei-Fei et al., 2004),
long-tailed with 235 to 5 images, at 64 pixels, ResNet-10 of half the width: minutes on two cores. The same data,
network and first schedule as ce_caltech.py.
Deviations: the schedule is ours, the rest is as in gcl_cifar.py, with mixup 0.2 as on the large data sets.
"""
from ltjax import recipes


def get_config():
  config = recipes.folder(
      root="data/caltech101_lt40", augment=recipes.crop_flip(64),
      backbone=recipes.resnet("resnet10") | dict(width=32))
  config.head = dict(name="Cosine")
  config.log_every_steps, config.eval_every_epochs = 20, 5
  config.stages = ("representation", "classifier")
  config.representation = recipes.stage(
      epochs=30, batch_size=32, lr=dict(name="cosine", base=0.05, warmup=3), optimizer=recipes.sgd(5e-4),
      mixup=0.2, adjust=dict(name="gcl", scale=30.0, noise_scale=0.5),
      loss=dict(name="cross_entropy"))
  config.classifier = recipes.stage(
      epochs=5, batch_size=32, lr=dict(name="cosine", base=0.002), optimizer=recipes.sgd(5e-4), train=("head/.*",),
      batch_norm="eval", sampler=dict(name="cben", a=0.999, b=0.0009), mixup=0.2,
      adjust=dict(name="gcl", scale=20.0, margin=0.1, noise_scale=0.5),
      loss=dict(name="focal", gamma=1.0, detach=True))
  return config
