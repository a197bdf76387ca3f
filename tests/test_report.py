"""results.json and the page have every number, and everything needed to reproduce it."""

import hashlib
import json
import types

import numpy as np
import pytest
from PIL import Image

from ltjax.config import parse
from ltjax.report import page as report
from ltjax.train import StageResult
from tests import tiny


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """(config, data set, work folder, results) of a tiny run of both stages."""
  workdir = tmp_path_factory.mktemp("run")
  (workdir / "plan.md").write_text("# Plan\n\nof a slice\n")
  config = tiny.config(epochs=1, dataset__holdout=0.1, posthoc=(
      dict(name="tau_normalize", tau=(0.5, 1.0)), dict(name="nearest_class_mean", stage="representation")))
  return config, tiny.dataset(config), workdir, tiny.run(config, workdir)


def test_the_results_identify_the_run(finished):
  config, dataset, workdir, results = finished
  assert json.loads((workdir / "results.json").read_text()) == results
  assert not list(workdir.glob("*.tmp"))
  parameters = tiny.stages(config, dataset)["classifier"].shapes["params"]
  assert results["parameters"] == sum(leaf.size for leaf in tiny.jax.tree.leaves(parameters))
  assert results["data"] == dict(
      name="digits", imbalance=5.0, train_images=len(dataset.selected), test_images=400,
      held_out_images=len(dataset.held_out[1]), held_out_counts=dataset.held_out_counts.tolist(),
      class_counts=dataset.class_counts.tolist(), class_names=list("0123456789"),
      selected_sha256=hashlib.sha256(np.asarray(dataset.selected, "<i8").tobytes()).hexdigest(),
      mean=list(dataset.mean), std=list(dataset.std), image_shape=[8, 8, 1], bad_images={})
  crop, mixup = dict(name="random_crop", padding=1), dict(name="mixup", alpha=1.0)
  assert results["augmentation"] == dict(representation=[crop, mixup], classifier=[crop])
  assert (results["seed"], results["precision"]) == (0, "float32")
  assert all(results["hardware"][key] for key in ("device", "host", "processes"))
  assert {"python", "ltjax", "jax", "flax", "optax", "numpy"} <= set(results["versions"])
  assert results["commit"] == "unknown" or len(results["commit"].removesuffix("+changes")) == 40


def test_a_plan_made_before_the_run_is_in_the_page(finished):
  _, _, workdir, _ = finished
  assert (workdir / "report" / "README.md").read_text().endswith("\n## Plan\n\nof a slice\n")


def test_the_results_hold_every_number(finished):
  config, dataset, workdir, results = finished
  assert list(results["stages"]) == list(config.stages)
  assert results["final"] == results["stages"]["classifier"]["test"]
  assert results["groups"] == {group: len(classes) for group, classes in
                               report.longtail.shot_groups(dataset.class_counts).items()}
  for name, stage in results["stages"].items():
    assert (stage["epochs"], stage["batch_size"]) == (1, 128)
    assert stage["steps"] == len(dataset.selected) // 128
    assert stage["test"] == [line["test"] for line in tiny.log(workdir, name) if "test" in line][-1]
    assert len(stage["per_class"]) == 10
    assert np.mean(stage["per_class"]) == pytest.approx(stage["test"]["overall"])  # 40 test images in every class
    assert stage["best_selected_on_test"] == dict(epoch=1.0, overall=stage["test"]["overall"])
    assert stage["seconds"] > 0
    assert stage["images_per_second"] == pytest.approx(stage["steps"] * 128 / stage["seconds"])


