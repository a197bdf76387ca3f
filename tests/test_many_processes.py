"""Several processes compute the same results from a trained model as one. They run `python -m`."""

import json
import pathlib
import sys

import numpy as np

from ltjax import bridge, posthoc, recipes, stage
from ltjax.config import parse
from ltjax.data import extract, features
from ltjax.data.evaluate import Evaluator
from ltjax.distributed import processes, sharding
from ltjax.report import activation_maps
from tests import tiny
from tests.processes import Processes, flags

FEATURES = "features.safetensors"


def config():
  """Two stages on digits, the second with CAMC, and methods after training."""
  found = tiny.config("ce_digits", epochs=1, backbone=tiny.ONE_CONV, dataset__imbalance=50.0, dataset__holdout=0.2,
                      eval_batch_size=102)
  common = dict(epochs=1, batch_size=128, lr=0.1, optimizer=recipes.sgd(2e-4), loss=dict(name="cross_entropy"))
  with found.unlocked():
    found.stages = ("representation", "classifier")
    found.representation = recipes.stage(**common)
    found.classifier = recipes.stage(**common, train=("head/.*",), head=dict(
        name="CAMC", scale=16.0, threshold=30))
    found.posthoc = (dict(name="tau_normalize", stage="representation", tau=(0.0, 1.0)),
                     dict(name="nearest_class_mean", stage="representation"))
  return found


def work(folder: pathlib.Path) -> dict:
  """Everything that a run asks of a model after training."""
  processes.start(init_timeout=30)
  import jax

  spec = parse(config())
  dataset, _ = spec.read()
  dataset = dataset._replace(test=(dataset.test[0][:397], dataset.test[1][:397]))
  first, second = stage.build(spec, dataset)
  variables = sharding.replicate(jax.device_get(first.init()), first.mesh)
  evaluators = [Evaluator(first.model, dataset, "test", first.augmentation, batch_size=102, mesh=first.mesh,
                          streamed=streamed) for streamed in (False, True)]
  found = [make.measure(variables, lambda counted: False) for make in evaluators]
  after = bridge.with_prototypes(second, first, bridge.take_over(variables, second.init, ()), variables, folder)
  maps = activation_maps.of_stage(second, after)
  extract.extract(first, variables, folder / FEATURES, extract.describe(first, variables, views=1))
  return dict(count=jax.process_count(), devices=len(first.mesh.local_devices), rows=list(
      sharding.local_rows(first.mesh, 8).indices(8)), confusions=[make.counts.tolist() for make in found],
      norms=[make.feature_norms.tolist() for make in found],
      posthoc=posthoc.run(first.posthoc, first, variables),
      prototypes=np.asarray(after["params"]["head"]["prototypes"]).tolist(), predictions=maps.predictions.tolist(),
      maps={name: values.tolist() for name, values in maps.maps.items()})


def answers(folder: pathlib.Path, count: int) -> list[dict]:
  """The results of each of `count` processes; several have two devices each."""
  folder.mkdir()
  environment = dict(XLA_FLAGS=flags(devices=min(count, 2)))
  with Processes(["tests.test_many_processes", str(folder)], count, environment=environment,
                 each=[{}] if count == 1 else None) as run:
    ended = run.all_ended(150)
  assert [process.code for process in ended] == [0] * count, [process.err[-2000:] for process in ended]
  return [json.loads(process.out.splitlines()[-1]) for process in ended]


def test_all_processes_get_the_answers_of_one(tmp_path):
  (one,), two = (answers(tmp_path / str(count), count) for count in (1, 2))
  for number, process in enumerate(two):
    assert (process["count"], process["devices"]) == (2, 2)
    assert process["rows"] == [4 * number, 4 * number + 4, 1]
    assert np.sum(process["confusions"][0]) == np.sum(process["confusions"][1]) == 397
    for key in ("confusions", "posthoc", "predictions"):
      assert process[key] == one[key], key
    np.testing.assert_allclose(process["norms"], one["norms"], rtol=1e-5)
    np.testing.assert_allclose(process["prototypes"], one["prototypes"], rtol=1e-5, atol=1e-6)
    for name, maps in one["maps"].items():
      np.testing.assert_allclose(process["maps"][name], maps, rtol=1e-4, atol=1e-5)
  assert np.shape(one["norms"]) == (2, 10)
  assert len(one["maps"]) == 2 and len(one["posthoc"]) == 2 and np.std(one["prototypes"]) > 0
  for folder in tmp_path.iterdir():
    assert sorted(path.name for path in folder.iterdir()) == [FEATURES, "prototypes.json"]
  alone, shared = (features.load(tmp_path / str(count) / FEATURES)[0] for count in (1, 2))
  for name, array in alone.items():
    np.testing.assert_allclose(shared[name], array, rtol=1e-4, atol=1e-5, err_msg=name)
  assert len({path.read_text() for path in tmp_path.rglob("prototypes.json")}) == 1


if __name__ == "__main__":
  answer = work(pathlib.Path(sys.argv[1]))
  print(json.dumps(answer))
  processes.leave(0, "finished")
