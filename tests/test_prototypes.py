"""What CAMC's stage takes from the one before: which images, whose features, and that a resumed run draws the same."""

import json
from unittest import mock

import numpy as np
import pytest

from ltjax import main, prototypes, recipes, train
from ltjax.config import bind as build
from ltjax.config import load as configs
from ltjax.errors import ConfigError, LtjaxError
from ltjax.train import Interrupted
from tests import tiny


def camc_config(**head):
  """Two stages on digits whose second is CAMC's."""
  found = tiny.config("ce_digits", epochs=1)
  common = dict(epochs=1, batch_size=128, lr=0.1, weight_decay=2e-4, loss=dict(name="cross_entropy"))
  with found.unlocked():
    found.dataset.imbalance = 50.0
    found.head = dict(name="NormalizedLinear", scale=0.5)
    found.stages = ("representation", "classifier")
    found.representation = recipes.stage(**common)
    found.classifier = recipes.stage(
        **common, train=("head/.*",), sampler=dict(name="class_balanced"),
        head=dict(name="CAMC", scale=16.0, threshold=30) | head)
  return found


@pytest.fixture(scope="module")
def dataset():
  return build.dataset(camc_config())()


@pytest.fixture(scope="module")
def before(dataset, tmp_path_factory):
  """(work folder, variables) after the first stage."""
  workdir = tmp_path_factory.mktemp("run")
  result = train.run_stage(camc_config(), "representation", dataset, workdir, before=None, stop=lambda: False)
  return workdir, dict(params=result.state.params, batch_stats=result.state.batch_stats)


def filled(dataset, before, folder, **head):
  """(variables before, after, the JSON) of `fill`."""
  found = camc_config(**head)
  _, init, _, _ = train.state_makers(found, "classifier", dataset.class_counts, dataset.train[0][:1].shape)
  variables = train.take_over(before[1], init, ())
  after = prototypes.fill(found, "classifier", "representation", dataset, variables, before[1], folder)
  return variables, after, json.loads((folder / "prototypes.json").read_text())


def places(dataset, written) -> np.ndarray:
  """[t k] places in the training set of the images that were written down."""
  of = {index: place for place, index in enumerate(dataset.selected.tolist())}
  return np.array([[of[index] for index in images] for images in written["images"].values()])


@pytest.mark.parametrize("head", [{}, dict(pick="first"), dict(pick="kmeans"), dict(num_prototypes=9)],
                         ids=lambda head: str(head))
def test_features_of_images_of_the_tail_classes(dataset, before, tmp_path, head):
  variables, after, written = filled(dataset, before, tmp_path, **head)
  tail = np.flatnonzero(dataset.class_counts < 30)
  assert 2 < len(tail) < 10 and written["features_of_stage"] == "representation"
  assert list(written["images"]) == [dataset.class_names[c] for c in tail]
  found, k = places(dataset, written), head.get("num_prototypes", 5)
  assert found.shape == (len(tail), k)
  np.testing.assert_array_equal(dataset.train[1][found], np.repeat(tail[:, None], k, axis=1))

  model = build.model(camc_config(), dataset.class_counts, "representation")
  pixels = (dataset.train[0][found.ravel()] / np.float32(255) - np.float32(dataset.mean)) / np.float32(dataset.std)
  _, features = model.apply(before[1], pixels, train=False)
  np.testing.assert_allclose(
      after["params"]["head"]["prototypes"].reshape(len(features), -1), features, rtol=1e-4, atol=1e-5)
  # Nothing else changes.
  after["params"]["head"]["prototypes"] = variables["params"]["head"]["prototypes"]
  tiny.assert_trees_equal(after, variables)


def test_without_replacement_and_around_where_a_class_has_fewer(dataset, before, tmp_path):
  _, _, written = filled(dataset, before, tmp_path, num_prototypes=9)
  fewer = 0
  for row, c in zip(places(dataset, written), np.flatnonzero(dataset.class_counts < 30), strict=True):
    count = dataset.class_counts[c]
    assert len(set(row)) == min(9, count)
    np.testing.assert_array_equal(row, np.resize(row[:count], 9))
    fewer += count < 9
  assert fewer


