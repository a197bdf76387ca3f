"""Building blocks of configs: data sets, networks, stages, arguments. They return plain literals."""

from ltjax.recipes.arguments import WHAT, arguments, declared
from ltjax.recipes.blocks import (
    CIFAR,
    LARGE,
    RETRAINED,
    RUN_DEFAULTS,
    RUN_KEYS,
    cifar_lt,
    crop_flip,
    csv,
    digits_lt,
    features,
    folder,
    imagenet_lt,
    inat,
    large_scale,
    large_stage,
    last_block,
    places_lt,
    resnet,
    resnets,
    retraining,
    scaled_batch,
    sgd,
    stage,
)
from ltjax.recipes.fine_tuning import fine_tuned, losses, tuned
from ltjax.recipes.own_images import BACKBONES, TUNE, from_scratch, own_images

__all__ = [
    "BACKBONES", "CIFAR", "LARGE", "RETRAINED", "RUN_DEFAULTS", "RUN_KEYS", "TUNE", "WHAT", "arguments",
    "cifar_lt", "crop_flip", "csv", "declared", "digits_lt", "features", "fine_tuned", "folder", "from_scratch",
    "imagenet_lt", "inat", "large_scale", "large_stage", "last_block", "losses", "own_images", "places_lt",
    "resnet", "resnets", "retraining", "scaled_batch", "sgd", "stage", "tuned"]
