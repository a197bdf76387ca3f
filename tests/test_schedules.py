import doctest
import importlib
import math
import types

import numpy as np
import pytest

from ltjax import schedules
from ltjax.config import bind as build
from ltjax.schedules import Clock
from tests import goldens


def _multi_step(base, at, factors):
  return dict(name="multi_step", base=base, at=at, factors=factors, warmup=5)


CURRICULA = {"bbn_alpha": "alpha", "fbl_curr": "curr"}
# Every stored case: our block for each of its columns.
BLOCKS = {
  "gcl_kps_stage1": [_multi_step(0.1, (160, 180), (0.1, 0.01))],
  "mislas_stage1": [_multi_step(0.1, (160, 180), (0.1, 0.01))],
  "ldam_drw": [_multi_step(0.1, (160, 180), (0.01, 1e-4))],
  "fbl_cifar": [_multi_step(0.1, (160, 180), (0.01, 1e-4))],
  "fbl_imagenet": [_multi_step(0.2, (120, 160), (0.1, 0.01))],
  "gcl_stage2": [dict(name="cosine", base=0.002)],
  "mislas_stage1_cos": [dict(name="cosine", base=0.1)],
  "mislas_stage2": [dict(name="cosine", base=0.05), dict(name="cosine", base=0.1)],
  "fbl_curr": [dict(name="parabolic", shorten=10)],
  "bbn_alpha": [dict(name="parabolic", start=1.0, end=0.0)],
}


def values(block, epochs, steps_per_epoch=3):
  """[epochs, steps_per_epoch]: the block's value at every step of a stage."""
  schedule = build.schedule(block, "test")
  return np.array([[schedule(Clock(epoch * steps_per_epoch + place, steps_per_epoch, epochs))
                    for place in range(steps_per_epoch)] for epoch in range(epochs)])


def test_docstring_examples():
  assert doctest.testmod(schedules).failed == 0


def test_every_golden_case_has_a_block():
  assert {case for case, *_ in goldens.cases("lr_schedules")} == set(BLOCKS)


@pytest.fixture
def released_pi(monkeypatch):
  """The released codes write pi with ten decimals, which moves a cosine's last epochs by up to 2e-8 of their value."""
  monkeypatch.setattr(schedules, "math", types.SimpleNamespace(pi=3.1415926535, cos=math.cos))


@goldens.parametrize("lr_schedules")
def test_golden_at_every_step_of_every_epoch(case, hyper, inputs, outputs, released_pi):
  stored = outputs[CURRICULA.get(case, "lr")]
  epochs = hyper.get("epochs", hyper.get("num_epochs"))
  stored = stored.reshape(epochs, -1)
  assert stored.shape[1] == len(BLOCKS[case])
  for block, column in zip(BLOCKS[case], stored.T, strict=True):
    np.testing.assert_allclose(values(block, epochs), np.broadcast_to(column[:, None], (epochs, 3)), rtol=1e-12)


@pytest.mark.parametrize(("config", "stage", "case"), [
  ("ce_cifar", "representation", "ldam_drw"),
  ("gcl_cifar", "representation", "gcl_kps_stage1"),
  ("gcl_cifar", "classifier", "gcl_stage2"),
])
@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_shipped_configs_have_the_authors_learning_rate(config, stage, case, dataset, released_pi):
  block = importlib.import_module(f"configs.{config}").get_config(dataset)[stage]
  stored = {name: outputs["lr"] for name, _, _, outputs in goldens.cases("lr_schedules") if name == case}[case]
  np.testing.assert_allclose(values(block.lr, block.epochs, 1), stored, rtol=1e-12)


@pytest.mark.parametrize("block", [
  dict(name="constant", value=0.3),
  dict(name="linear", start=0.2, end=0.9),
  dict(name="switch", at=2),
  dict(name="cosine", base=0.1, warmup=3),
  dict(name="parabolic"),
  _multi_step(0.1, (2, 4), (0.1, 0.01)),
])
def test_every_schedule_is_constant_inside_an_epoch(block):
  for steps_per_epoch in (1, 2, 7):
    table = values(block, 6, steps_per_epoch)
    np.testing.assert_array_equal(table, np.broadcast_to(table[:, :1], table.shape))
    np.testing.assert_array_equal(table[:, 0], values(block, 6, 1)[:, 0])


def test_the_list_of_schedules_is_complete():
  assert sorted(build.public(schedules)) == [
      "constant", "cosine", "linear", "multi_step", "parabolic", "rising_cosine", "sine", "switch"]


def test_the_clock_counts_completed_epochs():
  assert [Clock(step, 4, 10).epoch for step in (0, 3, 4, 7, 8, 39)] == [0, 0, 1, 1, 2, 9]


def test_constant_and_plain_numbers():
  assert values(dict(name="constant", value=0.25), 3, 1).tolist() == [[0.25]] * 3
  assert values(0.25, 3, 1).tolist() == [[0.25]] * 3


def test_linear_goes_from_its_start_in_the_first_epoch_to_its_end_in_the_last():
  np.testing.assert_allclose(values(dict(name="linear"), 5, 1)[:, 0], np.linspace(0, 1, 5), rtol=1e-15)
  np.testing.assert_allclose(values(dict(name="linear", start=3.0, end=-1.0), 9, 1)[:, 0], np.linspace(3, -1, 9))
  assert values(dict(name="linear", start=3.0, end=-1.0), 1, 1).tolist() == [[3.0]]


def test_linear_never_leaves_the_range_that_a_progressive_sampler_takes():
  for epochs in range(1, 300):
    last = schedules.linear(Clock(epochs - 1, 1, epochs))
    assert last == 1.0 if epochs > 1 else last == 0.0


def test_switch_changes_at_its_epoch_and_stays():
  assert values(dict(name="switch", at=2), 4, 2).ravel().tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
  assert values(dict(name="switch", at=0, before=5.0, after=7.0), 2, 1).ravel().tolist() == [7, 7]
  assert values(dict(name="switch", at=2, before=5.0, after=7.0), 2, 1).ravel().tolist() == [5, 5]


def test_warm_up_ends_at_the_base_and_none_starts_there():
  warm = dict(name="multi_step", base=0.1, at=(8,), factors=(0.5,))
  np.testing.assert_allclose(values(warm | dict(warmup=4), 6, 1)[:, 0], [0.025, 0.05, 0.075, 0.1, 0.1, 0.1])
  assert values(warm, 6, 1).tolist() == [[0.1]] * 6
  np.testing.assert_allclose(values(dict(name="cosine", base=0.1, warmup=4), 8, 1)[:4, 0],
                             values(dict(name="cosine", base=0.1), 8, 1)[:4, 0] * [0.25, 0.5, 0.75, 1])


def test_factors_are_relative_to_the_base_and_count_from_their_epoch():
  table = values(dict(name="multi_step", base=2.0, at=(1, 3), factors=(0.5, 0.25)), 5, 1)
  assert table.ravel().tolist() == [2.0, 1.0, 1.0, 0.5, 0.5]


def test_parabolic_starts_and_ends_as_documented():
  table = values(dict(name="parabolic", start=2.0, end=4.0, shorten=1), 5, 1).ravel()
  np.testing.assert_allclose(table, [2.0, 2.125, 2.5, 3.125, 4.0])