def test_the_seed_the_stage_and_the_class_decide(dataset):
  own = np.arange(20)

  def drawn(*where):
    return tuple(prototypes._drawn(own, 5, *where))

  wheres = [(0, "classifier", 3), (1, "classifier", 3), (0, "other", 3), (0, "classifier", 4)]
  assert len({drawn(*where) for where in wheres}) == 4 and drawn(*wheres[0]) == drawn(*wheres[0])
  counts = np.bincount(np.concatenate([drawn(seed, "classifier", 0) for seed in range(2000)]), minlength=20)
  assert np.abs(counts - 500).max() < 5 * np.sqrt(500 * 0.75)


def test_k_means_takes_the_images_in_the_middle_of_the_larger_cluster_first():
  cross = np.array([[1.0, 0], [-1, 0], [0, 0], [0, 1], [0, -1]])
  features = np.concatenate([50 + cross[:3], cross])
  assert prototypes._central(features, 2, 0).tolist() == [5, 2]
  assert sorted(prototypes._central(features[:2], 5, 0).tolist()) == [0, 1]


def test_other_heads_are_left_alone(dataset, before, tmp_path):
  found = prototypes.fill(camc_config(), "representation", "representation", dataset, before[1], before[1], tmp_path)
  assert found is before[1] and not list(tmp_path.iterdir())


def test_a_run_stopped_in_the_second_stage_keeps_its_prototypes(tmp_path):
  whole = tiny.run(camc_config(), tmp_path / "whole")
  with pytest.raises(Interrupted):
    tiny.run(camc_config(), tmp_path / "parts", stop_after=whole["stages"]["representation"]["steps"] + 1)
  path = tmp_path / "parts" / "classifier" / "prototypes.json"
  written = path.read_text()
  with mock.patch.object(prototypes, "fill", side_effect=AssertionError("drawn again")):
    parts = tiny.run(camc_config(), tmp_path / "parts")
  assert path.read_text() == written == (tmp_path / "whole" / "classifier" / "prototypes.json").read_text()
  assert parts["final"] == whole["final"]
  assert tiny.log(tmp_path / "parts", "classifier")[-2:] == tiny.log(tmp_path / "whole", "classifier")[-2:]


# -- what is refused, before anything is written -----------------------------------------------------------------------


def refused(found, tmp_path) -> str:
  with pytest.raises(LtjaxError) as info:
    main.run(found, tmp_path / "run")
  assert not (tmp_path / "run").exists()
  message = str(info.value)
  assert "\n" not in message
  return message


@pytest.mark.parametrize(("head", "words"), [
  (dict(threshold=2), ("classifier.head: CAMC", "threshold 2 ", "leaves no tail class")),
  (dict(num_prototypes=30), ("classifier.head: CAMC", "num_prototypes 30", "threshold 30")),
  (dict(crops=0), ("classifier.head.crops", "at least 1", "0")),
  (dict(num_prototypes=0), ("classifier.head.num_prototypes", "at least 1", "0")),
  (dict(class_counts=(1, 2)), ("classifier.head.class_counts", "no such argument")),
])
def test_a_head_that_does_not_fit_is_refused(head, words, tmp_path):
  message = refused(camc_config(**head), tmp_path)
  assert all(word in message for word in words), message


def test_a_head_that_is_not_in_the_last_stage_is_refused(tmp_path):
  found = camc_config()
  with found.unlocked():
    found.representation.head, found.classifier.head = found.classifier.head, None
  message = refused(found, tmp_path)
  assert "representation.head: CAMC belongs to the last stage, 'classifier', but 'representation' has it" in message


def test_a_head_without_a_stage_before_is_refused(tmp_path):
  found = camc_config()
  with found.unlocked():
    found.stages = ("classifier",)
    del found.representation
  message = refused(found, tmp_path)
  assert "classifier.head: CAMC takes its prototypes from the stage before, but 'classifier' is the only one" in message


def test_crops_do_not_go_with_branches():
  found = camc_config(crops=2)
  with found.unlocked():
    found.backbone = dict(name="ResNetBBN", depth=14, widths=(4, 4, 8))
    found.classifier.branches = dict(sampler=dict(name="reverse"), share=0.5)
  with pytest.raises(ConfigError, match=r"classifier.head.crops: crops of 2 x 2 .* but classifier has branches"):
    configs.check(found)
