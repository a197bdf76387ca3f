"""Light fine-tuning of pretrained ViTs (LIFT; Shi et al., ICML 2024) with any loss and tuning on Places-LT.

python -m ltjax.main --config=configs/lift_places_lt.py --workdir=runs/lift_places_lt    default
    --config=configs/lift_places_lt.py:loss=gcl,tuning=vpt_deep    other arguments
Published 52.2; LPT 50.07; GNM-PT (Li et al., NeurIPS 2024; recipe=gnm_pt) 50.1. Some classes of ImageNet-21k are
scenes of Places.
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
  given = recipes.tuned(arguments)
  return recipes.fine_tuned(recipes.places_lt(augment=(), backbone={}), **given)
