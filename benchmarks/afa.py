"""What AFA's module and its generated rows cost: FLOPs and memory by the compiler, and time on this machine.

python benchmarks/afa.py [--skip-large] [--rounds=5]

A step is the whole step of a stage, compiled for shapes alone. Timed are ResNet-32's three steps, which take turns:
before generation begins, a stage runs the second; one program for all epochs would run the third, with weight 0.
Everything goes to benchmarks/results/afa_<platform>.md.
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
sys.path.insert(0, str(ROOT))

from configs import afa_cifar10  # noqa: E402
from ltjax import step as steps  # noqa: E402
from ltjax import train  # noqa: E402
from ltjax.config import bind as build  # noqa: E402
from ltjax.data import resident  # noqa: E402
from ltjax.report import page as report  # noqa: E402

RESNEXT50 = dict(name="ResNet", depth=50, groups=32, group_width=4)
LIMIT = 2.2  # what the whole step with generation may cost, in steps of the plain backbone


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
  """A compiled step, how long that took, and what makes its arguments."""

  compiled: jax.stages.Compiled
  seconds: float
  make_state: object
  init: object
  scalars: dict


def compiled(setting: Setting, insert: bool, weight: float | None) -> Step:
  """The first stage's step of configs/afa_cifar10.py with another backbone; without generation if `weight` is None."""
  config = afa_cifar10.get_config()
  config.backbone = ConfigDict(dict(setting.backbone, insert=dict(name="AFA") if insert else None))
  block = config.representation
  block.generation = None if weight is None else ConfigDict(dict(gamma=1.0, alpha=4.0, weight=1.0))
  images, counts = (1, setting.size, setting.size, 3), np.ones(setting.classes, int)
  make_state, init, tx, factors = train.state_makers(config, "representation", counts, images)
  objective = build.Objective(block, "representation")
  step = steps.make_train_step(
      build.model(config, counts, "representation"), tx, factors, objective,
      resident.make_load(**config.augment, mixup=0.0), batch_norm=block.batch_norm, on_nonfinite="stop")
  scalars = objective.scalars(build.Clock(0, 1, block.epochs), counts) | dict(step=np.int32(0))
  scalars |= {} if weight is None else dict(generation=np.float32(weight))
  lowered = jax.jit(step, donate_argnums=0).lower(
      jax.eval_shape(lambda: make_state(init())), jax.eval_shape(lambda: data(setting)),
      jax.ShapeDtypeStruct((setting.batch_size,), jnp.int32), scalars)
  began = time.perf_counter()
  return Step(lowered.compile(), time.perf_counter() - began, make_state, init, scalars)


def data(setting: Setting) -> dict:
  """Random images with long-tailed labels, as the resident path holds them."""
  key, n, c = jax.random.key(0), 1024, setting.classes
  share = 100.0 ** -jnp.linspace(0, 1, c)
  return dict(images=jax.random.randint(key, (n, setting.size, setting.size, 3), 0, 256).astype(jnp.uint8),
              labels=jax.random.choice(key, c, (n,), p=share / share.sum()).astype(jnp.int32), key=key,
              class_counts=share, mean=jnp.full(3, 0.5), std=jnp.full(3, 0.25))


def runner(step: Step, setting: Setting):
  """A function that runs the step again and again."""
  state, given = step.make_state(step.init()), data(setting)
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
