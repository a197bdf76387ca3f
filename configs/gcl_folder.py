"""Gaussian clouded logit adjustment with CBEN re-training (Li et al., CVPR 2022; thesis ch. 5) on your own images.

python -m ltjax.main --config=configs/gcl_folder.py --workdir=runs/gcl_folder --config.dataset.root=DIR
    --config=configs/gcl_folder.py:resnet10,size=64,batch_size=32    a smaller network and image, and other arguments
    --config.pretrained=resnet50.safetensors                         starts from weights that PyTorch has trained
DIR holds a folder of images for each class; or train/ and test/ (or val/) with such. Without a test set, a fifth of
each class becomes one. What is in there, without training: python -m ltjax verify with the same --config.
No published number. ltjax: see benchmarks/results. For 2 to 10,000 classes of any imbalance: the loss and the sampler
take all they need from the class counts, and balanced classes leave plain cosine classification. GCL's two stages with
its constants; the first stage's learning rate is 0.1 for 256 images, and batch_size= scales it further.
Deviations: schedule, batch size and mixup are ours: cosine, 90 and 10 epochs, 64, 0.2; each epoch leaves out the last N
mod 64 images of its permutation (static shapes).
"""
from ltjax import recipes


def get_config(arguments="resnet50"):
  given = recipes.arguments(
      arguments, backbone=recipes.resnets("resnet50"), size=224, epochs=90, retrain_epochs=10, batch_size=0)
  return recipes.from_scratch(recipes.folder(root="", augment=(), backbone={}), **given)
