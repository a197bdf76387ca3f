"""Gaussian clouded logit adjustment with CBEN re-training (Li et al., CVPR 2022) on your own images, listed in a table.

python -m ltjax.main --config=configs/csv.py --workdir=runs/mine --config.dataset.root=DIR
    --config.dataset.train_csv=FILE                     both are needed
    --config.dataset.test_csv=FILE                      without it, a fifth of each class becomes the test set
    --config.dataset.image_column=path                  headings, where the two columns are not found by themselves
    --config=configs/csv.py:resnet10,size=64            a smaller network and image, and the arguments of gcl_folder.py
FILE has a column of paths below DIR and one of class names; other columns are ignored. The recipe is gcl_folder.py's.
No published number. ltjax: see benchmarks/results.
"""
from ltjax import recipes


def get_config(arguments="resnet50"):
  given = recipes.arguments(
      arguments, backbone=recipes.resnets("resnet50"), size=224, epochs=90, retrain_epochs=10, batch_size=0)
  config = recipes.csv(augment=recipes.crop_flip(given["size"]), backbone=recipes.resnet(given["backbone"]))
  config.head = dict(name="Cosine")
  config.eval_batch_size = 64
  config.stages = ("representation", "classifier")
  config.representation = recipes.stage(
      epochs=given["epochs"], batch_size=64, lr=dict(name="cosine", base=0.025, warmup=5), optimizer=recipes.sgd(5e-4),
      mixup=0.2, adjust=dict(name="gcl", scale=30.0, noise_scale=0.5),
      loss=dict(name="cross_entropy"))
  config.classifier = recipes.stage(
      epochs=given["retrain_epochs"], batch_size=64, lr=dict(name="cosine", base=0.002), optimizer=recipes.sgd(5e-4),
      train=("head/.*",), batch_norm="eval", sampler=dict(name="cben", a=0.999, b=0.0009), mixup=0.2,
      adjust=dict(name="gcl", scale=20.0, margin=0.1, noise_scale=0.5),
      loss=dict(name="focal", gamma=1.0, detach=True))
  return recipes.scaled_batch(config, given["batch_size"])
