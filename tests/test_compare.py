"""Runs side by side: groups of seeds, paired differences, the distance from papers, and the page."""

import csv
import functools
import json
import shutil

import numpy as np
import pytest

from ltjax.commands import compare
from ltjax.config.keys import flat
from ltjax.report import activation_maps, comparison, figures
from ltjax.workdir import folder
from tests import tiny


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """Work folders: one config with two seeds, and another one."""
  root = tmp_path_factory.mktemp("runs")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(figures, "of_run", lambda *args: [])
    patch.setattr(activation_maps, "of_stage", lambda *args: None)
    for name, more in dict(ce=dict(seed=0), ce_again=dict(seed=1), slow=dict(seed=0, representation__lr=1e-4)).items():
      tiny.run(tiny.config("ce_digits", epochs=1, backbone=tiny.ONE_CONV, **more), root / name)
  return root


def read(workdir):
  return comparison.read(workdir, flat(folder.load(workdir)))


@pytest.fixture
def compared(command):
  """(exit code, stdout, stderr) of a command line of `ltjax compare`."""
  return functools.partial(command, main=compare.main)


def test_seeds_of_a_config_are_a_group(runs):
  groups = comparison.grouped([read(runs / name) for name in ("ce", "slow", "ce_again")])
  assert [(group.name, len(group.runs)) for group in groups] == [("ce and 1 more", 2), ("slow", 1)]
  values = groups[0].values("overall")
  assert values.tolist() == [run.results["final"]["overall"] for run in groups[0].runs]
  differing = comparison.differing(groups)
  assert differing and all(key.startswith("representation.lr") for key in differing)


def test_a_group_differs_from_itself_by_nothing_and_the_other_way_round_by_the_opposite(runs):
  first, second = comparison.grouped([read(runs / name) for name in ("ce", "slow")])
  assert comparison.difference(first, first) == comparison.Difference(0, 0, 0, 1)
  there, back = comparison.difference(first, second), comparison.difference(second, first)
  accuracy = [group.runs[0].results["final"]["overall"] for group in (first, second)]
  assert there.mean == pytest.approx(accuracy[1] - accuracy[0]) == pytest.approx(-back.mean)
  assert there.low <= there.mean <= there.high and back.low == pytest.approx(-there.high, abs=0.01)


def group(right) -> comparison.Group:
  right = np.asarray(right, bool)
  results = dict(data=dict(class_names=["a", "b"]))
  return comparison.Group("x", (comparison.Run(None, {}, results, np.zeros(len(right), int), right),))


def test_a_large_difference_is_certain_and_a_small_one_is_not():
  rng = np.random.default_rng(0)
  base = rng.uniform(size=400) < 0.5
  large = comparison.difference(group(base), group(base | (rng.uniform(size=400) < 0.2)))
  assert large.p < 0.001 and large.low > 0
  small = comparison.difference(group(base), group(np.roll(base, 1)))
  assert small.p > 0.05 and small.low < 0 < small.high
  deviation = np.std(np.roll(base, 1).astype(int) - base) / np.sqrt(400)
  assert small.high - small.low == pytest.approx(2 * 1.96 * deviation, rel=0.1)


def test_runs_on_other_test_images_are_not_compared_image_by_image(runs, tmp_path, compared):
  shutil.copytree(runs / "slow", tmp_path / "other")
  (tmp_path / "other" / "report" / "predictions.csv").unlink()
  first, second = comparison.grouped([read(runs / "ce"), read(tmp_path / "other")])
  assert comparison.difference(first, second) is None
  assert compared(runs / "ce", tmp_path / "other", f"--out={tmp_path / 'out'}")[0] == 0
  assert "Not compared image by image" in (tmp_path / "out" / "index.html").read_text()


def test_the_command_writes_a_table_and_a_page(runs, tmp_path, compared):
  out = tmp_path / "out"
  code, printed, err = compared(*(runs / name for name in ("slow", "ce", "ce_again")), f"--out={out}",
                                "--sort=overall")
  assert (code, err) == (0, "")
  heading, first, second = printed.splitlines()[:3]
  assert heading.split()[0] == "runs" and "±" in first + second and "slow" in first + second
  with open(out / "runs.csv", newline="") as file:
    rows = list(csv.DictReader(file))
  values = [float(row["overall"]) for row in rows]
  assert len(values) == 2 and values == sorted(values, reverse=True)
  with open(out / "classes.csv", newline="") as file:
    classes = {row["name"]: row for row in csv.DictReader(file)}
  slow, ce = (json.loads((runs / name / "results.json").read_text())["stages"]["representation"]["per_class"]
              for name in ("slow", "ce"))
  again = json.loads((runs / "ce_again" / "results.json").read_text())["stages"]["representation"]["per_class"]
  for c in range(10):
    expected = (ce[c] + again[c]) / 2 - slow[c]
    assert float(classes[str(c)]["difference 0"]) == pytest.approx(expected, abs=1e-5)
  text = (out / "index.html").read_text()
  assert "representation.lr" in text and "data:image/png" in text and (out / "gains_0.png").is_file()


@pytest.mark.parametrize(("arguments", "message"), [
    (["{runs}/nowhere"], "is not a run of ltjax"),
    (["{runs}/ce", "--sort=overal"], "there is no column 'overal' (did you mean 'overall'?)")])
def test_a_mistake_costs_one_line_and_exit_code_2(runs, tmp_path, compared, arguments, message):
  code, _, err = compared(*(text.format(runs=runs) for text in arguments), f"--out={tmp_path / 'out'}")
  assert code == 2 and message in err and err.count("\n") == 1
  assert not (tmp_path / "out").exists()


# -- papers ---------------------------------------------------------------------------------------------------------


def with_command(command: str) -> comparison.Run:
  return comparison.Run(None, {}, dict(command=command), None, None)


@pytest.mark.parametrize(("command", "top1"), [
    ("--config=configs/gcl_cifar.py:cifar100,imbalance=50 --workdir=x --config.seed=3", "53.55"),
    ("--config=/else/where/gcl_cifar.py:cifar100,50 --config.dataset.dir=data", "53.55"),
    ("--config=configs/gcl_cifar.py --workdir=x", "82.68"),
    ("--config=configs/gcl_cifar.py --config.representation.epochs=3", None),
    ("--config=configs/gcl_digits.py", None), ("", None), ("'", None)])
def test_the_published_number_is_that_of_the_unchanged_config(command, top1):
  found = comparison.published(with_command(f"python -m ltjax.main {command}"))
  assert (found and found["top1"]) == top1
