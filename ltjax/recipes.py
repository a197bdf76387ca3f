"""What configs are written with: one function a data set, `stage` and `arguments`. They return plain literals."""

import functools
import sys
from collections.abc import Mapping

from ml_collections import ConfigDict

from ltjax.errors import ConfigError, nearest


def cifar_lt(*, classes: int, imbalance: float) -> ConfigDict:
  """CIFAR-10-LT or CIFAR-100-LT with ResNet-32, pad-4 crops and flips; `dataset.dir` empty means TFDS.

  `dataset.pipeline` "tf_data" gives the same batches as "resident" and keeps the images off the device.
  """
  return _run(
      dataset=dict(name=f"cifar{classes}", dir="", imbalance=float(imbalance), profile="exponential", subset_seed=0,
                   holdout=0.0, pipeline="resident"),
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
  """The user's own photographs, a folder a class: `ltjax.data.photos.folder`."""
  return _photographs("folder", augment, backbone, root=root, test_root="", val_fraction=0.2)


def imagenet_lt(*, augment: tuple, backbone: dict) -> ConfigDict:
  """ImageNet-LT; `dataset.lists` is the folder of the official lists, `dataset.root` empty means TFDS."""
  return _photographs("imagenet_lt", augment, backbone, lists="", root="", tfds_dir="")


def places_lt(*, augment: tuple, backbone: dict) -> ConfigDict:
  """Places-LT; `dataset.lists` is the folder of the official lists, `dataset.root` empty means TFDS."""
  return _photographs("places_lt", augment, backbone, lists="", root="", tfds_dir="")


def inat(*, augment: tuple, backbone: dict) -> ConfigDict:
  """iNaturalist 2018; as ImageNet-LT, and from TFDS without lists where both are empty."""
  return _photographs("inat2018", augment, backbone, lists="", root="", tfds_dir="")


_RESNEXT = dict(groups=32, group_width=4)
_RESNETS = dict(
    resnet50=dict(depth=50), resnext50=dict(depth=50, **_RESNEXT), resnet10=dict(depth=10), resnet101=dict(depth=101),
    resnet152=dict(depth=152), resnext101=dict(depth=101, **_RESNEXT), resnext152=dict(depth=152, **_RESNEXT))


def resnets(first: str) -> tuple[str, ...]:
  """The names that `resnet` knows, `first` in front: the choices of a config's argument, with its default."""
  return (first, *(name for name in _RESNETS if name != first))


def resnet(name: str) -> dict:
  """The backbone block of a ResNet or ResNeXt (32x4d), such as "resnext50"."""
  return dict(name="ResNet", **_RESNETS[name], bn_groups=1)


def sgd(weight_decay: float, **around) -> dict:
  """The optimizer block of SGD with momentum 0.9, as in nearly all of the papers."""
  return dict(name="sgd", momentum=0.9, weight_decay=weight_decay, **around)


def crop_flip(size: int, jitter: float = 0.0) -> tuple[dict, ...]:
  """The augmentation of images from files: random-resized crops to `size`, flips, and colour jitter if given."""
  operations = (dict(name="random_resized_crop", size=size), dict(name="flip"))
  return (*operations, dict(name="jitter", strengths=(jitter,) * 3)) if jitter else operations


def scaled_batch(config: ConfigDict, batch_size: int) -> ConfigDict:
  """`config` with `batch_size` images a step in every stage, the learning rate scaled likewise; 0 leaves all as it is.

  lr <- lr batch_size / published batch size: the linear rule of Goyal et al., `Accurate, Large Minibatch SGD
  <https://arxiv.org/abs/1706.02677>`_, 2017. What it changes is said on stderr.
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
  """Once, although the command line reads a config more than once."""
  print(message, file=sys.stderr)


def _photographs(name: str, augment: tuple, backbone: dict, **dataset) -> ConfigDict:
  dataset = dict(name=name, **dataset, holdout=0.0, subset_seed=0, pipeline="tf_data")
  return _run(dataset=dataset, augment=augment, backbone=backbone)


def _run(*, dataset: dict, augment: tuple, backbone: dict) -> ConfigDict:
  return ConfigDict(dict(
      seed=0, dataset=dataset, augment=augment, backbone=backbone, pretrained="", reset_head=False,
      head=dict(name="Linear"), precision="float32", stages=(), posthoc=(), eval_every_epochs=1,
      checkpoint_every_epochs=10, keep_checkpoints=2, log_every_steps=50, eval_batch_size=500, on_nonfinite="stop",
      skip_limit=10, steps_per_call=0))  # 0: one on a CPU, 50 on an accelerator


RUN_KEYS = tuple(_run(dataset={}, augment=(), backbone={}))


def stage(*, epochs: int, batch_size: int, lr, loss: dict, optimizer: dict, adjust: dict | None = None,
          sampler: dict | None = None, mixup: float = 0.0, augment: tuple | None = None, transforms: tuple = (),
          class_weights: dict | None = None, train: tuple = (".*",), lr_factors: tuple = (), head: dict | None = None,
          reset: tuple = (), batch_norm: str = "", reduce: str = "weighted_mean") -> ConfigDict:
  """One stage: a fresh optimiser and a trainable set.

  Args:
    epochs: passes of N // batch_size steps.
    batch_size: global batch size; the last N mod batch_size examples of an epoch's permutation are not used.
    lr: a number or a schedule.
    loss: a loss of `ltjax.losses`, by name, with its hyper-parameters (numbers or schedules).
    optimizer: an optimiser of `ltjax.optim`, by name, with its hyper-parameters; beside them `no_decay`, regular
      expressions of parameters without weight decay; `clip_norm`; `accumulate`, parts that a batch is cut into; `ema`,
      the decay of a moving average of the model, which is evaluated beside it.
    adjust: a logit adjustment of `ltjax.losses` that precedes the loss.
    sampler: a sampler of `ltjax.data.samplers`; instance sampling where none is given.
    mixup: alpha of the Beta distribution; 0 is off.
    augment: a list of operations of `ltjax.augment` for this stage, in place of the config's.
    transforms: transforms of the batch, by name in `ltjax.augment.batches`: two_branches (BBN), generate_features
      (AFA).
    class_weights: weights from class counts; see `reduce`.
    train: regular expressions on parameter paths; what none of them matches is frozen.
    lr_factors: (regular expression, factor on the learning rate) pairs.
    head: a head of its own for this stage, in place of the config's; it takes over the parameters of the stage before
      that have its paths, and draws the others.
    reset: regular expressions of parameters that start afresh instead of from the stage before.
    batch_norm: train: batch statistics, running ones move; eval: running statistics, fixed; shift: as train, with the
      affine parameters frozen. Where none is given, train if everything is trained, else eval.
    reduce: a reduction of `ltjax.losses`, by name, for the class weights w: weighted_mean is sum(w l) / sum(w), mean is
      sum(w l) / batch_size. Without weights both are the mean.
  """
  return ConfigDict(dict(
      epochs=epochs, batch_size=batch_size, lr=lr, loss=loss, optimizer=optimizer, adjust=adjust,
      sampler=sampler or dict(name="instance"), mixup=mixup, augment=augment, transforms=transforms,
      class_weights=class_weights, train=train, lr_factors=lr_factors, head=head, reset=reset,
      batch_norm=batch_norm or ("train" if train == (".*",) else "eval"), reduce=reduce))


# Methods of tests/golden/published_results.csv that are another's config with arguments: {method: (config, arguments)}.
_VARIANTS = dict(
    ce_mixup=("ce", "mixup=1.0"),
    gcl_stage1=("gcl", "retrain=false"),
    gcl_crt_instance=("gcl", "sampler=instance"),
    gcl_crt_class_balanced=("gcl", "sampler=class_balanced"),
    gcl_crt_effective_number=("gcl", "sampler=effective_number"),
    gcl_cloud_cosine=("gcl", "cloud_size=cosine"),
    gcl_cloud_power_1_3=("gcl", "cloud_size=power_1_3"),
    gcl_cloud_power_1_4=("gcl", "cloud_size=power_1_4"),
    kps_no_ga=("kps", "ga=false"),
    kps_drw=("kps", "ga=false,drw=true"),
    kps_mixup=("kps", "mixup=1.0"),
    fbl_linear_decrease=("fbl", "curriculum=linear_decrease"),
    fbl_linear_increase=("fbl", "curriculum=linear_increase"),
    fbl_sine_increase=("fbl", "curriculum=sine_increase"),
    fbl_cosine_increase=("fbl", "curriculum=cosine_increase"))
# The AFA paper's methods are arguments of one config, its baselines too: they have its backbone.
_AFA = dict(
    ce="decomposition=none,retrain=false", ce_crt="decomposition=none", afa="retrain=false", afa_crt="",
    afa_no_generation="generation=false,retrain=false", afa_no_addition="addition=false,retrain=false",
    afa_no_layback="layback=false,retrain=false")
# MiSLAS has other constants where the imbalance is not 100: its released configs. None is released for 200.
_MISLAS = {
    ("cifar10", 10): "head=0.1,lr_factor=0.2", ("cifar10", 50): "head=0.2,lr_factor=0.2",
    ("cifar100", 10): "head=0.2,tail=0.0,lr_factor=0.1", ("cifar100", 50): "head=0.3,tail=0.0,lr_factor=0.1"}


def arguments(text: str, **defaults) -> dict:
  """What a config makes of its argument, the text behind the colon of --config.

  The entries are separated by commas. The first may be a bare value, which is then the first default's; all others are
  written name=value. A value gets the type of its default. A default that is a tuple lists what there is to choose
  from, and its first entry is the default.

  Args:
    text: "50", "50,cloud_size=cosine" or "cloud_size=cosine".
    **defaults: the config's arguments with their defaults, numbers, bools, strings or tuples of strings.

  Returns:
    `defaults` with the values that `text` gives.

  Raises:
    ConfigError: a name that the config does not have or that comes twice, or a value of another type.

  >>> arguments("50,cloud_size=cosine", imbalance=100.0, cloud_size=("log", "cosine"), retrain=True)
  {'imbalance': 50.0, 'cloud_size': 'cosine', 'retrain': True}
  """
  given = {}
  for place, entry in enumerate(str(text).split(",")):
    key, equals, value = map(str.strip, entry.partition("="))
    if not equals:
      if place:
        raise ConfigError(f"the config's argument {text!r}: expected name=value after the first comma, got {entry!r}; "
                          f"names are {', '.join(defaults)}")
      key, value = next(iter(defaults)), key
    if key not in defaults:
      raise ConfigError(f"the config's argument {text!r}: there is no {key!r}{nearest(key, defaults)}; "
                        f"there are {', '.join(defaults)}")
    if key in given:
      raise ConfigError(f"the config's argument {text!r}: {key} comes twice")
    given[key] = _value(value, defaults[key], f"the config's argument {key}")
  return {key: value[0] if isinstance(value, tuple) else value for key, value in defaults.items()} | given


def _value(text: str, default, where: str):
  """`text` as the type of `default`, or one of its entries where it is a tuple."""
  if isinstance(default, tuple):
    if text not in default:
      raise ConfigError(f"{where}: expected one of {', '.join(default)}, got {text!r}{nearest(text, default)}")
    return text
  if isinstance(default, bool):
    if text.lower() not in ("true", "false"):
      raise ConfigError(f"{where}: expected true or false, got {text!r}")
    return text.lower() == "true"
  try:
    return type(default)(text)
  except ValueError as error:
    wanted = "an integer" if isinstance(default, int) else "a number"
    raise ConfigError(f"{where}: expected {wanted}, got {text!r}") from error


_DATASETS = dict(imagenet=("imagenet_lt", "resnet50"), places=("places_lt", "resnet152"), inat18=("inat", "resnet50"))
# Methods on photographs: those with a config of their name for each data set, and arguments of such a config. The three
# rows of normalised classifiers are one run's.
_ON_PHOTOGRAPHS = ("camc", "camcpp", "ce", "ce_crt", "fbl", "gcl", "kps", "norm_fc")
_NORM_FC = dict(linear="classifier=linear", norm_fc="", norm_fc_crt="", norm_fc_ncm="")


def published(row: Mapping[str, str]) -> str:
  """The value of --config that reproduces `row` of tests/golden/published_results.csv.

  Args:
    row: at least its columns paper, method, dataset, imbalance and backbone.

  Raises:
    ConfigError: a method that has no config for the row's data set.

  >>> published(dict(paper="thesis", method="gcl_cloud_cosine", dataset="cifar10", imbalance="100"))
  'configs/gcl_cifar10.py:100,cloud_size=cosine'
  >>> published(dict(paper="camc", method="camcpp", dataset="imagenet", imbalance="256", backbone="resnext152"))
  'configs/camcpp_imagenet_lt.py:backbone=resnext152'
  """
  method, dataset = row["method"], row["dataset"]
  if dataset in _DATASETS:
    return _published_photographs(row)
  if dataset not in ("cifar10", "cifar100"):
    raise ConfigError(f"published: there is no config for {method!r} of {row['paper']!r} on {dataset!r}")
  stem, given = _VARIANTS.get(method, (method, "")) if row["paper"] != "afa" else ("afa", _AFA[method])
  if stem in ("mislas", "mislas_kps"):
    given = _MISLAS.get((dataset, int(row["imbalance"])), "")
  if stem in ("camc", "camcpp") and dataset == "cifar10" and int(row["imbalance"]) <= 50:
    given = "threshold=1000"  # section IV-D
  return f"configs/{stem}_{dataset}.py:{row['imbalance']}" + (f",{given}" if given else "")


def _published_photographs(row: Mapping[str, str]) -> str:
  method, (dataset, backbone) = row["method"], _DATASETS[row["dataset"]]
  stem, given = ("norm_fc", _NORM_FC[method]) if method in _NORM_FC else (method, "")
  if row["paper"] == "afa" and dataset == "imagenet_lt" and method in _AFA:
    stem, given = "afa", _AFA[method]
  elif stem not in _ON_PHOTOGRAPHS:
    raise ConfigError(f"published: there is no config for {method!r} of {row['paper']!r} on {row['dataset']!r}; of "
                      f"methods on photographs there are afa, {', '.join(_ON_PHOTOGRAPHS)}")
  if dataset == "imagenet_lt" and row["paper"] in ("afa", "camc"):
    backbone = "resnext50"
  entries = [f"backbone={row['backbone']}" if row["backbone"] != backbone else "", given]
  text = ",".join(filter(None, entries))
  return f"configs/{stem}_{dataset}.py{':' if text else ''}{text}"
