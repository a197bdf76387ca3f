"""Flax (linen) models. A backbone is chosen by its name in this module, a head by its name in `heads`."""

from ltjax.models.classifier import Classifier
from ltjax.models.efficientnet import EfficientNet
from ltjax.models.identity import Identity
from ltjax.models.resnet import ResNet
from ltjax.models.resnet_cifar import ResNetBBN, ResNetCIFAR
from ltjax.models.vit import ViT

__all__ = ["Classifier", "EfficientNet", "Identity", "ResNet", "ResNetBBN", "ResNetCIFAR", "ViT"]
