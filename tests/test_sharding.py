"""The same run on one device and on eight: the same examples, the same losses, every test image once.

The number of devices is fixed when JAX starts, so each run is a separate process: `python -m tests.test_sharding`.
"""

import itertools
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from ltjax.config import check, parse
from ltjax.distributed import sharding
from ltjax.errors import ConfigError
from tests import tiny
from tests.processes import flags

ROOT = pathlib.Path(__file__).parents[1]


def small_run(workdir: pathlib.Path) -> dict:
  """A stage of five steps on whatever devices there are: its losses, its examples, its confusion matrix."""
  import jax

  from ltjax import train

  # The rate is low: at 0.1 BatchNorm lets a difference of 1e-7 grow to 1e-3 within four steps.
  config = tiny.config("gcl_digits", backbone=tiny.ONE_CONV, epochs=1, log_every_steps=1, eval_batch_size=100,
                       representation__lr=dict(name="constant", value=1e-4))
  dataset = tiny.dataset(config)
  dataset = dataset._replace(test=(dataset.test[0][:397], dataset.test[1][:397]))
  placed, stage = [], tiny.stages(config, dataset)["representation"]
  batches = stage.batches

  def recorded(first, count):
    indices, scalars = batches(first, count)
    with jax.transfer_guard("allow"):  # the loop forbids what waits for the devices
      placed.append((np.asarray(indices).tolist(), sorted(shard.data.shape for shard in indices.addressable_shards)))
    return indices, scalars

  stage.batches = recorded
  result = train.run_stage(stage, workdir)
  kernel = result.variables["params"]["head"]["kernel"]
  return dict(devices=jax.device_count(), placed=placed, confusion=result.confusion.tolist(),
              lines=tiny.log(workdir, "representation"), kernel=np.asarray(kernel).tolist(),
              placements=len(kernel.addressable_shards))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """devices -> the result of `small_run` on that number."""
  folders = {devices: tmp_path_factory.mktemp(f"devices{devices}") for devices in (1, 8)}
  started = {devices: subprocess.Popen(
      [sys.executable, "-m", "tests.test_sharding", folder], cwd=ROOT, text=True, stderr=subprocess.PIPE,
      env=os.environ | dict(JAX_PLATFORMS="cpu", XLA_FLAGS=flags(devices)))
      for devices, folder in folders.items()}
  try:
    for process in started.values():
      _, err = process.communicate(timeout=300)
      assert process.returncode == 0, err[-3000:]
  finally:
    for process in started.values():
      process.kill()
  found = {devices: json.loads((folder / "seen.json").read_text()) for devices, folder in folders.items()}
  assert all(run["devices"] == devices for devices, run in found.items())
  return found


def test_the_examples_are_the_same_on_the_right_devices(runs):
  (one, one_shapes), (eight, eight_shapes) = (zip(*runs[devices]["placed"], strict=True) for devices in (1, 8))
  assert one == eight
  assert len(one) == 5 and len({example for batch in one for example in batch}) == 5 * 128
  assert set(map(str, one_shapes)) == {"[[128]]"} and set(map(str, eight_shapes)) == {str([[16]] * 8)}
  assert (runs[1]["placements"], runs[8]["placements"]) == (1, 8)


def test_the_losses_are_the_same(runs):
  # Noise, mixup and crops are drawn for the complete batch, and BatchNorm sees all of it.
  one, eight = ([line["loss"] for line in runs[devices]["lines"] if "loss" in line] for devices in (1, 8))
  assert len(one) == 5 and len(set(one)) == 5
  np.testing.assert_allclose(eight, one, rtol=1e-4)
  np.testing.assert_allclose(runs[8]["kernel"], runs[1]["kernel"], rtol=0, atol=1e-5)


def test_every_test_image_is_counted_once(runs):
  one, eight = (np.array(runs[devices]["confusion"]) for devices in (1, 8))
  assert one.sum() == eight.sum() == 397  # a prime number: no batch size divides it
  np.testing.assert_array_equal(one.sum(axis=1), eight.sum(axis=1))
  np.testing.assert_array_equal(one, eight)


@pytest.mark.parametrize("devices", [1, 2, 3, 8])
def test_a_batch_fits_the_devices_and_the_data_or_the_nearest_that_do_are_offered(devices):
  spec = parse(tiny.config("ce_digits", backbone=tiny.ONE_CONV)).stages[0]
  for examples, batch_size in itertools.product((1, 7, 8, 100), (1, 3, 8, 12, 99, 100, 101)):
    stage = spec._replace(batch_size=batch_size)
    if batch_size <= examples and batch_size % devices == 0:
      check.check_batch(stage, devices, examples)
      continue
    with pytest.raises(ConfigError, match=rf"^representation\.batch_size: {batch_size} ") as info:
      check.check_batch(stage, devices, examples)
    if batch_size > examples:
      assert f"give 1 to {examples}" in str(info.value)
      continue
    offered = [int(number) for number in re.findall(r"\d+", str(info.value).split("nearest")[1])]
    for size in offered:
      check.check_batch(spec._replace(batch_size=size), devices, examples)
    valid = [size for size in range(1, examples + 1) if size % devices == 0]
    assert bool(offered) == bool(valid)
    if valid:
      assert min(abs(size - batch_size) for size in offered) == min(abs(size - batch_size) for size in valid)


@pytest.mark.parametrize("batch_size", [0, -8])
def test_a_batch_without_examples_is_refused(batch_size):
  with pytest.raises(ConfigError, match=r"^representation\.batch_size: expected an integer of at least 1, got"):
    parse(tiny.config("ce_digits", backbone=tiny.ONE_CONV, representation__batch_size=batch_size))


def test_a_batch_that_does_not_fit_the_devices_stops_the_run_before_it_writes(monkeypatch, tmp_path):
  class Mesh:
    devices = np.zeros(8)

  monkeypatch.setattr(sharding, "data_mesh", Mesh)
  with pytest.raises(ConfigError, match=r"classifier\.batch_size: 100 is not divisible by 8 devices.* 96 and 104"):
    tiny.run(tiny.config("gcl_digits", backbone=tiny.ONE_CONV, classifier__batch_size=100), tmp_path / "run")
  assert not (tmp_path / "run").exists()


if __name__ == "__main__":
  folder = pathlib.Path(sys.argv[1])
  (folder / "seen.json").write_text(json.dumps(small_run(folder / "run")))
