"""F23: a device without memory for the batch, which only an accelerator can be; what is raised is JAX's own class."""

import pytest
from jax.errors import JaxRuntimeError

from ltjax import main, train
from tests import tiny


class Flag:
  """A flag of the command line."""

  def __init__(self, name: str, value):
    self.name, self.value, self.present = name, value, 1


def test_no_memory_on_the_device_says_what_to_change_and_leaves_the_checkpoint(tmp_path, monkeypatch, capsys):
  config, workdir = tiny.config("ce_digits", steps_per_call=1), tmp_path / "run"
  with pytest.raises(train.Interrupted):
    tiny.run(config, workdir, stop_after=2)

  def batches(stage, first, count):
    raise JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes.")

  monkeypatch.setattr(train.Stage, "batches", batches)
  monkeypatch.setattr(main, "_CONFIG", Flag("config", config))
  monkeypatch.setattr(main, "_WORKDIR", Flag("workdir", str(workdir)))
  monkeypatch.setattr(main, "_STRICT", Flag("strict", False))
  monkeypatch.setattr(main, "_STOP", lambda: False)
  monkeypatch.setattr(main.flags, "FLAGS", {"verbosity": Flag("verbosity", 0)})
  with pytest.raises(SystemExit) as info:
    main._main(["main"])
  err = capsys.readouterr().err
  assert info.value.code == 1 and "Traceback" not in err
  assert "error: a device is out of memory (RESOURCE_EXHAUSTED: Out of memory while" in err
  assert "give a smaller batch_size or eval_batch_size, or --config.precision=bf16" in err
  assert tiny.saved_steps(workdir, "representation") == [2]