def test_posthoc_methods_are_in_the_results_the_table_and_the_page(finished):
  _, dataset, workdir, results = finished
  tau, means = results["posthoc"]
  assert (tau["name"], tau["stage"]) == ("tau_normalize", "classifier")
  assert [candidate["tau"] for candidate in tau["selection"]["candidates"]] == [0.5, 1.0]
  assert tau["selection"]["images"] == sum(results["data"]["held_out_counts"]) == len(dataset.held_out[1])
  assert (means["stage"], means["selection"]) == ("representation", None)
  for found in (tau, means):
    assert np.mean(found["per_class"]) == pytest.approx(found["test"]["overall"])
  rows, page = report.table(results).splitlines()[-2:], (workdir / "report" / "README.md").read_text()
  names = [f"classifier + tau_normalize(tau={tau['hyper_parameters']['tau']})",
           "representation + nearest_class_mean(metric=cosine, unit=False)"]
  for row, name, found in zip(rows, names, (tau, means), strict=True):
    assert row.startswith(name) and f"{100 * found['test']['overall']:.2f}" in row
    assert f"- `{name}`: " in page
  assert f"chosen among 2 on {len(dataset.held_out[1])} held-out training images of 10 classes" in page
  assert f" training, {len(dataset.held_out[1])} held-out and 400 test images" in page


def test_the_page_lists_every_class_and_identifies_the_run(finished):
  config, dataset, workdir, results = finished
  page = (workdir / "report" / "README.md").read_text()
  last = results["stages"]["classifier"]
  for name, count, accuracy in zip("0123456789", dataset.class_counts, last["per_class"], strict=True):
    assert f"| {name} | {count} | {100 * accuracy:.1f} |" in page
  for part in (report.table(results), results["data"]["selected_sha256"], f"{results['parameters']:,} parameters",
               "seed 0", results["commit"], results["hardware"]["device"], "selected on the test set, not the result"):
    assert part in page
  for picture in ("training_curves", "accuracy_by_class_size", "confusion_matrix"):
    assert f"({picture}.png)" in page


def test_the_pictures_are_not_empty(finished):
  pictures = sorted((finished[2] / "report").glob("*.png"))
  assert len(pictures) == 4
  for path in pictures:
    with Image.open(path) as image:
      pixels = np.asarray(image.convert("RGB"))
    assert min(pixels.shape[:2]) > 300
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10
    assert 0.01 < (pixels != 255).any(axis=-1).mean() < 0.99


def results_with(groups, **accuracies):
  return dict(groups=groups, stages={name: dict(test=test) for name, test in accuracies.items()})


def test_the_imbalance_of_a_data_set_without_that_argument_is_that_of_its_counts(finished):
  config, dataset, workdir, results = finished
  spec = parse(config)
  source = spec.dataset._replace(constants={key: value for key, value in spec.dataset.constants.items()
                                            if key != "imbalance"})
  stages = tuple(tiny.stages(config, dataset).values())
  left = {stage.name: StageResult({}, None, 1, np.eye(10, dtype=int), None, [], 0) for stage in stages}
  bad_images = types.SimpleNamespace(found={}, retried=0)
  again = report.summary(spec._replace(dataset=source, posthoc=()), stages, left, workdir, "", bad_images)
  counts = dataset.class_counts
  assert again["data"]["imbalance"] == counts.max() / counts.min() != results["data"]["imbalance"]


def test_the_table_has_a_dash_for_a_group_without_classes():
  test = dict(overall=0.5, many=0.75, medium=0.25, few=None)
  text = report.table(results_with(dict(many=3, medium=1, few=0), representation=test, classifier=test))
  header, *rows = text.splitlines()
  assert header.split() == ["test", "accuracy,", "%", "overall", "many", "(3)", "medium", "(1)", "few", "(0)"]
  assert [row.split() for row in rows] == [
      ["representation", "50.00", "75.00", "25.00", "-"], ["classifier", "50.00", "75.00", "25.00", "-"]]
  assert len({len(line) for line in text.splitlines()}) == 1  # columns stand under each other


def test_a_class_that_is_never_predicted_right_has_accuracy_zero_and_no_dash():
  test = dict(overall=0.5, many=0.75, medium=0.0, few=0.0)
  text = report.table(results_with(dict(many=3, medium=1, few=1), only=test))
  assert text.splitlines()[1].split() == ["only", "50.00", "75.00", "0.00", "0.00"]


def test_the_commit_names_changes_and_is_unknown_outside_a_checkout(monkeypatch, tmp_path):
  monkeypatch.setattr(report.ltjax, "__file__", str(tmp_path / "__init__.py"))
  assert report.commit() == "unknown"
