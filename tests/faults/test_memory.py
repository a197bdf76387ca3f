"""F23: a device without memory for the batch. A CPU never is one, so the test raises JAX's own class itself."""

import pytest
from jax.errors import JaxRuntimeError

from ltjax import main, stage, train
from tests import tiny


def test_out_of_memory_gets_advice_and_leaves_the_checkpoint(tmp_path, monkeypatch, capsys):
  config, workdir = tiny.config("ce_digits", steps_per_call=1), tmp_path / "run"
  with pytest.raises(train.Interrupted):
    tiny.run(config, workdir, stop_after=2)

  def batches(stage, first, count):
    raise JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes.")

  monkeypatch.setattr(stage.Stage, "batches", batches)
  monkeypatch.setattr(main.load, "parse", lambda *args: dict(
      config=config, workdir=str(workdir), strict=False, compilation_cache="none", changes=(), log=""))
  assert main.main([], lambda: False) == 1
  err = capsys.readouterr().err
  assert "Traceback" not in err
  assert "error: a device is out of memory (RESOURCE_EXHAUSTED: Out of memory while" in err
  assert "give a smaller batch_size or eval_batch_size, or --config.precision=bf16" in err
  assert tiny.saved_steps(workdir, "representation") == [2]
