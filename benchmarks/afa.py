"""What AFA's module and its generated rows cost: FLOPs and memory by the compiler, and time on this machine.

python benchmarks/afa.py [--skip-large] [--rounds=5]

A step is the complete train step of a stage, compiled for shapes alone. Three steps of ResNet-32 are timed in turns:
before generation begins, a stage runs the second; one program for all epochs would run the third, with weight 0.
Results are written to benchmarks/results/afa_<platform>.md.
"""

import argparse
import pathlib
import statistics
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import shapes  # noqa: E402

from configs import afa_cifar  # noqa: E402
from ltjax import stage as stages  # noqa: E402
from ltjax.report import page as report  # noqa: E402
from ltjax.schedules import Clock  # noqa: E402

RESNEXT50 = dict(name="ResNet", depth=50, groups=32, group_width=4)
LIMIT = 2.2  # the allowed cost of the complete step with generation, in steps of the plain backbone
IMAGES = 1024  # of the data set


class Setting(NamedTuple):
  """A backbone with images of `size` pixels and a batch, and how many classes there are."""

  title: str
  backbone: dict
  batch_size: int
  size: int
  classes: int


SMALL = Setting("ResNet-32, CIFAR-10, batch 128", dict(name="ResNetCIFAR", depth=32), 128, 32, 10)
SETTINGS = (
    Setting("ResNeXt-50, 224 px, 1000 classes, batch 256", dict(RESNEXT50, stem="imagenet"), 256, 224, 1000),
    Setting("ResNeXt-50, CIFAR-100, batch 128", dict(RESNEXT50, stem="cifar"), 128, 32, 100),
    SMALL, Setting("ResNet-32, CIFAR-100, batch 128", SMALL.backbone, 128, 32, 100))


class Step(NamedTuple):
  """A compiled step, how long that took, the stage that it is of, and its scheduled values."""

  compiled: jax.stages.Compiled
  seconds: float
  stage: stages.Stage
  scalars: dict


def compiled(setting: Setting, insert: bool, weight: float | None) -> Step:
  """The first stage's step of configs/afa_cifar.py with another backbone; without generation if `weight` is None."""
  config = afa_cifar.get_config()
  config.backbone = ConfigDict(dict(setting.backbone, insert=dict(name="AFA") if insert else None))
  generation = dict(name="generate_features", gamma=1.0, alpha=4.0, weight=dict(name="constant", value=1.0))
  block = config.representation
  block.batch_size, block.transforms = setting.batch_size, () if weight is None else (generation,)
  made = shapes.stage(config, "representation", class_counts(setting), setting.size)
  scalars = made.scalars(Clock(0, 1, block.epochs)) | dict(step=np.int32(0))
  if weight is not None:
    scalars |= dict(transforms=(dict(weight=np.float32(weight)),))
  began = time.perf_counter()
  return Step(shapes.compiled(made, IMAGES, scalars), time.perf_counter() - began, made, scalars)


def class_counts(setting: Setting) -> np.ndarray:
  """A long tail of imbalance 100."""
  return np.round(500 * 100.0 ** -np.linspace(0, 1, setting.classes)).astype(int)


def data(setting: Setting) -> dict:
  """Random images with long-tailed labels, as the resident path holds them."""
  key, n, c = jax.random.key(0), IMAGES, setting.classes
  share = 100.0 ** -jnp.linspace(0, 1, c)
  return dict(images=jax.random.randint(key, (n, setting.size, setting.size, 3), 0, 256).astype(jnp.uint8),
              labels=jax.random.choice(key, c, (n,), p=share / share.sum()).astype(jnp.int32), key=key,
              class_counts=share.astype(jnp.float32), mean=jnp.full(3, 0.5), std=jnp.full(3, 0.25))


