"""Blocks of configs: one function per data set, networks, optimisers and stages. They return plain literals."""

import functools
import sys

from ml_collections import ConfigDict

from ltjax.recipes.arguments import one_of

CIFAR = ("cifar10", "cifar100")  # choices for `arguments`
LARGE = ("imagenet_lt", "places_lt", "inat")  # likewise


def cifar_lt(dataset: str, *, imbalance: float, holdout_each: int = 0) -> ConfigDict:
  """CIFAR-10-LT or CIFAR-100-LT with ResNet-32, pad-4 crops and flips; `dataset.dir` empty means TFDS.

  `holdout_each` images of each class are held out, from those outside the long-tailed set where there are any.

  `dataset.pipeline` "tf_data" gives the same batches as "resident" and keeps the images off the device.
  """
  return _run(
      dataset=dict(name=dataset, dir="", imbalance=float(imbalance), profile="exponential", subset_seed=0,
                   holdout=0.0, pipeline="resident", **dict(holdout_each=holdout_each) if holdout_each else {}),
      augment=(dict(name="random_crop", padding=4), dict(name="flip")), backbone=dict(name="ResNetCIFAR", depth=32))


def digits_lt(*, imbalance: float) -> ConfigDict:
  """scikit-learn's digits with a residual network small enough for a laptop; digits are shifted, never mirrored."""
  config = _run(
      dataset=dict(name="digits", imbalance=float(imbalance), profile="exponential", subset_seed=0, holdout=0.0,
                   pipeline="resident"),
      augment=(dict(name="random_crop", padding=1),), backbone=dict(name="ResNetCIFAR", depth=8))
  config.log_every_steps = 22
  return config


def folder(*, root: str, augment: tuple, backbone: dict) -> ConfigDict:
  """Your own images in one folder per class: `ltjax.data.photos.folder`."""
  return _images("folder", augment, backbone, root=root, test_root="", val_fraction=0.2)


def csv(*, augment: tuple, backbone: dict) -> ConfigDict:
  """Your own images, listed in a table: `ltjax.data.photos.csv`."""
  return _images("csv", augment, backbone, root="", train_csv="", test_csv="", image_column="", label_column="",
                 val_fraction=0.2)


def features(*, root: str) -> ConfigDict:
  """Features that `ltjax extract` has written to a file, in the place of images: `ltjax.data.features.features`."""
  config = _run(
      dataset=dict(name="features", root=root, weights="", size=0, mean=(), std=(), class_names="", holdout=0.0,
                   subset_seed=0, pipeline="resident"),
      augment=(), backbone=dict(name="Identity"))
  config.eval_every_epochs, config.eval_batch_size = 10, 4096
  return config


def imagenet_lt(*, augment: tuple, backbone: dict) -> ConfigDict:
  """ImageNet-LT; `dataset.lists` is the folder of the official lists, `dataset.root` empty means TFDS."""
  return _images("imagenet_lt", augment, backbone, lists="", root="", tfds_dir="")


def places_lt(*, augment: tuple, backbone: dict) -> ConfigDict:
  """Places-LT; `dataset.lists` is the folder of the official lists, `dataset.root` empty means TFDS."""
  return _images("places_lt", augment, backbone, lists="", root="", tfds_dir="")


def inat(*, augment: tuple, backbone: dict) -> ConfigDict:
  """iNaturalist 2018, as `imagenet_lt`; with both empty, TFDS gives the lists too."""
  return _images("inat2018", augment, backbone, lists="", root="", tfds_dir="")


_RESNEXT = dict(groups=32, group_width=4)
_RESNETS = dict(
    resnet50=dict(depth=50), resnext50=dict(depth=50, **_RESNEXT), resnet10=dict(depth=10), resnet101=dict(depth=101),
    resnet152=dict(depth=152), resnext101=dict(depth=101, **_RESNEXT), resnext152=dict(depth=152, **_RESNEXT))


def resnets(first: str) -> tuple[str, ...]:
  """The names that `resnet` knows, with `first` in front as the default of an argument of `arguments`."""
  return (first, *(name for name in _RESNETS if name != first))


def resnet(name: str) -> dict:
  """The backbone block of a ResNet or ResNeXt (32x4d) by name, such as "resnext50"."""
  return dict(name="ResNet", **one_of("backbone", name, _RESNETS), bn_groups=1)


