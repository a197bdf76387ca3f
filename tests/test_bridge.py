"""Where a stage's parameters come from: another run's model, the stage before, and features of training images."""

import json
from unittest import mock

import jax
import numpy as np
import pytest

from ltjax import bridge, losses, main, recipes, train
from ltjax.errors import ConfigError, LtjaxError, WorkdirError
from ltjax.models import heads
from ltjax.train import Interrupted
from ltjax.workdir.checkpoint import Checkpoints
from tests import tiny

pytestmark = pytest.mark.usefixtures("no_pictures")
DIGITS = tuple("0123456789")


# -- another run ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory, no_pictures):
  """The work folder of a finished run of two stages, and the model that it ended with."""
  workdir = tmp_path_factory.mktemp("trained")
  tiny.run(tiny.config(epochs=1, backbone=tiny.ONE_CONV, representation__mixup=0.0), workdir)
  return workdir, Checkpoints(workdir / "classifier" / "checkpoints", read_only=True).stored_model()


def drawn(num_classes: int = 10, seed: int = 5) -> dict:
  """Fresh variables of the same network."""
  (made, _) = tiny.stages(tiny.config(backbone=tiny.ONE_CONV, seed=seed)).values()
  return dict(made.spec.model((1,) * num_classes).init(
      jax.random.key(seed), np.zeros((1, 8, 8, 1), np.float32), train=False))


def test_the_complete_model_of_the_last_stage_is_loaded(trained):
  workdir, model = trained
  found = bridge.pretrained(drawn(), str(workdir), DIGITS)
  tiny.assert_trees_equal(found, jax.tree.map(np.asarray, model))
  assert (np.asarray(found["params"]["head"]["kernel"]) != np.asarray(drawn()["params"]["head"]["kernel"])).any()


def test_another_number_of_classes_is_refused_with_the_arrays_that_differ(trained):
  workdir, _ = trained
  (workdir / "identity.json").rename(workdir / "identity.kept")  # a run of ltjax 0.1 has none
  try:
    with pytest.raises(WorkdirError, match=r"params/head/kernel is float32\[4,10\], expected float32\[4,7\]"):
      bridge.pretrained(drawn(7), str(workdir), DIGITS[:7])
  finally:
    (workdir / "identity.kept").rename(workdir / "identity.json")


@pytest.mark.parametrize(("names", "different"), [
    (DIGITS[::-1], "the classes are in another order: class 0 was '0' and is '9'"),
    (("ten", *DIGITS[1:]), "1 class is gone: '0'; 1 class is new: 'ten'"),
    (DIGITS[:7], "3 classes are gone: '7', '8', '9'")])
def test_other_classes_are_refused(trained, names, different):
  with pytest.raises(WorkdirError, match=f"was trained for other classes .{different}.; give --config.reset_head=True"):
    bridge.pretrained(drawn(len(names)), str(trained[0]), names)


def test_reset_head_draws_the_head_and_takes_everything_else(trained):
  workdir, model = trained
  fresh = drawn(7)
  found = bridge.pretrained(fresh, str(workdir), DIGITS[:7], reset_head=True)
  tiny.assert_trees_equal(found["params"]["head"], fresh["params"]["head"])
  tiny.assert_trees_equal(found["params"]["backbone"], jax.tree.map(np.asarray, model["params"]["backbone"]))
  tiny.assert_trees_equal(found["batch_stats"], jax.tree.map(np.asarray, model["batch_stats"]))


def test_reset_head_does_not_hide_another_backbone(trained):
  other = drawn()
  other["params"]["backbone"]["more"] = np.zeros(3, np.float32)
  with pytest.raises(WorkdirError, match="params/backbone/more is absent, expected float32"):
    bridge.pretrained(other, str(trained[0]), DIGITS, reset_head=True)


def test_a_folder_that_is_not_a_run_is_refused(tmp_path):
  with pytest.raises(WorkdirError, match="is not the work folder of a run"):
    bridge.pretrained(drawn(), str(tmp_path), DIGITS)


def test_reset_head_without_weights_is_refused(tmp_path):
  with pytest.raises(ConfigError, match="reset_head: without pretrained there is no head to reset"):
    tiny.run(tiny.config(reset_head=True), tmp_path / "run")


def test_a_run_starts_from_another_and_leaves_it_unchanged(trained, tmp_path, capsys):
  workdir, model = trained
  before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
  tiny.run(tiny.config(epochs=1, backbone=tiny.ONE_CONV, pretrained=str(workdir), representation__mixup=0.0,
                       representation__lr=dict(name="constant", value=0.0)), tmp_path / "fine")
  said = capsys.readouterr().err
  count = sum(leaf.size for leaf in jax.tree.leaves(model["params"]))
  assert f"pretrained: network: {count:,} parameters from the run {workdir}" in said
  found = Checkpoints(tmp_path / "fine" / "representation" / "checkpoints", read_only=True).stored_model()
  tiny.assert_trees_equal(found["params"], model["params"])
  assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before


