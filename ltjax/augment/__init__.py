"""Augmentation: `config.augment` lists operations by the names exported here, in their order."""

from ltjax.augment.images import random_crop
from ltjax.augment.operations import (
    central_crop,
    cutmix,
    cutout,
    flip,
    jitter,
    mixup,
    random_erasing,
    random_resized_crop,
)
from ltjax.augment.policies import auto_augment, rand_augment

__all__ = ["auto_augment", "central_crop", "cutmix", "cutout", "flip", "jitter", "mixup", "rand_augment", "random_crop",
           "random_erasing", "random_resized_crop"]
