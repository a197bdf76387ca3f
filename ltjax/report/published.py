"""The published numbers, in published.csv, and the command of every row."""

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
# Arguments of the AFA config give the methods of its paper and the baselines, which have its backbone.
_AFA = dict(
    ce="decomposition=none,retrain=false", ce_crt="decomposition=none", afa="retrain=false", afa_crt="",
    afa_no_generation="generation=false,retrain=false", afa_no_addition="addition=false,retrain=false",
    afa_no_layback="layback=false,retrain=false")
# The released MiSLAS configs have other constants at imbalance 10 and 50; the authors released none for 200.
_MISLAS = {
    ("cifar10", 10): "head=0.1,lr_factor=0.2", ("cifar10", 50): "head=0.2,lr_factor=0.2",
    ("cifar100", 10): "head=0.2,tail=0.0,lr_factor=0.1", ("cifar100", 50): "head=0.3,tail=0.0,lr_factor=0.1"}
_LARGE = ("ce_mixup_crt", "cosface", "arcface", "focal", "cb_focal", "equalization", "logit_adjustment", "ldam_drw",
          "mislas", "disalign", "lade")  # methods with one config for all of these data sets
# {data set of the table: (ending of the configs, their default backbone)}
_DATASETS = dict(imagenet=("imagenet_lt", "resnet50"), places=("places_lt", "resnet152"), inat18=("inat", "resnet50"))
# Methods with a config for each of these data sets, and the rows that are evaluations of one run of norm_fc.
_LARGE_SCALE = ("camc", "camcpp", "ce", "ce_crt", "fbl", "gcl", "kps", "norm_fc")
_NORM_FC = dict(linear="classifier=linear", norm_fc="", norm_fc_crt="", norm_fc_ncm="")


@functools.cache
def rows() -> tuple[dict[str, str], ...]:
  """The rows of published.csv."""
  with open(pathlib.Path(__file__).with_suffix(".csv"), newline="", encoding="utf-8") as file:
    return tuple(csv.DictReader(file))


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
  if dataset not in ("cifar10", "cifar100"):
    raise ConfigError(f"published: there is no config for {method!r} of {row['paper']!r} on {dataset!r}")
  stem, given = _VARIANTS.get(method, (method, "")) if row["paper"] != "afa" else ("afa", _AFA[method])
  if stem in ("mislas", "mislas_kps"):
    given = _MISLAS.get((dataset, int(row["imbalance"])), "")
  if (row["paper"], method) == ("fbl", "ce"):
    given = "preset=fbl"
  if stem in ("camc", "camcpp") and dataset == "cifar10" and int(row["imbalance"]) <= 50:
    given = "threshold=1000"  # section IV-D
  return f"configs/{stem}_cifar.py:{dataset},{row['imbalance']}" + (f",{given}" if given else "")


def _large_scale(row: Mapping[str, str]) -> str:
  method, (dataset, backbone) = row["method"], _DATASETS[row["dataset"]]
  if method == "ce_mixup":
    return f"configs/ce_{dataset}.py:mixup=0.2"
  if method in _LARGE:
    return f"configs/{method}_large.py:{dataset}"
  stem, given = ("norm_fc", _NORM_FC[method]) if method in _NORM_FC else (method, "")
  if row["paper"] == "afa" and dataset == "imagenet_lt" and method in _AFA:
    stem, given = "afa", _AFA[method]
  elif stem not in _LARGE_SCALE:
    raise ConfigError(f"published: there is no config for {method!r} of {row['paper']!r} on {row['dataset']!r}; of "
                      f"methods with such configs are afa, {', '.join((*_LARGE_SCALE, *_LARGE))}")
  if dataset == "imagenet_lt" and row["paper"] in ("afa", "camc"):
    backbone = "resnext50"
  entries = [f"backbone={row['backbone']}" if row["backbone"] != backbone else "", given]
  text = ",".join(filter(None, entries))
  return f"configs/{stem}_{dataset}.py{':' if text else ''}{text}"
