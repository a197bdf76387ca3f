"""Stages on pretrained backbones: what is trained of them, and the head and keys that each loss needs."""

from ml_collections import ConfigDict

from ltjax.recipes.arguments import arguments, one_of
from ltjax.recipes.blocks import crop_flip, sgd, stage

_PRETRAINED = dict(
    clip_b16=dict(name="ViT", size="base", patch=16, style="clip"),
    clip_l14=dict(name="ViT", size="large", patch=14, style="clip"),
    in21k_b16=dict(name="ViT", size="base", patch=16),
    dinov2_b14=dict(name="ViT", size="base", patch=14, style="dinov2"),
    resnet50=dict(name="ResNet", depth=50), efficientnet_lite0=dict(name="EfficientNet"))
_TUNINGS = dict(
    adaptformer=dict(name="adaptformer"), vpt_deep=dict(name="vpt", number=10, deep=True),
    vpt_shallow=dict(name="vpt", number=10, deep=False), lora=dict(name="lora", rank=4), ssf=dict(name="ssf"),
    bias_only=dict(name="bias_only"), norm_only=dict(name="norm_only"), last_blocks=dict(name="last_blocks", blocks=1),
    full=dict(name="full", decay=0.75), none=None)
_STARTS = dict(class_mean=dict(name="class_mean"), linear_probe=dict(name="linear_probe"),
               text=dict(name="file", path="texts.safetensors"), random=None)
# (backbone, tuning, loss, epochs, epochs on iNaturalist, learning rate)
_FINE_TUNINGS = dict(
    lift=("clip_b16", "adaptformer", "logit_adjustment", 10, 20, 0.01),
    lift_plus=("clip_b16", "adaptformer", "logit_adjustment", 5, 15, 0.02),
    gnm_pt=("in21k_b16", "vpt_deep", "gcl", 70, 70, 0.01))


def tuned(text: str, **own) -> dict:
  """`arguments` of a config that fine-tunes a pretrained backbone: those of `fine_tuned`, and its `own`."""
  backbone, tuning, loss, epochs, longer, lr = (
      dict(zip(_FINE_TUNINGS, column, strict=True)) for column in zip(*_FINE_TUNINGS.values(), strict=True))
  inat = own.pop("inat", False)
  return arguments(text, recipe=tuple(_FINE_TUNINGS), **own, backbone=backbone, tuning=tuning, loss=loss,
                   start=tuple(_STARTS), epochs=longer if inat else epochs, lr=lr, five_crops=True)


def losses(name: str, scale: float, epochs: int) -> dict:
  """The head and the keys of a stage that belong to a loss on a pretrained backbone.

  Cosines times `scale`, unless the method needs the length of the features. Constants are those of the papers.

  Raises:
    ConfigError: no such name.
  """
  scaled, cosine = dict(name="NormalizedLinear", scale=scale, normalize_features=True), dict(name="Cosine")
  lengths = dict(name="NormalizedLinear", scale=0.5)
  return one_of("loss", name, dict(
      logit_adjustment=dict(head=scaled, adjust=dict(name="logit_adjustment")), cross_entropy=dict(head=scaled),
      resampling=dict(head=scaled, sampler=dict(name="class_balanced")),
      gcl=dict(head=cosine, adjust=dict(name="gcl", scale=scale, noise_scale=1.0, margin=0.1)),
      kps=dict(head=cosine, adjust=dict(name="kps", scale=scale)),
      ldam=dict(head=cosine, adjust=dict(name="ldam", scale=scale)),
      fbl=dict(head=dict(name="Linear"), adjust=dict(name="fbl", alpha=dict(
          name="parabolic", end=60.0, shorten=epochs // 20))),
      norm_fc=dict(head=lengths), camc=dict(head=lengths)))


def fine_tuned(config: ConfigDict, *, recipe: str, backbone: str, tuning: str, loss: str, start: str, epochs: int,
               lr: float, five_crops: bool) -> ConfigDict:
  """`config` with a pretrained backbone, of which a stage trains what `tuning` says and a head.

  CAMC works on the maps of the patches and takes a second stage for its head, as long as the first.

  Args:
    config: of a data set.
    recipe: "lift_plus" for the crops of LIFT+; the other arguments have what else is special to a recipe.
    backbone: a key of `_PRETRAINED`; the file of its weights is called like it, unless a package has them.
    tuning: a key of `_TUNINGS`.
    loss: a name that `losses` knows.
    start: of the head, a key of `_STARTS`.
    epochs: of a stage.
    lr: of SGD, with a cosine schedule.
    five_crops: test with the mean logits of five crops.

  Raises:
    ConfigError: a name that is none.
  """
  block = one_of("backbone", backbone, _PRETRAINED)
  tuning = one_of("tuning", tuning, _TUNINGS)
  maps = dict(pool="maps") if loss == "camc" and block["name"] == "ViT" else {}
  config.backbone = ConfigDict(block | maps | dict(tuning=tuning))
  config.pretrained = backbone if backbone == "efficientnet_lite0" else f"{backbone}.safetensors"
  config.augment = crop_flip(224)
  if recipe == "lift_plus":
    config.augment = (dict(name="random_resized_crop", size=224, ratio=(1.0, 1.0), final_area=1.0),)
  own = losses(loss, 25.0, epochs)
  config.head, common = ConfigDict(own.pop("head")), dict(
      epochs=epochs, batch_size=128, lr=dict(name="cosine", base=lr), optimizer=sgd(5e-4),
      loss=dict(name="cross_entropy"))
  config.stages = ("representation",)
  config.representation = stage(
      **common, **own, train=("head/.*",) if tuning is None else "tuning", head_init=_STARTS[start])
  if loss == "camc":
    config.stages = ("representation", "classifier")
    config.classifier = stage(**common, train=("head/.*",), sampler=dict(name="class_balanced"), head=dict(
        name="CAMC", scale=16.0, threshold=100.0, num_prototypes=5))
  config.test_crops, config.eval_every_epochs, config.eval_batch_size = "five" if five_crops else "center", epochs, 100
  return config
