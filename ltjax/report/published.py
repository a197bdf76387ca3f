"""The published numbers, in published.csv, and the command of every row.

A row is a result of one paper: `kind` is "own" for the method that the paper proposes, "ablation" for a variant of it
or the baseline that it starts from, "quoted" for a method that it compares with, copied or trained again. `table` lists
the tables with this number and `row` how they name it; where a paper contradicts itself, `other` has its other numbers
and their tables. published_classes.csv holds the accuracies of single classes (thesis tables 4.5 and 4.6), and
implementations.csv those that other implementations reached by preset=short.
"""

import csv
import functools
import pathlib
from collections.abc import Mapping

from ltjax.errors import ConfigError

# Methods of the table that another method's config trains with arguments: {method: (config, arguments)}.
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
# The same on the large data sets; evaluations of one run of norm_fc share a command.
_LARGE_VARIANTS = dict(
    ce_mixup=("ce", "mixup=0.2"),
    kps_mixup=("kps", "mixup=0.2"),
    camc_tau_0=("norm_fc", ""),
    camc_tau_20=("camc", "threshold=20"),
    camc_tau_inf=("camc", "threshold=inf"),
    camcpp_m2=("camcpp", "crops=2"),
    camcpp_m3=("camcpp", "crops=3"),
    camcpp_m4=("camcpp", "crops=4"),
    **{f"{name}{end}": ("norm_fc", given) for end in ("", "_crt", "_ncm") for name, given in dict(
        norm_fc="", norm_fc_g1="retrain=linear,g=1", linear="classifier=linear,retrain=linear",
        wn="classifier=wn,retrain=linear", wn_g="classifier=wn_g,retrain=linear").items()})
# Arguments of the AFA config give the methods of its paper and the baselines, which have its backbone.
_AFA = dict(ce="decomposition=none", afa="", afa_cbam="decomposition=cbam", afa_context="decomposition=context",
            afa_no_generation="generation=false", afa_no_addition="addition=false", afa_no_layback="layback=false",
            **{f"ce_{name}": f"decomposition=none,sampler={name}" for name in (
                "progressive", "class_balanced", "square_root")})
_AFA = {f"{name}_crt": given for name, given in _AFA.items()} | {
    name: ",".join(filter(None, (given, "retrain=false"))) for name, given in _AFA.items()}
# The released MiSLAS configs have other constants at imbalance 10 and 50; the authors released none for 200.
_MISLAS = {
    ("cifar10", 10): "head=0.1,lr_factor=0.2", ("cifar10", 50): "head=0.2,lr_factor=0.2",
    ("cifar100", 10): "head=0.2,tail=0.0,lr_factor=0.1", ("cifar100", 50): "head=0.3,tail=0.0,lr_factor=0.1"}
# {data set of the table: (ending of the configs, their default backbone)}
_DATASETS = dict(imagenet=("imagenet_lt", "resnet50"), places=("places_lt", "resnet152"), inat18=("inat", "resnet50"))
# Methods with a config for CIFAR, with one for all of the large data sets, and with one for each of those.
_CIFAR = ("arcface", "bbn", "camc", "camcpp", "cb_fine_tuning", "cb_focal", "ce", "ce_mixup_crt", "contrastive",
          "cosface", "equalization", "fbl", "focal", "gcl", "gcl_lws", "gcl_tau_norm", "kps", "l2rw",
          "ldam_drw", "logit_adjustment", "meta_weight_net", "mislas", "mislas_kps", "tde")
_LARGE = ("arcface", "cb_focal", "ce_mixup_crt", "cosface", "cosine", "disalign", "equalization", "focal", "lade",
          "ldam_drw", "logit_adjustment", "lws", "mislas", "mislas_kps", "oltr", "tde")
_LARGE_SCALE = ("camc", "camcpp", "ce", "ce_crt", "fbl", "gcl", "kps", "norm_fc")
_RESNEXT = ("cosine", "lade", "tde")  # configs whose backbone on ImageNet-LT is a ResNeXt-50


@functools.cache
def rows() -> tuple[dict[str, str], ...]:
  """The rows of published.csv."""
  return _read("published.csv")


@functools.cache
def implementations() -> tuple[dict[str, str], ...]:
  """The rows of implementations.csv."""
  return _read("implementations.csv")


@functools.cache
def reproducible() -> tuple[dict[str, str], ...]:
  """The rows that a config reproduces."""

  def has_command(row) -> bool:
    try:
      return bool(published(row))
    except ConfigError:
      return False

  return tuple(filter(has_command, rows()))


def published(row: Mapping[str, str]) -> str:
  """The value of --config that reproduces `row` of published.csv.

  Args:
    row: at least its columns paper, method, dataset, imbalance and backbone.

  Raises:
    ConfigError: a method that has no config for the row's data set.

  >>> published(dict(paper="thesis", method="gcl_cloud_cosine", dataset="cifar10", imbalance="100"))
  'configs/gcl_cifar.py:cifar10,100,cloud_size=cosine'
  >>> published(dict(paper="camc", method="camcpp", dataset="imagenet", imbalance="256", backbone="resnext152"))
  'configs/camcpp_imagenet_lt.py:backbone=resnext152'
  """
  method, dataset = row["method"], row["dataset"]
  if dataset in _DATASETS:
    return _large_scale(row)
  stem, given = _VARIANTS.get(method, (method, ""))
  if row["paper"] == "afa" and method in _AFA:
    stem, given = "afa", _AFA[method]
  elif stem not in _CIFAR or dataset not in ("cifar10", "cifar100"):
    raise _none(row, _CIFAR)
  if stem in ("mislas", "mislas_kps"):
    given = _MISLAS.get((dataset, int(row["imbalance"])), "")
  if (row["paper"], method) == ("fbl", "ce"):
    given = "preset=fbl"
  if stem in ("camc", "camcpp") and dataset == "cifar10" and int(row["imbalance"]) <= 50:
    given = "threshold=1000"  # section IV-D
  return f"configs/{stem}_cifar.py:{dataset},{row['imbalance']}" + (f",{given}" if given else "")


def _read(name: str) -> tuple[dict[str, str], ...]:
  with open(pathlib.Path(__file__).parent / name, newline="", encoding="utf-8") as file:
    return tuple(csv.DictReader(file))


def _large_scale(row: Mapping[str, str]) -> str:
  method, (dataset, backbone) = row["method"], _DATASETS[row["dataset"]]
  stem, given = _LARGE_VARIANTS.get(method, (method, ""))
  if row["paper"] == "afa" and dataset == "imagenet_lt" and method in _AFA:
    stem, given = "afa", _AFA[method]
  elif stem not in (*_LARGE, *_LARGE_SCALE):
    raise _none(row, ("afa", *_LARGE_SCALE, *_LARGE))
  if dataset == "imagenet_lt" and stem in ("afa", "camc", "camcpp", "ce_crt", "norm_fc", *_RESNEXT):
    backbone = "resnext50"
  if (dataset, stem) == ("imagenet_lt", "oltr"):
    backbone = "resnet10"
  entries = [f"backbone={row['backbone']}" if row["backbone"] != backbone else "", given]
  if stem in _LARGE:
    return ",".join((f"configs/{stem}_large.py:{dataset}", *filter(None, entries)))
  text = ",".join(filter(None, entries))
  return f"configs/{stem}_{dataset}.py{':' if text else ''}{text}"


def _none(row: Mapping[str, str], known) -> ConfigError:
  return ConfigError(f"published: there is no config for {row['method']!r} of {row['paper']!r} on {row['dataset']!r}; "
                     f"of methods with such configs are {', '.join(known)}")
