"""Gaussian clouded logit adjustment with CBEN re-training (Li et al., CVPR 2022) on your own images, listed in a table.

python -m ltjax.main --config=configs/csv.py --workdir=runs/mine --config.dataset.root=DIR
    --config.dataset.train_csv=FILE                     both are needed
    --config.dataset.test_csv=FILE                      without it, a fifth of each class becomes the test set
    --config.dataset.image_column=path                  headings, where the two columns are not found by themselves
    --config=configs/folder.py:csv                      the same table on pretrained weights: minutes on a laptop
    --config=configs/csv.py:resnet10,size=64            a smaller network and image, and the arguments of gcl_folder.py
FILE has a column of paths below DIR and one of class names; other columns are ignored. The recipe is gcl_folder.py's.
No published number. ltjax: see benchmarks/results.
"""
from ltjax import recipes


def get_config(arguments="resnet50"):
  given = recipes.arguments(
      arguments, backbone=recipes.resnets("resnet50"), size=224, epochs=90, retrain_epochs=10, batch_size=0)
  return recipes.from_scratch(recipes.csv(augment=(), backbone={}), **given)