def last_block(backbone: str, part: str = "stage4_block3") -> dict:
  """What of a pretrained ResNet a stage on Places-LT trains, as arguments of `stage`.

  By default as the released codes of GCL, FBL and MiSLAS: the last block of the last stage is drawn anew and trains
  with its BatchNorm in train mode; all others evaluate. With part="stage4" the complete last stage goes on from its
  weights, and every BatchNorm evaluates.
  """
  if part == "stage4":
    return dict(train=("backbone/stage4.*", "head/.*"), batch_norm="eval")
  block = f"backbone/stage4_block{1 if backbone == 'resnet10' else 3}/.*"
  return dict(train=(block, "head/.*"), reset=(block,), batch_norm=(block,))


RETRAINED = ("paper", "kang")  # the presets of `retraining`


def retraining(preset: str) -> dict:
  """How a second stage that "follows Kang et al." re-trains the classifier, as arguments of `stage`.

  "paper": classes drawn independently with equal probability, running statistics, the classifier goes on. "kang", as
  in facebookresearch/classifier-balancing: a cycle through the classes with 4 images of each, the batch's statistics in
  the frozen backbone too, and a new classifier.
  """
  return dict(
      paper=dict(batch_norm="eval", sampler=dict(name="class_balanced")),
      kang=dict(batch_norm="train", sampler=dict(name="class_aware", samples_per_class=4), reset=("head/kernel",)),
  )[preset]


def large_scale(dataset: str, backbone: str = "") -> ConfigDict:
  """ImageNet-LT, Places-LT or iNaturalist 2018 with the backbone of GCL's thesis, unless one is named."""
  backbone = resnet(backbone or ("resnet152" if dataset == "places_lt" else "resnet50"))
  make = dict(imagenet_lt=imagenet_lt, places_lt=places_lt, inat=inat)[dataset]
  return make(augment=crop_flip(224, jitter=0.4 if dataset == "imagenet_lt" else 0.0), backbone=backbone)


def large_stage(dataset: str, **changes) -> ConfigDict:
  """The first stage of thesis table 5.1 on a data set of `large_scale`, with decays of 0.1 and 0.01.

  It has cross entropy unless `changes`, arguments of `stage`, say otherwise; on Places-LT it trains the `last_block`.
  """
  epochs, batch_size, lr, decays, weight_decay = dict(
      imagenet_lt=(200, 256, 0.1, (160, 180), 2e-4), places_lt=(90, 512, 0.2, (60, 80), 5e-4),
      inat=(180, 256, 0.1, (120, 160), 1e-4))[dataset]
  return stage(**dict(
      epochs=epochs, batch_size=batch_size, optimizer=sgd(weight_decay), loss=dict(name="cross_entropy"),
      lr=dict(name="multi_step", base=lr, at=decays, factors=(0.1, 0.01), warmup=5)) | (
          last_block("resnet152") if dataset == "places_lt" else {}) | changes)


def sgd(weight_decay: float, **around) -> dict:
  """The optimizer block of SGD with momentum 0.9, as in nearly all of the papers."""
  return dict(name="sgd", momentum=0.9, weight_decay=weight_decay, **around)


def crop_flip(size: int, jitter: float = 0.0) -> tuple[dict, ...]:
  """The augmentation of images from files: random-resized crops to `size`, flips, and colour jitter if it is not 0."""
  operations = (dict(name="random_resized_crop", size=size), dict(name="flip"))
  return (*operations, dict(name="jitter", strengths=(jitter,) * 3)) if jitter else operations


def scaled_batch(config: ConfigDict, batch_size: int) -> ConfigDict:
  """Sets the batch size of every stage and scales its learning rate with it; 0 changes nothing.

  lr <- lr batch_size / published batch size: the linear rule of Goyal et al., `Accurate, Large Minibatch SGD
  <https://arxiv.org/abs/1706.02677>`_, 2017. Each change is printed to stderr.
  """
  for name in config.stages:
    stage, published = config[name], config[name].batch_size
    if batch_size in (0, published):
      continue
    block, key = (stage.lr, "base") if isinstance(stage.lr, ConfigDict) else (stage, "lr")
    was, block[key], stage.batch_size = block[key], block[key] * batch_size / published, batch_size
    _say(f"{name}: batch size {published} -> {batch_size}, so the learning rate {was:g} -> {block[key]:g}")
  return config


@functools.cache
def _say(message: str) -> None:
  """Prints a message only once, because the command line may read a config more than once."""
  print(message, file=sys.stderr)


