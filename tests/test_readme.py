"""The README is true: its generated blocks are up to date, and CI runs its commands."""

import importlib.util
import pathlib
import re
import subprocess

import jax
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_generated_blocks_are_up_to_date():
  spec = importlib.util.spec_from_file_location("readme", ROOT / "benchmarks" / "readme.py")
  readme = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(readme)
  assert readme.filled(README) == README, "run python benchmarks/readme.py"
  for config in (ROOT / "configs").glob("*.py"):
    assert f"[{config.stem}]" in README


def test_ci_runs_the_commands_of_the_readme(tmp_path):
  # .ci/run where every program of the commands is a stand-in that writes down its arguments.
  (tmp_path / ".ci").mkdir()
  (tmp_path / ".ci" / "run").write_text((ROOT / ".ci" / "run").read_text())
  (tmp_path / "README.md").write_text(README)
  programs = [tmp_path / ".venv" / "bin" / name for name in ("pip", "python", "ruff")] + [tmp_path / "bin" / "python3"]
  for program in programs:
    program.parent.mkdir(parents=True, exist_ok=True)
    name = str(program.relative_to(tmp_path)).removeprefix("bin/")
    program.write_text(f'#!/bin/sh\necho "{name} $*" >> "{tmp_path}/calls"\n')
    program.chmod(0o755)
  subprocess.run(["bash", str(tmp_path / ".ci" / "run")], check=True, capture_output=True,
                 env={"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"})
  calls = (tmp_path / "calls").read_text().splitlines()
  commands = {name: re.search(rf"<!-- {name} -->\n```sh\n(.*?)```", README, re.DOTALL)[1].replace('"', "").splitlines()
              for name in ("test", "main")}
  plans = [".venv/bin/pip install -e .[test,plan]", ".venv/bin/python -m pytest -n0 tests/test_plan.py"]
  expected = [line.split(" || ")[0] for line in (*commands["test"], ".venv/bin/ruff check .", *commands["main"])]
  assert calls == [*expected, *plans]


def test_the_library_example_trains():
  code = re.search(r"<!-- library -->\n```python\n(.*?)```", README, re.DOTALL)[1]
  scope = {}
  exec(compile(code, "README.md", "exec"), scope)  # noqa: S102 - our own README
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 3, 64)
  features = rng.standard_normal((64, 8)).astype(np.float32) + 3 * np.eye(3, 8, dtype=np.float32)[labels]
  batch = features, labels, np.bincount(labels), jax.random.key(0)
  weights = rng.standard_normal((8, 3)).astype(np.float32)
  first, opt_state = scope["loss_fn"](weights, *batch), scope["tx"].init(weights)
  for _ in range(20):
    weights, opt_state = scope["step"](weights, opt_state, *batch)
  assert scope["loss_fn"](weights, *batch) < first / 2


def test_the_linked_files_exist():
  for target in re.findall(r"\]\(([^)#:]+)\)", README):
    assert (ROOT / target).exists(), target
