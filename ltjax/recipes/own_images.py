"""The stages of configs for a user's own images: on a pretrained backbone, or from scratch."""

from ml_collections import ConfigDict

from ltjax.recipes.blocks import crop_flip, resnet, scaled_batch, sgd, stage
from ltjax.recipes.fine_tuning import losses

_SIZES = dict(efficientnet_lite0=224, efficientnet_lite1=240, efficientnet_lite2=260)  # of the images that they want
BACKBONES = tuple(_SIZES)
_TUNINGS = dict(none=None, last=dict(name="last_blocks", blocks=2), full=dict(name="full", decay=0.75))
TUNE = (*_TUNINGS, "scratch")


def own_images(config: ConfigDict, *, tune: str, backbone: str, epochs: int, tuning_epochs: int) -> ConfigDict:
  """`config` with a classifier on a frozen, pretrained backbone; then a second stage that trains more of it.

  The head has cosines of scale 25, starts from the class means and learns with logit adjustment, as in LIFT (Shi et
  al., ICML 2024). Its features are computed once. Its learning rate is chosen on held-out training images.

  Args:
    config: of a data set.
    tune: what is trained: the head alone ("none"), also the "last" two blocks, or all of the backbone ("full");
      "scratch" is `from_scratch`.
    backbone: one of `BACKBONES`, which are also the names of the weights.
    epochs: of the head.
    tuning_epochs: of the second stage.
  """
  if tune == "scratch":
    return from_scratch(config, backbone="resnet50", size=224, epochs=90, retrain_epochs=10, batch_size=0)
  size, tuning = _SIZES[backbone], _TUNINGS[tune]
  config.backbone = ConfigDict(dict(name="EfficientNet", variant=backbone.removeprefix("efficientnet_"), tuning=tuning))
  config.pretrained, config.eval_batch_size, config.eval_every_epochs = backbone, 64, 10
  config.augment = (dict(name="central_crop", size=size),)
  own = losses("logit_adjustment", 25.0, epochs) | dict(loss=dict(name="cross_entropy"))
  config.head, common = ConfigDict(own.pop("head")), dict(batch_size=32, optimizer=sgd(5e-4), batch_norm="eval", **own)
  config.stages = ("classifier",) if tuning is None else ("classifier", "fine_tuning")
  config.classifier = stage(
      epochs=epochs, lr=dict(name="cosine", base=(0.01, 0.03, 0.1, 0.3, 1.0)), train=("head/.*",),
      head_init=dict(name="class_mean"), **common)
  if tuning is not None:
    config.fine_tuning = stage(
        epochs=tuning_epochs, lr=dict(name="cosine", base=0.003), train="tuning", augment=crop_flip(size), **common)
  return config


def from_scratch(config: ConfigDict, *, backbone: str, size: int, epochs: int, retrain_epochs: int,
                 batch_size: int) -> ConfigDict:
  """`config` with the two stages of GCL on a network that starts from random weights.

  Args:
    config: of a data set.
    backbone: a name that `resnet` knows.
    size: of the images.
    epochs: of the first stage.
    retrain_epochs: of the second.
    batch_size: see `scaled_batch`.
  """
  config.backbone, config.augment = ConfigDict(resnet(backbone)), crop_flip(size)
  config.head = ConfigDict(dict(name="Cosine"))
  config.eval_batch_size = 64
  config.stages = ("representation", "classifier")
  config.representation = stage(
      epochs=epochs, batch_size=64, lr=dict(name="cosine", base=0.025, warmup=5), optimizer=sgd(5e-4),
      mixup=0.2, adjust=dict(name="gcl", scale=30.0, noise_scale=0.5), loss=dict(name="cross_entropy"))
  config.classifier = stage(
      epochs=retrain_epochs, batch_size=64, lr=dict(name="cosine", base=0.002), optimizer=sgd(5e-4),
      train=("head/.*",), batch_norm="eval", sampler=dict(name="cben", a=0.999, b=0.0009), mixup=0.2,
      adjust=dict(name="gcl", scale=20.0, margin=0.1, noise_scale=0.5),
      loss=dict(name="focal", gamma=1.0, detach=True))
  return scaled_batch(config, batch_size)
