"""What is asked of a trained model, by several processes: the same answers as by one. `python -m` is what they run."""

import json
import pathlib
import sys
from types import SimpleNamespace

import numpy as np

from ltjax import evaluate, models, prototypes, recipes, selection, train
from ltjax.config import bind as build
from ltjax.data import resident
from ltjax.distributed import processes, sharding
from ltjax.report import activation_maps as cams
from tests import tiny
from tests.processes import Processes

HEADS = build.model


def config():
  """Two stages on digits, of which the second is CAMC's, and what is done after training."""
  found = tiny.config("ce_digits", epochs=1, dataset__imbalance=50.0, dataset__holdout=0.2, eval_batch_size=102)
  common = dict(epochs=1, batch_size=128, lr=0.1, weight_decay=2e-4, loss=dict(name="cross_entropy"))
  with found.unlocked():
    found.stages = ("representation", "classifier")
    found.representation = recipes.stage(**common)
    found.classifier = recipes.stage(**common, train=("head/.*",), head=dict(
        name="CAMC", scale=16.0, threshold=30))
    found.posthoc = (dict(name="tau_normalize", stage="representation", tau=(0.0, 1.0)),
                     dict(name="nearest_class_mean", stage="representation"))
  return found


def small_model(config, class_counts, stage: str) -> models.Classifier:
  """Stands in for `build.model`: one convolution, but the head of the config."""
  return models.Classifier(backbone=tiny.OneConv(), head=HEADS(config, class_counts, stage).head)


def work(folder: pathlib.Path) -> dict:
  """Everything that `main.run` asks of a model after training."""
  processes.start(init_timeout=30)
  import jax

  found, build.model = config(), small_model
  dataset, mesh = build.dataset(found)(), sharding.data_mesh()
  dataset = dataset._replace(test=(dataset.test[0][:397], dataset.test[1][:397]))
  counts, shape = dataset.class_counts, dataset.train[0][:1].shape
  _, init, _, _ = train.state_makers(found, "representation", counts, shape)
  variables = sharding.replicate(jax.device_get(init()), mesh)
  model = small_model(found, counts, "representation")
  common = dict(batch_size=found.eval_batch_size, mesh=mesh)
  test, constants = (sharding.replicate(part, mesh) for part in (
      resident.arrays(dataset, "test"), resident.constants(dataset)))
  stream = evaluate.stream(*dataset.test, **common, size=0)
  confusions = [evaluate.Evaluator(model, test, len(counts), **common),
                evaluate.Evaluator(model, constants, len(counts), **common, stream=stream)]
  state = SimpleNamespace(**variables)
  _, init, _, _ = train.state_makers(found, "classifier", counts, shape)
  after = prototypes.fill(found, "classifier", "representation", dataset, train.take_over(variables, init, ()),
                          variables, folder)
  maps = cams.of_run(found, dataset, "classifier", after)
  return dict(count=jax.process_count(), devices=len(mesh.local_devices), rows=list(
      sharding.local_rows(mesh, 8).indices(8)), confusions=[make(state).tolist() for make in confusions],
      posthoc=selection.run(found, dataset, dict(representation=variables)),
      prototypes=np.asarray(after["params"]["head"]["prototypes"]).tolist(), predictions=maps.predictions.tolist(),
      maps={name: values.tolist() for name, values in maps.maps.items()})


def answers(folder: pathlib.Path, count: int) -> list[dict]:
  """What each of `count` processes finds; several have two devices each."""
  folder.mkdir()
  environment = dict(XLA_FLAGS=f"--xla_force_host_platform_device_count={min(count, 2)}")
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
    np.testing.assert_allclose(process["prototypes"], one["prototypes"], rtol=1e-5, atol=1e-6)
    for name, maps in one["maps"].items():
      np.testing.assert_allclose(process["maps"][name], maps, rtol=1e-4, atol=1e-5)
  assert len(one["maps"]) == 2 and len(one["posthoc"]) == 2 and np.std(one["prototypes"]) > 0
  for folder in tmp_path.iterdir():
    assert [path.name for path in folder.iterdir()] == ["prototypes.json"]
  assert len({path.read_text() for path in tmp_path.rglob("prototypes.json")}) == 1


if __name__ == "__main__":
  answer = work(pathlib.Path(sys.argv[1]))
  print(json.dumps(answer))
  processes.leave(0, "finished")
