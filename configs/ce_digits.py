"""Cross entropy on long-tailed digits: the baseline of gcl_digits.py, on the same data with the same schedule.

python -m ltjax.main --config=configs/ce_digits.py --workdir=runs/ce_digits
No published number. ltjax: see README. Deviations: none.
"""
from ltjax import recipes


def get_config(imbalance="50"):
  config = recipes.digits_lt(imbalance=float(imbalance))
  config.head = dict(name="Linear")
  config.stages = ("representation",)
  config.representation = recipes.stage(
      epochs=60, batch_size=32, lr=dict(name="multi_step", base=0.1, at=(48, 54), factors=(0.1, 0.01), warmup=5),
      optimizer=recipes.sgd(1e-4), loss=dict(name="cross_entropy"))
  return config
