"""results.json and the page have every number, and everything needed to reproduce it."""

import csv
import hashlib
import json
import types

import numpy as np
import pytest
import sklearn.metrics
from PIL import Image

from ltjax import metrics
from ltjax.commands import compare, evaluate
from ltjax.config import parse
from ltjax.data import sources, tally
from ltjax.report import activation_maps, baselines, figures, html, predictions, tables
from ltjax.report import page as report
from ltjax.train import StageResult
from tests import tiny
from tests.test_names import HOSTILE


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """(config, data set, work folder, results) of a tiny run of both stages."""
  workdir = tmp_path_factory.mktemp("run")
  (workdir / "plan.md").write_text("# Plan\n\nof a slice\n")
  config = tiny.config(dataset__holdout=0.1, posthoc=(
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
      mean=list(dataset.mean), std=list(dataset.std), image_shape=[8, 8, 1], image_type="uint8", made_by={},
      interpolation="bilinear", test_crops="", bad_images={})
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
    assert (stage["epochs"], stage["batch_size"]) == (2, 128)
    assert stage["steps"] == 2 * (len(dataset.selected) // 128)
    tests = [line["test"] for line in tiny.log(workdir, name) if "test" in line]
    assert stage["test"] == tests[-1] and len(tests) == 2
    assert len(stage["per_class"]) == 10
    assert np.mean(stage["per_class"]) == pytest.approx(stage["test"]["overall"])  # 40 test images in every class
    assert stage["best_selected_on_test"]["overall"] == max(test["overall"] for test in tests)
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


def test_the_baselines_are_those_of_the_features(finished, monkeypatch, capsys):
  monkeypatch.setattr(baselines, "SCORES", 370)  # of 37 images at a time
  monkeypatch.setattr(baselines, "SAID", 100)
  config, dataset, workdir, results = finished
  stage = tiny.stages(config, dataset)["representation"]
  variables = tiny.saved(stage, workdir)
  means, regression = baselines.of_stage(stage, dict(params=variables.params, batch_stats=variables.batch_stats))
  assert [means["name"], regression["name"]] == ["nearest class mean", "logistic regression"]
  assert capsys.readouterr().err == f"baselines: the features of {len(dataset.train[1]):,} training images\n"
  assert means["test"] == results["posthoc"][1]["test"]
  for found in (means, regression):  # 40 test images in every class
    assert found["balanced_accuracy"] == pytest.approx(found["test"]["overall"])
  assert regression["balanced_accuracy"] > 0.5
  assert "baselines" in results and not results["baselines"]  # a published data set has its own


@pytest.mark.parametrize(("stages", "baseline", "words"), [
    ((0.8, 0.7), 0.5, ["second ended below first on held-out images: a balanced accuracy of 70.00 after 80.00"]),
    ((0.7, 0.8), 0.9, ["logistic regression on the same features is better: a balanced accuracy of 90.00 against "
                       "60.00"]),
    ((0.7, 0.7), 0.6, []),
    ((None, None), 0.6, [])])
def test_what_does_worse_than_something_simpler_is_reported(stages, baseline, words):
  results = dict(stages=dict(zip(("first", "second"), (dict(held_out=value) for value in stages), strict=True)),
                 balanced_accuracy=0.6, baselines=[dict(name="logistic regression", balanced_accuracy=baseline)])
  assert baselines.warn(results) == [f"WARNING: {text}" for text in words]
  assert html._remarks(results | dict(stages=dict(last=dict(held_out=None, per_class=[0.5])))) == [
      f"WARNING: {text}." for text in words if "features" in text]


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


# A head of cosines has no norms, and maps of 2 x 2 places show nothing.
PICTURES = ["accuracy_by_class_size", "confusion_matrix", "feature_norms", "feature_norms_by_epoch", "features",
            "gains", "reliability", "training_curves"]


def test_every_picture_is_also_a_drawing(finished):
  drawings = sorted((finished[2] / "report").glob("*.svg"))
  assert [path.stem for path in drawings] == PICTURES
  for path in drawings:
    text = path.read_text(encoding="utf-8")
    assert "<svg" in text and "<text" in text and "<script" not in text and "Date" not in text


def test_the_page_sets_changes_beside_the_values_of_the_file(finished):
  results = finished[3] | dict(changes=[["representation.epochs", "1", "60"], ["head.name", "'<b>'", "'Cosine'"]],
                               command="python -m ltjax.main --config=configs/gcl_digits.py --config.seed=1")
  text = html.of_run(results, "{}", [], finished[2], [], None)
  assert "What the command line changes in configs/gcl_digits.py" in text
  cells = [f'<td class="left"><code>{value}</code></td>' for value in ("1", "60")]
  assert f'<th scope="row" class="left"><code>representation.epochs</code></th>{"".join(cells)}' in text
  assert "&#39;&lt;b&gt;&#39;" in text and "<b>" not in text
  assert finished[3]["changes"] == [] and "started from Python" in (
      finished[2] / "report" / "index.html").read_text(encoding="utf-8")


def test_feature_norms_over_epochs_are_those_of_the_predictions(finished):
  config, dataset, workdir, results = finished
  rows = list(csv.DictReader((workdir / "report" / "feature_norms.csv").read_text().splitlines()))
  assert [(row["stage"], float(row["epoch"])) for row in rows] == [
      (stage, epoch) for stage in config.stages for epoch in (1, 2)]
  groups = report.longtail.shot_groups(dataset.class_counts)
  for stage, row in zip(tiny.stages(config, dataset).values(), rows[1::2], strict=True):
    state = tiny.saved(stage, workdir)
    seen = predictions.of_stage(stage, dict(params=state.params, batch_stats=state.batch_stats))
    for group, classes in groups.items():
      means = [seen.feature_norms[seen.labels == c].mean() for c in classes]
      assert row[group] == "" if not means else float(row[group]) == pytest.approx(np.mean(means), rel=1e-4)
  assert rows[0] != rows[1] and rows[1]["few"] == rows[2]["few"]  # the second stage trains no feature
  page = (workdir / "report" / "index.html").read_text(encoding="utf-8")
  assert 'alt="The mean norm of the features of test images, mean of the classes of each group, against the ep' in page


def test_a_stage_with_one_evaluation_has_no_feature_norms_over_epochs():
  line = dict(step=1, epoch=1, feature_norms=dict(many=2.0, medium=None, few=1.0))
  rows = tables.of_feature_norms(dict(first=[line], second=[dict(step=1, epoch=1, loss=1.0), line, line], third=[]))
  assert rows == [dict(stage="second", epoch=1.0, many=2.0, medium=None, few=1.0)] * 2
  assert not tables.of_feature_norms({})


def test_the_pictures_are_not_empty(finished):
  pictures = sorted((finished[2] / "report").glob("*.png"))
  assert [path.stem for path in pictures] == PICTURES
  for path in pictures:
    with Image.open(path) as image:
      pixels = np.asarray(image.convert("RGB"))
    assert min(pixels.shape[:2]) > 300
    assert len(np.unique(pixels.reshape(-1, 3).astype(np.uint32) @ (1, 256, 65536))) > 10
    assert 0.01 < (pixels != 255).any(axis=-1).mean() < 0.99


def test_the_measures_fit_the_predictions_of_every_test_image(finished):
  config, dataset, workdir, results = finished
  rows = list(csv.DictReader((workdir / "report" / "predictions.csv").read_text().splitlines()))
  labels, predicted = (np.array([int(row[key]) for row in rows]) for key in ("label", "predicted_label"))
  np.testing.assert_array_equal(labels, dataset.test[1])
  found = results["metrics"]
  assert np.mean(labels == predicted) == results["final"]["overall"]
  assert found["balanced_accuracy"] == pytest.approx(sklearn.metrics.balanced_accuracy_score(labels, predicted))
  assert found["macro_f1"] == pytest.approx(sklearn.metrics.f1_score(labels, predicted, average="macro"))
  per_class = results["stages"]["classifier"]["per_class"]
  assert found["worst_class"]["accuracy"] == min(per_class)
  assert found["worst_class"]["others"] == per_class.count(min(per_class)) - 1
  assert 0.5 < found["auc"] <= 1 and 0 <= found["ece"]["overall"] < 1
  for name, (low, high) in found["intervals"].items():
    value = found["balanced_accuracy"] if name == "balanced" else results["final"][name]
    assert low <= value <= high
  confidence, probability = (np.array([float(row[key]) for row in rows]) for key in ("confidence", "true_probability"))
  np.testing.assert_array_equal(confidence[labels == predicted], probability[labels == predicted])
  assert (confidence >= probability).all() and confidence.max() <= 1


def test_results_are_there_before_anything_is_drawn_and_survive_what_fails(tmp_path, monkeypatch, capsys):
  config = tiny.config("ce_digits", epochs=1, backbone=tiny.ONE_CONV)
  seen = []

  def fails(*args):
    seen.append(json.loads((tmp_path / "results.json").read_text())["final"])
    raise ValueError("no font")

  for module, name in ((predictions, "of_stage"), (activation_maps, "of_stage"), (html, "of_run")):
    monkeypatch.setattr(module, name, fails)
  monkeypatch.setattr(figures, "of_run", lambda *args: [figures.Picture("broken", "Broken", "", fails)])
  results = tiny.run(config, tmp_path)
  assert seen == [results["final"]] * 4
  assert json.loads((tmp_path / "results.json").read_text()) == results and "auc" not in results["metrics"]
  assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["README.md", "classes.csv"]
  assert capsys.readouterr().err.count("(ValueError: no font)") == 4


def hostile():
  """The digits, with names that want to be markup, mathematics, formulae or paths."""
  kinds = ("markup", "quotes", "money", "formula", "bar", "line", "right to left", "Chinese", "Latin-1", "empty")
  return sources.digits(imbalance=5.0, profile="exponential", subset_seed=0)._replace(
      class_names=tuple(HOSTILE[kind] or "../x" for kind in kinds))


def test_hostile_names_pass_through_a_run_and_its_pages(tmp_path, capsys):
  config = tiny.config("ce_digits", epochs=1, backbone=tiny.ONE_CONV, dataset=dict(name="tests.test_report:hostile"))
  results = tiny.run(config, tmp_path / "run")
  assert "WARNING" not in capsys.readouterr().err
  folder = tmp_path / "run" / "report"
  names = [report.shown(name, "json") for name in results["data"]["class_names"]]
  text = (folder / "index.html").read_text(encoding="utf-8")
  assert "<script>alert" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text and "<img src=x" not in text
  with open(folder / "classes.csv", newline="", encoding="utf-8") as file:
    found = [row["name"] for row in csv.DictReader(file)]
  assert [name.removeprefix("'") for name in found] == names and not any(name.startswith("=") for name in found)
  evaluate.main([str(tmp_path / "run"), f"--out={tmp_path / 'evaluation'}"])
  compare.main([*2 * [str(tmp_path / "run")], f"--out={tmp_path / 'comparison'}"])
  for page in ("evaluation", "comparison"):
    assert "<script>alert" not in (tmp_path / page / "index.html").read_text(encoding="utf-8")


def test_the_matrix_of_many_classes_comes_from_the_predictions():
  labels, predicted = (np.random.default_rng(seed).integers(0, 7, 100) for seed in (0, 1))
  seen = types.SimpleNamespace(labels=labels, predicted=predicted)
  result = StageResult({}, None, 1, tally.count(labels, predicted, 9), None, [], 0)
  np.testing.assert_array_equal(report.with_matrix(result, seen).confusion,
                                metrics.confusion_matrix(labels, predicted, 9))
  assert report.with_matrix(result, None) is result


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