def _images(name: str, augment: tuple, backbone: dict, **dataset) -> ConfigDict:
  dataset = dict(name=name, **dataset, holdout=0.0, subset_seed=0, background="white", pipeline="tf_data",
                 on_bad_image="error")
  return _run(dataset=dataset, augment=augment, backbone=backbone)


def _run(*, dataset: dict, augment: tuple, backbone: dict) -> ConfigDict:
  return ConfigDict(dict(
      seed=0, dataset=dataset, augment=augment, backbone=backbone, pretrained="", reset_head=False,
      normalization="", interpolation="", test_crops="", head=dict(name="Linear"), precision="float32", stages=(),
      posthoc=(), eval_every_epochs=1,
      checkpoint_every_epochs=10, keep_checkpoints=2, log_every_steps=50, eval_batch_size=500, on_nonfinite="stop",
      skip_limit=10, steps_per_call=0,  # 0: one on a CPU, 50 on an accelerator
      cache_features="auto"))  # of a frozen backbone without augmentation: computed once


RUN_KEYS = tuple(_run(dataset={}, augment=(), backbone={}))
# What a key means that config.json lacks, because the ltjax that wrote it had no such key yet.
RUN_DEFAULTS = {key: value for key, value in _run(dataset={}, augment=(), backbone={}).items()
                if isinstance(value, bool | int | str)}


def stage(*, epochs: int, batch_size: int, lr, loss: dict, optimizer: dict, adjust: dict | None = None,
          sampler: dict | None = None, mixup: float = 0.0, augment: tuple | None = None, transforms: tuple = (),
          class_weights: dict | None = None, train: tuple | str = (".*",), lr_factors: tuple = (),
          head: dict | None = None, head_init: dict | None = None, reset: tuple = (), batch_norm: str | tuple = "",
          reduce: str = "weighted_mean") -> ConfigDict:
  """The block of one stage, which starts with a new optimiser.

  Args:
    epochs: passes of N // batch_size steps.
    batch_size: over all devices; each epoch leaves out the last N mod batch_size examples of its permutation.
    lr: a number or a schedule.
    loss: a loss of `ltjax.losses`, by name, with its hyper-parameters (numbers or schedules).
    optimizer: an optimiser of `ltjax.optim`, by name, with its hyper-parameters; besides them `no_decay`, regular
      expressions of parameters without weight decay; `clip_norm`; `accumulate`, the number of parts that a batch is cut
      into; `ema`, the decay of a moving average of the model, which is also evaluated.
    adjust: a logit adjustment of `ltjax.losses` that precedes the loss.
    sampler: a sampler of `ltjax.data.samplers`; instance sampling by default.
    mixup: alpha of the Beta distribution; 0 is off.
    augment: operations of `ltjax.augment` for this stage, instead of the config's.
    transforms: transforms of the batch, by name in `ltjax.augment.batches`: two_branches (BBN), generate_features
      (AFA).
    class_weights: weights from class counts; see `reduce`.
    train: regular expressions of parameter paths; parameters that match none are frozen. "tuning" means what the
      backbone's `tuning` trains, and the head; a `full` tuning then also gives its factors on the learning rate.
    lr_factors: (regular expression, factor on the learning rate) pairs.
    head: the head of this stage, instead of the config's; parameters that the previous stage's head also has are taken
      from there, the others are initialised.
    head_init: how the head starts, by name in `ltjax.models.head_init`: class_mean, linear_probe, file.
    reset: regular expressions of parameters and statistics that are initialised anew, instead of taken from the stage
      before or, in the first stage, from `pretrained`.
    batch_norm: "train" uses the statistics of the batch and updates the running ones; "eval" uses the running ones;
      "shift" is "train" with frozen affine parameters; a tuple of regular expressions of layers, such as
      ("backbone/stage4_block3/.*",), is "train" in these and "eval" in all others. By default "train" if everything is
      trained, else "eval".
    reduce: a reduction of `ltjax.losses`, by name, for the class weights w: weighted_mean is sum(w l) / sum(w), mean is
      sum(w l) / batch_size. Without weights both are the mean.
  """
  return ConfigDict(dict(
      epochs=epochs, batch_size=batch_size, lr=lr, loss=loss, optimizer=optimizer, adjust=adjust,
      sampler=sampler or dict(name="instance"), mixup=mixup, augment=augment, transforms=transforms,
      class_weights=class_weights, train=train, lr_factors=lr_factors, head=head, head_init=head_init, reset=reset,
      batch_norm=batch_norm or ("train" if train == (".*",) else "eval"), reduce=reduce))
