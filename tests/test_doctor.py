"""The doctor finds what is wrong with photographs, and what it advises works when typed."""

import re
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from ltjax import main
from ltjax.commands import doctor
from ltjax.config import load, parse
from ltjax.report import forecast
from tests import tiny

COUNTS = dict(flower=23, temple=4, **{"roof's edge": 3})


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
  """Crops of scikit-learn's two photographs, of 120 to 200 pixels, in train/ and test/."""
  root, (temple, flower) = tmp_path_factory.mktemp("photographs") / "my images", load_sample_images().images
  sources, generator = {"flower": flower, "temple": temple, "roof's edge": temple[:200]}, np.random.default_rng(0)
  for split, counts in (("train", COUNTS), ("test", dict.fromkeys(COUNTS, 3))):
    for name, count in counts.items():
      (root / split / name).mkdir(parents=True)
      for k in range(count):
        side = int(generator.integers(120, 200))
        top, left = (int(generator.integers(0, size - side)) for size in sources[name].shape[:2])
        Image.fromarray(sources[name][top:top + side, left:left + side]).save(root / split / name / f"{k}.jpg")
  return root


def run(capsys, *arguments) -> tuple[int, str, str]:
  """(exit code, stdout, stderr) of the command."""
  try:
    doctor.main([*map(str, arguments)])
    code = 0
  except SystemExit as end:
    code = end.code
  return (code, *capsys.readouterr())


def typed(out: str):
  """The config of the command on the last line, as the training program would read it."""
  words = shlex.split(out.splitlines()[-1].removeprefix("train:"))
  assert words[:3] == ["python", "-m", "ltjax.main"]
  given = load.parse(words[3:], main.OPTIONS, "")
  parse(given["config"])
  assert given["workdir"] == "runs/mine"
  return given["config"]


def test_sound_photographs(photographs, capsys):
  code, out, err = run(capsys, photographs)
  assert code == 0 and "wrong" not in err
  assert "flower has 23 training images, roof's edge has 3, 7.667 times fewer" in out
  assert "half of all images are in 1 of 3 classes" in out and "2 classes have fewer than 20 images" in out
  assert "all 39 images can be decoded" in out and "no image comes twice" in out
  shorter = re.search(r"the shorter side has (\d+) pixels in the median of 30 images, (\d+) to (\d+)", out)
  assert 120 <= int(shorter[2]) <= int(shorter[1]) <= int(shorter[3]) < 200
  assert "3 classes have fewer than 10 test images: of 3, 2 right mean an accuracy of 21 to 94 %" in out
  assert "configs/folder.py: 30 training images are few" in out
  config = typed(out)
  assert config.dataset.root == str(photographs) and config.backbone.name == "EfficientNet"
  assert config.classifier.batch_size == 24 and "does not fit" not in out  # the config's 32 are more than the images


def test_what_is_wrong_is_named(photographs, tmp_path, capsys):
  root = tmp_path / "copy"
  shutil.copytree(photographs, root)
  shutil.copy(root / "train" / "flower" / "0.jpg", root / "test" / "flower" / "9.jpg")  # in both splits
  shutil.copy(root / "train" / "flower" / "1.jpg", root / "train" / "flower" / "99.jpg")  # twice in one
  shutil.copy(root / "train" / "flower" / "2.jpg", root / "train" / "temple" / "9.jpg")  # in two classes
  cut = root / "train" / "temple" / "0.jpg"
  cut.write_bytes(cut.read_bytes()[:900])
  code, out, err = run(capsys, root)
  assert code == 1
  assert f"wrong: {cut}: cannot be decoded (" in err and "1 of 42 images cannot be read" in out
  train = root / "train"
  assert f"{root}/test/flower/9.jpg: the test set has the same image as the training set, {train}/flower/0.jpg" in err
  assert f"wrong: {train}/flower/2.jpg: the same image is in another class, {train}/temple/9.jpg" in err
  assert err.count("wrong: ") == 3 and "2 images repeat another of the same split" in out
  assert "1 test image is among the training or held-out images too" in out


def test_a_table_of_photographs(photographs, tmp_path, capsys):
  lines = [f"{path.relative_to(photographs)},{path.parent.name}" for path in sorted(photographs.glob("*/*/*.jpg"))]
  (tmp_path / "all of them.csv").write_text("\n".join(["path,class", *lines]) + "\n")
  code, out, err = run(capsys, tmp_path / "all of them.csv", f"--config.dataset.root={photographs}",
                       "--config.dataset.subset_seed=3")
  assert code == 0, err
  config = typed(out)
  assert config.dataset.name == "csv" and config.dataset.subset_seed == 3 and config.backbone.name == "EfficientNet"
  assert config.dataset.train_csv == str(tmp_path / "all of them.csv") and config.dataset.root == str(photographs)


def test_a_config_is_judged_by_its_data_set(photographs, capsys):
  code, out, err = run(capsys, "configs/gcl_digits.py:20", "--config.seed=3")
  assert code == 0, err
  config = typed(out)
  assert config.dataset.imbalance == 20 and config.seed == 3 and config.head.name == "Cosine"
  assert "arrays of 8 x 8 pixels" in out
  assert re.search(r"representation: about \d+ MiB on the device, a minute or less on \d+ cores?", out)
  own = run(capsys, "configs/gcl_folder.py", f"--config.dataset.root={photographs}")
  assert own[0] == 0 and typed(own[1]).dataset.root == str(photographs) and "configs/folder.py: " in own[1]


@pytest.mark.parametrize("root", ["plain", "two words", "12", "None", "'quoted'", "('a',)"])
def test_any_path_works_when_typed(root, photographs, tmp_path, monkeypatch, capsys):
  (tmp_path / root).symlink_to(photographs)
  (tmp_path / "configs").symlink_to(doctor.shipped.folder().resolve())
  monkeypatch.chdir(tmp_path)
  assert typed(run(capsys, root)[1]).dataset.root == root


def test_balanced_classes_need_no_method():
  stages = tiny.stages(tiny.config("ce_digits", dataset__imbalance=1.0))
  assert doctor.balance(stages["representation"].dataset).startswith("balanced: the largest class has 1 times")


def test_bad_input_is_one_sentence(tmp_path, capsys):
  for arguments, words in (([], "try `ltjax doctor DIR`"), ([tmp_path / "none"], "no folder"),
                           (["configs/gcl_digit.py"], "did you mean"), ([tmp_path], "no folder in"),
                           ([tmp_path, "--shown=x"], "--shown: expected a number")):
    code, out, err = run(capsys, *arguments)
    assert code == 2 and not out and err.startswith("error: ") and words in err and err.count("\n") == 1


def test_memory_and_time_grow_with_what_is_trained():
  full = tiny.stages(tiny.config("ce_digits"))["representation"]
  head = tiny.stages(tiny.config("ce_digits", augment=(), representation__train=("head/.*",),
                                 representation__batch_norm="eval"))["representation"]
  longer = tiny.stages(tiny.config("ce_digits", augment=(), representation__train=("head/.*",), epochs=50,
                                   representation__batch_norm="eval"))["representation"]
  assert forecast.memory_of(full) > forecast.memory_of(head) > 0
  assert forecast.seconds_of(full) > forecast.seconds_of(head)
  assert forecast.seconds_of(longer) == forecast.seconds_of(head)  # their features are computed once