def runner(step: Step, setting: Setting):
  """A function that runs the step again and again."""
  state, given = step.stage.make_state(step.stage.init()), data(setting)
  indices, scalars = jnp.arange(setting.batch_size, dtype=jnp.int32), jax.device_put(step.scalars)

  def call():
    nonlocal state
    state, _ = step.compiled(state, given, indices, scalars | dict(step=jnp.copy(state.step)))
    jax.block_until_ready(state)

  return call


def in_turns(calls: dict, rounds: int) -> dict[str, float]:
  """{row: median seconds}, the rows in turn, after one call of each."""
  # Of a CPU, the seconds of all its cores that the step took: others may be using them, too.
  clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
  times = {name: [] for name in calls}
  for turn in range(rounds + 1):
    for name, call in calls.items():
      began = clock()
      call()
      if turn:
        times[name].append(clock() - began)
  return {name: statistics.median(found) for name, found in times.items()}


def cost_rows(setting: Setting) -> list[str]:
  """The table's rows of one setting."""
  rows, plain = [], None
  for name, insert, weight in (("plain", False, None), ("AFA, no generation", True, None), ("AFA", True, 1.0)):
    step = compiled(setting, insert, weight)
    flops, memory = step.compiled.cost_analysis()["flops"], step.compiled.memory_analysis().temp_size_in_bytes
    plain = plain or flops
    rows.append(f"| {setting.title} | {name} | {flops / 1e9:.1f} | {flops / plain:.2f} | {memory / 1e9:.2f} "
                f"| {step.seconds:.0f} |")
    print(rows[-1], flush=True)
  assert flops <= LIMIT * plain, f"{setting.title}: {flops / plain:.2f} plain steps, expected at most {LIMIT}"
  return rows


def time_rows(rounds: int) -> list[str]:
  """Two programs or one: what the epochs before generation cost either way."""
  made = {"plain": compiled(SMALL, False, None), "AFA, no generation": compiled(SMALL, True, None),
          "AFA, weight 0": compiled(SMALL, True, 0.0)}
  seconds = in_turns({name: runner(step, SMALL) for name, step in made.items()}, rounds)
  rows = [f"| {name} | {1e3 * value:.0f} | {value / seconds['plain']:.2f} | {made[name].seconds:.0f} |"
          for name, value in seconds.items()]
  two, one = seconds["AFA, no generation"], seconds["AFA, weight 0"]
  saved, extra = 29 * 96 * (one - two), made["AFA, no generation"].seconds
  return ["| step of ResNet-32, CIFAR-10, batch 128 | ms | of plain | compiled in, s |", "| --- | ---: | ---: | ---: |",
          *rows, "", f"Over the 29 epochs of 96 steps before generation begins, two programs take {saved:.0f} s less "
          f"than one, and {extra:.0f} s", f"more to compile: {'two are' if saved > extra else 'one is'} faster."]


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--skip-large", action="store_true")
  parser.add_argument("--rounds", type=int, default=5)
  args = parser.parse_args()
  rows = [row for setting in SETTINGS[args.skip_large:] for row in cost_rows(setting)]
  versions = ", ".join(f"{name} {version}" for name, version in report.versions().items())
  lines = [
      "# What AFA costs", "",
      "| setting | step | GFLOPs | of plain | memory of intermediate values, GB | compiled in, s |",
      "| --- | --- | ---: | ---: | ---: | ---: |", *rows, "", *time_rows(args.rounds), "",
      f"FLOPs and memory are the compiler's own (cost_analysis, memory_analysis), times the medians of {args.rounds}",
      f"rounds in which the rows take turns, on a CPU in seconds of its cores. {report.hardware()['device']};",
      f"{versions}; commit {report.commit()}.", "",
      f"`{' '.join(['python benchmarks/afa.py', *sys.argv[1:]])}`", ""]
  (ROOT / "benchmarks" / "results" / f"afa_{jax.devices()[0].platform}.md").write_text("\n".join(lines))
  print("\n".join(lines))


if __name__ == "__main__":
  main()
