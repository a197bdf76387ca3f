"""Light fine-tuning of pretrained ViTs (LIFT; Shi et al., ICML 2024) with any loss and tuning on CIFAR-LT.

python -m ltjax.main --config=configs/lift_cifar.py --workdir=runs/lift_cifar    default
    --config=configs/lift_cifar.py:cifar100,imbalance=50,loss=gcl,tuning=vpt_deep    other arguments
Published on CIFAR-100-LT 81.7 (imbalance 100; 83.1 at 50, 84.9 at 10), with backbone=in21k_b16 89.1, 90.2 and 91.3;
GNM-PT (Li et al., NeurIPS 2024; recipe=gnm_pt) 90.3. ImageNet-21k has classes of CIFAR-100, so numbers with in21k_b16
do not measure how well rare classes are learnt from few images.
ltjax: see benchmarks/results.
The weights are a file clip_b16.safetensors, or in21k_b16, clip_l14, dinov2_b14, resnet50; docs/pretrained.md says where
they are. backbone=, tuning= (adaptformer, vpt_deep, vpt_shallow, lora, ssf, bias_only, norm_only, last_blocks, full,
none), loss= (logit_adjustment, cross_entropy, resampling, gcl, kps, ldam, fbl, norm_fc, camc), start= (class_mean,
linear_probe, text, random), epochs=, lr=, five_crops=false. recipe=lift_plus: 5 epochs at twice the rate, square crops
without flips; recipe=gnm_pt: GCL on VPT-deep. The losses have the constants of their papers, chosen from scratch.
Deviations: each epoch leaves out the last N mod 128 images of its permutation (static shapes); heads start from class
means, where LIFT starts those of CLIP from texts (start=text, with texts.safetensors); the least area of LIFT+'s crops
rises in each step, there in each epoch; GNM-PT's learning rate is LIFT's.
"""
from ltjax import recipes


def get_config(arguments="lift"):
  given = recipes.tuned(arguments, dataset=recipes.CIFAR[::-1], imbalance=100.0)
  config = recipes.cifar_lt(given.pop("dataset"), imbalance=given.pop("imbalance"))
  return recipes.fine_tuned(config, **given)
