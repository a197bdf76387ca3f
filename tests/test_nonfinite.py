"""A NaN that comes from an input, the loss or a gradient in a certain step: the run's reaction, and its replay."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ltjax.commands import debug_step
from ltjax.data import feed
from ltjax.errors import ConfigError, TrainingError, WorkdirError
from ltjax.losses.objective import Objective
from ltjax.report import figures
from ltjax.report.figures import training
from tests import tiny

pytestmark = pytest.mark.usefixtures("no_pictures")
STEP, CALLS = 7, (1, 3)  # the step; how many steps are one call


@pytest.fixture
def broken(monkeypatch):
  """broken(where): a NaN in step 7."""
  make_transform, objective = feed.make_transform, Objective.__call__

  def loading(*options):
    transform = make_transform(*options)

    def call(data, batch, key, scalars):
      made = transform(data, batch, key, scalars)
      return made._replace(inputs=jnp.where(scalars["step"] == STEP, jnp.nan, made.inputs))

    return call

  def losing(self, logits, labels, *, scalars, **options):
    value = objective(self, logits, labels, scalars=scalars, **options)
    return jnp.where(scalars["step"] == STEP, jnp.nan, value)

  def differentiating(self, logits, labels, *, scalars, **options):
    # Zero, but the derivative of a square root at zero is infinite, and that times zero is not a number.
    value, here = objective(self, logits, labels, scalars=scalars, **options), scalars["step"] == STEP
    return value + jnp.sqrt(jnp.where(here, 0.0 * logits.sum(), 1.0)) - jnp.where(here, 0.0, 1.0)

  def break_(where: str):
    if where == "input":
      monkeypatch.setattr(feed, "make_transform", loading)
    else:
      monkeypatch.setattr(Objective, "__call__", dict(loss=losing, gradient=differentiating)[where])

  return break_


def config(calls: int, **overrides):
  return tiny.config("ce_digits", backbone=tiny.ONE_CONV, head=dict(name="Cosine"), steps_per_call=calls, **overrides)


def restored(found, workdir):
  return tiny.saved(tiny.stages(found)["representation"], workdir)


CURVES, PICTURES = training.training_curves, figures.of_run
FIRST = dict(input="images", loss="loss", gradient="gradient of head/kernel")


@pytest.mark.parametrize("calls", CALLS)
@pytest.mark.parametrize("where", FIRST)
def test_the_run_stops_before_the_step_and_its_replay_names_the_cause(broken, tmp_path, capsys, where, calls):
  broken(where)
  found = config(calls)
  with pytest.raises(TrainingError, match=f"representation: .* in step {STEP} .*python -m ltjax debug_step"):
    tiny.run(found, tmp_path)
  state = restored(found, tmp_path)
  assert int(state.step) == STEP
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
  assert json.loads((tmp_path / "not_finite.json").read_text())["step"] == STEP
  files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

  capsys.readouterr()
  debug_step.main([str(tmp_path)])
  out = capsys.readouterr().out
  assert out.splitlines()[0] == f"representation, step {STEP} (epoch 1.4), from the checkpoint of step {STEP}"
  assert out.splitlines()[-1] == f"the first that is not finite: {FIRST[where]}"
  assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


@pytest.mark.parametrize("where", FIRST)
def test_a_skipped_step_changes_nothing_in_calls_of_any_length(broken, tmp_path, capsys, where):
  broken(where)
  states = []
  for calls in CALLS:
    found, workdir = config(calls, on_nonfinite="skip"), tmp_path / str(calls)
    results = tiny.run(found, workdir)
    assert results["counts"]["skipped_steps"] == results["stages"]["representation"]["skipped_steps"] == 1
    lines = [line for line in tiny.log(workdir, "representation") if "skipped" in line]
    assert [line["step"] for line in lines] == [STEP + 1] and len(lines[0]["skipped"]) == 128
    assert f"in step {STEP} " in capsys.readouterr().err
    assert not (workdir / "not_finite.json").exists()
    states.append(restored(found, workdir))
  for left, right in zip(*map(jax.tree.leaves, states), strict=True):
    np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)


def test_skipping_gives_up(tmp_path):
  found = config(1, on_nonfinite="skip", skip_limit=2, representation__lr=dict(name="constant", value=1e38))
  with pytest.raises(TrainingError, match="more than the 2 steps that skip_limit allows"):
    tiny.run(found, tmp_path)


def test_a_run_with_every_step_skipped_is_reported_and_plotted(tmp_path, monkeypatch):
  drawn = []

  def curves(*args):
    drawn.append(CURVES(*args))
    return drawn[-1]

  monkeypatch.setattr(training, "training_curves", curves)
  monkeypatch.setattr(figures, "of_run", lambda *args: [
      picture for picture in PICTURES(*args) if picture.name == "training_curves"])
  found = config(1, on_nonfinite="skip", representation__lr=dict(name="constant", value=1e30),
                 representation__optimizer__weight_decay=1e10)
  assert tiny.run(found, tmp_path)["counts"]["skipped_steps"] == 10
  assert drawn and (tmp_path / "report" / "training_curves.png").is_file()


# -- any step, replayed ------------------------------------------------------------------------------------------------


def test_any_step_can_be_replayed_and_a_missing_one_is_one_error(tmp_path, capsys):
  tiny.run(config(1), tmp_path)
  # From the checkpoint of step 5, over two steps that are done again.
  known, tensors = debug_step.replay(tmp_path, "representation", STEP)
  assert known[0] == f"representation, step {STEP} (epoch 1.4), from the checkpoint of step 5"
  assert known[1].startswith("scheduled: ") and "lr 0.0" in known[1]
  assert not any(tensor.bad for tensor in tensors)
  names = [tensor.name for tensor in tensors]
  outputs = [name.partition("__call__")[0] for name in names if name.startswith("output of")]
  assert outputs[:4] == ["output of backbone/conv/", "output of backbone/norm/", "output of backbone/",
                         "output of head/"]
  assert [name for name in names if name.startswith("gradient")][0] == "gradient of head/kernel"
  assert names.index("images") < names.index("logits") < names.index("loss") < names.index("gradient of head/kernel")
  debug_step.main([str(tmp_path), "--stage", "representation", "--step", "9"])
  assert capsys.readouterr().out.splitlines()[-1] == "all numbers of this step are finite"
  for arguments, error, words in (
      ((), ConfigError, "no step of this run was found to be not finite"), (("x", 1), ConfigError, "there is no stage"),
      (("representation", 10), ConfigError, "expected 0 to 9, got 10"),
      (("representation", 3), WorkdirError, "there is no checkpoint")):
    with pytest.raises(error, match=words):
      debug_step.replay(tmp_path, *arguments)
  with pytest.raises(SystemExit) as info:
    debug_step.main([str(tmp_path)])
  assert info.value.code == 2 and capsys.readouterr().err.startswith("error: ")
