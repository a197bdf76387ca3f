"""Every published number is one command: the config in each row of the table exists and builds."""

import csv
import importlib
import pathlib
import re

import pytest

from ltjax.config import keys, load, parse
from ltjax.data import longtail
from ltjax.errors import ConfigError
from ltjax.report.published import published
from tests import tiny

ROOT = pathlib.Path(__file__).parents[1]
ROWS = list(csv.DictReader((ROOT / "tests" / "golden" / "published_results.csv").read_text().splitlines()))
CIFAR = [row for row in ROWS if row["dataset"].startswith("cifar")]
NOT_REIMPLEMENTED = ()  # (paper, method, data set) of rows without a command
OURS = [row for row in ROWS if (row["paper"], row["method"], row["dataset"]) not in NOT_REIMPLEMENTED]
CALLS = sorted({published(row) for row in OURS})
NAMES = dict(imagenet="imagenet_lt", places="places_lt", inat18="inat2018")


@pytest.fixture(scope="module", autouse=True)
def traced_once():
  with tiny.shared_shapes():
    yield


def built(call):
  """The config as the command line reads it."""
  return load.read(str(ROOT / call))


def test_the_table_is_complete():
  assert (len(ROWS), len(CIFAR)) == (175, 122)


@pytest.mark.parametrize("call", CALLS)
def test_a_row_is_one_command(call):
  config = built(call)
  parse(config)
  rows = [row for row in OURS if published(row) == call]
  for row in rows:
    assert config.dataset.name == NAMES.get(row["dataset"], row["dataset"])
    assert "imbalance" not in config.dataset or config.dataset.imbalance == float(row["imbalance"])
    # Plain re-weighting and TDE count as one stage; a method of two has a second block.
    assert len(config.stages) == int(row["stage"]) or config.posthoc
    family, depth = re.match(r"(?:bbn_)?(resnet|resnext)(\d+)", row["backbone"]).groups()
    assert config.backbone.depth == int(depth)
    assert (config.backbone.get("groups", 1) == 32) == (family == "resnext")


def test_rows_that_share_a_config_are_evaluations_of_one_run():
  shared = [call for call in CALLS if sum(published(row) == call for row in OURS) > 1]
  assert {call.split(".py")[0] for call in shared} == {"configs/norm_fc_imagenet_lt"}
  everything = [built(call).to_json() for call in CALLS]
  assert len(set(everything)) == len(everything)


@pytest.mark.parametrize("row", [row for row in OURS if row["imbalance"] == "100" or row not in CIFAR],
                         ids=lambda row: f"{row['paper']}-{row['method']}-{row['dataset']}")
def test_docstrings_have_the_published_numbers(row):
  stem = pathlib.Path(published(row).split(":")[0]).stem
  assert row["top1"] in " ".join(importlib.import_module(f"configs.{stem}").__doc__.split())


