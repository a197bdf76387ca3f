"""Every published number is one command: the config in each row of the table exists and builds."""

import csv
import importlib
import os
import pathlib
import re

import numpy as np
import pytest

from benchmarks import check_published
from ltjax.config import keys, load, parse
from ltjax.data import longtail
from ltjax.errors import ConfigError
from ltjax.report.published import published, reproducible

ROOT = pathlib.Path(__file__).parents[1]
ROWS = list(csv.DictReader((ROOT / "tests" / "golden" / "published_results.csv").read_text().splitlines()))
CIFAR = [row for row in ROWS if row["dataset"].startswith("cifar")]
OURS = list(reproducible())
# Methods that are only quoted and that ltjax does not have, or not on the data set or with the second stage of a row.
WITHOUT = {"bbn", "capsule", "capsule_tde", "cosine_tde", "de_confound", "decoupling_ncm", "decoupling_tau", "fslwf",
           "iem", "lifted_loss", "meta_class_weight", "meta_class_weight_focal", "meta_class_weight_ldam",
           "range_loss", "rethink_da"}
CALLS = sorted({published(row) for row in OURS})
NAMES = dict(imagenet="imagenet_lt", places="places_lt", inat18="inat2018")


def built(call):
  """The config as the command line reads it."""
  return load.read(str(ROOT / call))


def test_the_table_is_complete():
  assert (len(ROWS), len(CIFAR)) == (400, 247)
  keys = [tuple(row[key] for key in ("paper", "method", "dataset", "imbalance", "backbone", "stage")) for row in ROWS]
  assert len(set(keys)) == len(keys)
  assert {row["kind"] for row in ROWS} == {"own", "ablation", "quoted"}
  assert all(row["table"] and row["row"] for row in ROWS)


def test_every_own_and_every_ablation_row_has_a_command_and_the_others_are_known():
  others = [row for row in ROWS if row not in OURS]
  assert {row["kind"] for row in others} == {"quoted"}
  assert {row["method"] for row in others} == WITHOUT


def test_the_accuracies_of_classes():
  rows = list(csv.DictReader((check_published.REPORT / "published_classes.csv").read_text().splitlines()))
  assert len(rows) == 72 and {row["table"] for row in rows} == {"4.5", "4.6"}
  means = {(method, imbalance): np.mean([float(row["accuracy"]) for row in rows if (
      row["dataset"], row["method"], row["imbalance"]) == ("cifar10", method, imbalance)])
           for method in ("ce", "fbl") for imbalance in ("100", "50")}
  overall = {(row["method"], row["imbalance"]): float(row["top1"]) for row in ROWS if (
      row["paper"], row["dataset"]) == ("fbl", "cifar10")}
  for key, mean in means.items():  # the mean of the classes of a balanced test set is the accuracy
    assert mean == pytest.approx(overall[key], abs=0.06)


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


def test_rows_that_share_a_config_are_evaluations_of_one_run_or_of_several_papers():
  for call in CALLS:
    rows = [row for row in OURS if published(row) == call]
    for paper in {row["paper"] for row in rows}:
      assert sum(row["paper"] == paper for row in rows) == 1 or "norm_fc_imagenet_lt" in call
  everything = [built(call).to_json() for call in CALLS]
  assert len(set(everything)) == len(everything)


def test_a_number_is_found_by_its_row_and_as_an_error_rate():
  lines = {paper: [] for paper in check_published.PAPERS}
  lost = check_published.missing(lines)
  assert len(lost) > 500 and "thesis, kps, cifar10, 100: 81.23" in lost
  lines["thesis"] = [check_published.plain("KPS loss (Ours)\t**18.77**\t15.41\t54.97")]
  found = set(lost) - set(check_published.missing(lines))
  assert {"thesis, kps, cifar10, 100: 81.23", "thesis, kps, cifar10, 50: 84.59"} <= found
  assert all(text.startswith("thesis, kps, ") for text in found)


@pytest.mark.skipif("LTJAX_PAPERS" not in os.environ, reason="LTJAX_PAPERS names no folder with the papers' texts")
def test_every_number_is_in_the_text_of_its_paper():
  assert check_published.missing(check_published.texts(pathlib.Path(os.environ["LTJAX_PAPERS"]))) == []


def docstring(row):
  stem = pathlib.Path(published(row).split(":")[0]).stem
  return " ".join(importlib.import_module(f"configs.{stem}").__doc__.split())


@pytest.mark.parametrize("row", [row for row in OURS if row["kind"] != "quoted" and (
    row["imbalance"] == "100" or row not in CIFAR)], ids=lambda row: "-".join(
        row[key] for key in ("paper", "method", "dataset", "backbone")))
def test_docstrings_have_the_published_numbers(row):
  assert row["top1"] in docstring(row)


def test_docstrings_have_one_number_of_each_quoted_row_at_least():
  for call in CALLS:
    rows = [row for row in OURS if published(row) == call and (row["imbalance"] == "100" or row not in CIFAR)]
    assert not rows or any(row["top1"] in docstring(row) for row in rows), call


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
    dict(paper="camc", method="iem", dataset="places", imbalance="996", backbone="resnet152"),
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
