"""Cross entropy on Caltech-101, long-tailed: the baseline of gcl_caltech.py, on the same data with the same schedule.

python -m ltjax.main --config=configs/ce_caltech.py --workdir=runs/ce_caltech
    --config.dataset.root=DIR    where the images lie elsewhere: DIR/train/<class>/ and DIR/test/<class>/
No published number. ltjax: see benchmarks/results/caltech.md. Deviations: none.
"""
from ltjax import recipes


def get_config():
  config = recipes.folder(
      root="data/caltech101_lt40", augment=recipes.crop_flip(64),
      backbone=recipes.resnet("resnet10") | dict(width=32))
  config.head = dict(name="Linear")
  config.log_every_steps, config.eval_every_epochs = 20, 5
  config.stages = ("representation",)
  config.representation = recipes.stage(
      epochs=30, batch_size=32, lr=dict(name="cosine", base=0.05, warmup=3), optimizer=recipes.sgd(5e-4),
      mixup=0.2, loss=dict(name="cross_entropy"))
  return config