def test_a_finished_run_gives_its_last_stage_without_its_data(trained):
  workdir, model = trained
  stage, variables = bridge.finished(workdir)
  assert stage.name == "classifier" and stage.dataset.class_names == DIGITS and len(stage.dataset.train[0]) == 0
  tiny.assert_trees_equal(jax.device_get(variables), jax.tree.map(np.asarray, model))


# -- the stage before -------------------------------------------------------------------------------------------------


def camc_config(**head):
  """Two stages on digits whose second is CAMC's."""
  common = dict(epochs=1, batch_size=128, lr=0.1, optimizer=recipes.sgd(2e-4), loss=dict(name="cross_entropy"))
  return tiny.config(
      "ce_digits", epochs=1, backbone=tiny.ONE_CONV, dataset__imbalance=50.0,
      head=dict(name="NormalizedLinear", scale=0.5),
      stages=("representation", "classifier"), representation=recipes.stage(**common), classifier=recipes.stage(
          **common, train=("head/.*",), sampler=dict(name="class_balanced"),
          head=dict(name="CAMC", scale=16.0, threshold=30) | head))


@pytest.fixture(scope="module")
def dataset():
  """The digits of `camc_config`."""
  return tiny.dataset(camc_config())


@pytest.fixture(scope="module")
def before(dataset, tmp_path_factory):
  """The variables after the first stage."""
  first = tiny.stages(camc_config(), dataset)["representation"]
  return jax.device_get(train.run_stage(first, tmp_path_factory.mktemp("run")).variables)


def filled(dataset, before, folder, **head):
  """(variables without prototypes, variables with them, the JSON file, the first stage)."""
  first, last = tiny.stages(camc_config(**head), dataset).values()
  variables = bridge.take_over(before, last.init, ())
  after = bridge.with_prototypes(last, first, variables, before, folder)
  return variables, after, json.loads((folder / "prototypes.json").read_text()), first


def places(dataset, written) -> np.ndarray:
  """[t k] indices of the listed images in the training set."""
  of = {index: place for place, index in enumerate(dataset.selected.tolist())}
  return np.array([[of[index] for index in images] for images in written["images"].values()])


@pytest.mark.parametrize("head", [{}, dict(pick="first"), dict(pick="kmeans"), dict(num_prototypes=9)])
def test_prototypes_are_features_of_images_of_the_tail_classes(dataset, before, tmp_path, head):
  variables, after, written, first = filled(dataset, before, tmp_path, **head)
  tail = np.flatnonzero(dataset.class_counts < 30)
  assert 2 < len(tail) < 10 and written["features_of_stage"] == "representation"
  assert list(written["images"]) == [dataset.class_names[c] for c in tail]
  found, k = places(dataset, written), head.get("num_prototypes", 5)
  assert found.shape == (len(tail), k)
  np.testing.assert_array_equal(dataset.train[1][found], np.repeat(tail[:, None], k, axis=1))

  pixels = (dataset.train[0][found.ravel()] / np.float32(255) - np.float32(dataset.mean)) / np.float32(dataset.std)
  _, features = first.model.apply(before, pixels, train=False)
  np.testing.assert_allclose(
      after["params"]["head"]["prototypes"].reshape(len(features), -1), features, rtol=1e-4, atol=1e-5)
  # Nothing else changes.
  after["params"]["head"]["prototypes"] = variables["params"]["head"]["prototypes"]
  tiny.assert_trees_equal(after, variables)


@pytest.mark.parametrize("options", [{}, dict(normalize_prototypes=True), dict(fusion_layers=2)])
def test_calibration_starts_neutral_and_learns_whatever_the_length_of_the_features(dataset, before, tmp_path, options):
  _, after, _, first = filled(dataset, before, tmp_path, **options)
  head = tiny.stages(camc_config(**options), dataset)["classifier"].model.head
  images, labels = (part[:200] for part in dataset.test)
  pixels = (images / np.float32(255) - np.float32(dataset.mean)) / np.float32(dataset.std)
  maps, params = first.model.apply(before, pixels, method="maps"), after["params"]["head"]
  plain = heads.NormalizedLinear(10, scale=16.0, normalize_features=True).apply(
      {"params": {"kernel": params["kernel"]}}, maps.mean((1, 2)))

  @jax.jit
  def step(params, maps):
    def loss(fusion):
      scores = head.apply({"params": params | fusion}, maps)
      return losses.mean(losses.cross_entropy(scores, labels)), scores

    fusion = {name: params[name] for name in params if name.startswith(("fuse", "hidden"))}
    (_, scores), grads = jax.value_and_grad(loss, has_aux=True)(fusion)
    moved = jax.tree.map(lambda value, grad: value - 0.1 * grad, fusion, grads)
    return scores, head.reinforcement(params, maps) - 1, head.reinforcement(params | moved, maps) - 1

  ends = []
  for size in (0.01, 1.0, 100.0):
    scores, start, end = step(params | dict(prototypes=size * params["prototypes"]), size * maps)
    assert (start == 0.5).all() and np.abs(scores - plain).max() < 1e-3
    assert end.std() > 1e-4 and ((end > 0.02) & (end < 0.98)).all()
    ends.append(end)
  for end in ends[1:]:
    np.testing.assert_allclose(end, ends[0], atol=1e-4)