@pytest.mark.parametrize("method", ["camc", "camcpp"])
@pytest.mark.parametrize(("dataset", "sizes"), [("cifar10", (3, 5, 6, 3, 4)), ("cifar100", (30, 46, 59, 65, 69))])
def test_the_tail_of_camc(method, dataset, sizes):
  classes = int(dataset.removeprefix("cifar"))
  for imbalance, size in zip((10, 20, 50, 100, 200), sizes, strict=True):
    row = dict(paper="camc", method=method, dataset=dataset, imbalance=str(imbalance))
    counts = longtail.exponential_counts(classes, 50000 // classes, imbalance)
    head = parse(built(published(row))).stage("classifier").model(counts).head
    assert head.tail.tolist() == list(range(classes - size, classes))
    assert head.crops == (2 if method == "camcpp" else None)


@pytest.mark.parametrize("row", [
    dict(paper="thesis", method="oltr", dataset="places", imbalance="996", backbone="resnet152"),
    dict(paper="afa", method="afa", dataset="places", imbalance="996", backbone="resnext50"),
    dict(paper="thesis", method="gcl", dataset="svhn", imbalance="100", backbone="resnet32")])
def test_a_result_that_is_not_reproduced_says_so(row):
  with pytest.raises(ConfigError, match=f"no config for '{row['method']}' of '{row['paper']}' on '{row['dataset']}'"):
    published(row)


@pytest.mark.parametrize(("call", "expected"), [
  ("configs/gcl_cifar.py:cifar10,100,sampler=instance", {"classifier.sampler.name": "instance"}),
  ("configs/gcl_cifar.py:cifar10,50,cloud_size=cosine", {
      "dataset.imbalance": 50.0, "representation.adjust.cloud_size": "cosine",
      "classifier.adjust.cloud_size": "cosine"}),
  ("configs/gcl_cifar.py:cifar10,retrain=false", {"stages": ("representation",)}),
  ("configs/ce_cifar.py:cifar100,100,mixup=1.0", {"representation.mixup": 1.0}),
  ("configs/kps_cifar.py:cifar10,100,ga=false", {"representation.adjust.adjust": 0.0}),
  ("configs/fbl_cifar.py:cifar10,100,curriculum=linear_decrease", {
      "representation.adjust.alpha.name": "linear", "representation.adjust.alpha.start": 60.0}),
  ("configs/camc_cifar.py:cifar10,50,threshold=1000", {
      "dataset.imbalance": 50.0, "classifier.head.name": "CAMC", "classifier.head.threshold": 1000.0,
      "classifier.head.scale": 16.0, "head.scale": 0.5}),
  ("configs/camcpp_cifar.py:cifar100,crops=5,num_prototypes=3,pick=kmeans,shared_fusion=true,fusion_size=1,"
   "fusion_layers=2,normalize_prototypes=true", {
      "classifier.head.crops": 5, "classifier.head.num_prototypes": 3, "classifier.head.pick": "kmeans",
      "classifier.head.shared_fusion": True, "classifier.head.fusion_size": 1, "classifier.head.fusion_layers": 2,
      "classifier.head.normalize_prototypes": True}),
  ("configs/gcl_places_lt.py:part=stage4", {
      "representation.train": ("backbone/stage4.*", "head/.*"), "representation.batch_norm": "eval",
      "classifier.train": ("head/.*",)}),
  ("configs/camcpp_imagenet_lt.py:resnext152,crops=3", {
      "backbone.depth": 152, "backbone.groups": 32, "classifier.head.crops": 3, "classifier.head.threshold": 100.0}),
  ("configs/afa_imagenet_lt.py:decomposition=none,retrain=false", {
      "backbone.insert": None, "representation.transforms": ()}),
  ("configs/gcl_inat.py:batch_size=64", {
      "representation.batch_size": 64, "representation.lr.base": 0.025, "classifier.batch_size": 64,
      "classifier.lr.base": 0.0005}),
  ("configs/gcl_folder.py:resnet10,size=64,epochs=3", {
      "backbone.depth": 10, "representation.epochs": 3, "representation.batch_size": 64}),
  ("configs/norm_fc_cifar.py:cifar10,100,g=1", {"head.name": "NormalizedLinear", "head.scale": 1.0}),
  ("configs/norm_fc_cifar.py:cifar100,10,classifier=wn_g", {
      "head.name": "WeightNorm", "head.shared": True, "classifier.head.name": "NormalizedLinear"}),
  ("configs/norm_fc_imagenet_lt.py:classifier=wn,retrain=linear", {
      "classifier.head.name": "Linear", "classifier.reset": ("head/.*",)}),
  ("configs/mislas_cifar.py:cifar10,50,head=0.2,lr_factor=0.2", {
      "classifier.loss.head": 0.2, "classifier.lr_factors": (("head/(kernel|bias)", 0.2),)}),
])
def test_arguments_reach_the_config(call, expected):
  flat = keys.flat(built(call))
  assert {key: flat[key] for key in expected} == expected


@pytest.mark.parametrize(("call", "message"), [
  ("configs/gcl_cifar.py:cifar10,100,cloudsize=cosine", "did you mean 'cloud_size'"),
  ("configs/gcl_cifar.py:cifar10,100,sampler=instanc", "did you mean 'instance'"),
  ("configs/ce_cifar.py:cifar10,100,1.0", "imbalance comes twice"),
  ("configs/kps_cifar.py:cifar10,many", "'many' is not a choice"),
])
def test_a_wrong_argument_is_refused(call, message):
  with pytest.raises(ConfigError, match=message):
    built(call)