def test_a_class_with_fewer_images_repeats_them(dataset, before, tmp_path):
  written, fewer = filled(dataset, before, tmp_path, num_prototypes=9)[2], 0
  for row, c in zip(places(dataset, written), np.flatnonzero(dataset.class_counts < 30), strict=True):
    count = dataset.class_counts[c]
    assert len(set(row)) == min(9, count)
    np.testing.assert_array_equal(row, np.resize(row[:count], 9))
    fewer += count < 9
  assert fewer


def test_the_draw_depends_on_the_seed_the_stage_and_the_class():
  own = np.arange(20)

  def draw(*where):
    return tuple(bridge._drawn(own, 5, *where))

  wheres = [(0, "classifier", 3), (1, "classifier", 3), (0, "other", 3), (0, "classifier", 4)]
  assert len({draw(*where) for where in wheres}) == 4 and draw(*wheres[0]) == draw(*wheres[0])
  counts = np.bincount(np.concatenate([draw(seed, "classifier", 0) for seed in range(2000)]), minlength=20)
  assert np.abs(counts - 500).max() < 5 * np.sqrt(500 * 0.75)


def test_k_means_picks_the_centre_of_the_larger_cluster_first():
  cross = np.array([[1.0, 0], [-1, 0], [0, 0], [0, 1], [0, -1]])
  features = np.concatenate([50 + cross[:3], cross])
  assert bridge._central(features, 2, 0).tolist() == [5, 2]
  assert sorted(bridge._central(features[:2], 5, 0).tolist()) == [0, 1]


def test_other_heads_take_the_variables_as_they_are(before):
  first, _ = tiny.stages(camc_config()).values()
  assert bridge.take_over(before, first.init, ()) is before


def test_reset_draws_parameters_that_the_stage_before_has(before):
  first, _ = tiny.stages(camc_config()).values()
  found, fresh = bridge.take_over(before, first.init, ("head/.*",)), first.init()
  tiny.assert_trees_equal(found["params"]["head"], fresh["params"]["head"])
  tiny.assert_trees_equal(found["params"]["backbone"], before["params"]["backbone"])
  tiny.assert_trees_equal(found["batch_stats"], before["batch_stats"])


def test_a_run_stopped_in_the_second_stage_keeps_its_prototypes(tmp_path):
  complete = tiny.run(camc_config(), tmp_path / "complete")
  with pytest.raises(Interrupted):
    tiny.run(camc_config(), tmp_path / "parts", stop_after=complete["stages"]["representation"]["steps"] + 1)
  path = tmp_path / "parts" / "classifier" / "prototypes.json"
  written = path.read_text()
  with mock.patch.object(bridge, "with_prototypes", side_effect=AssertionError("drawn again")):
    parts = tiny.run(camc_config(), tmp_path / "parts")
  assert path.read_text() == written == (tmp_path / "complete" / "classifier" / "prototypes.json").read_text()
  assert parts["final"] == complete["final"]
  assert tiny.log(tmp_path / "parts", "classifier")[-2:] == tiny.log(tmp_path / "complete", "classifier")[-2:]


# -- refusals before anything is written -------------------------------------------------------------------------------


def without_first(config):
  config.stages = ("classifier",)
  del config["representation"]


def first_stage(config):
  config.representation.head, config.classifier.head = config.classifier.head, None


def two_branches(config):
  config.classifier.head.crops = 2
  config.backbone = dict(name="ResNetBBN", depth=14, widths=(4, 4, 8))
  config.classifier.transforms = (dict(name="two_branches", sampler=dict(name="reverse"), share=0.5),)


@pytest.mark.parametrize(("head", "change", "words"), [
    (dict(threshold=2), None, ("classifier.head: CAMC", "threshold 2 ", "leaves no tail class")),
    (dict(num_prototypes=30), None, ("classifier.head: CAMC", "num_prototypes 30", "threshold 30")),
    (dict(crops=0), None, ("classifier.head.crops", "at least 1", "0")),
    (dict(num_prototypes=0), None, ("classifier.head.num_prototypes", "at least 1", "0")),
    (dict(class_counts=(1, 2)), None, ("classifier.head.class_counts", "no such argument")),
    ({}, first_stage, ("representation.head: CAMC belongs to the last stage, 'classifier', but 'representation' has",)),
    ({}, without_first, ("CAMC takes its prototypes from the stage before, but 'classifier' is the only one",)),
    ({}, two_branches, ("classifier.head.crops: crops are taken of one batch, but two_branches of classifier makes",))])
def test_a_head_with_prototypes_that_does_not_fit_is_refused(head, change, words, tmp_path):
  found = camc_config(**head)
  if change:
    with found.unlocked(), found.ignore_type(), found.classifier.ignore_type(), found.representation.ignore_type():
      change(found)
  with pytest.raises(LtjaxError) as caught:
    main.run(found, tmp_path / "run")
  assert not (tmp_path / "run").exists()
  message = str(caught.value)
  assert "\n" not in message and all(word in message for word in words), message
