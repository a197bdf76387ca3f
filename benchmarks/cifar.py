"""Time per training step and images/s of ResNet-32 on CIFAR-10-LT: ltjax's complete step beside a bare flax step.

python benchmarks/cifar.py --dir=DIR [--batch-size=128] [--rounds=5] [--calls=4] [--steps-per-call=1] [--precision=bf16]

DIR holds the official binary files. The complete step gathers, crops, flips, normalises, mixes, trains, sums the log;
the bare one is cross entropy on a batch that is already normalised on the device. The rows take turns (A B C A B C
...), each turn times `--calls` calls, and the medians over the rounds are printed and written to benchmarks/results/.
"""

import argparse
import pathlib
import re
import statistics
import sys
import time

import jax
import numpy as np
import optax

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from configs import ce_cifar, gcl_cifar  # noqa: E402
from ltjax import stage as stages  # noqa: E402
from ltjax.config import parse  # noqa: E402
from ltjax.config.spec import PRECISIONS  # noqa: E402
from ltjax.report import page as report  # noqa: E402


def complete_step(module, stage_name: str, args):
  """A function that runs `steps_per_call` steps of a config's stage, exactly as the loop does."""
  config = module.get_config()
  config.dataset.dir, config.precision, config.steps_per_call = args.dir, args.precision, args.steps_per_call
  config[stage_name].batch_size = args.batch_size
  spec = parse(config)
  stage = next(made for made in stages.build(spec, spec.read()[0]) if made.name == stage_name)
  step, state, done = stage.train_steps[args.steps_per_call], stage.make_state(stage.init()), 0

  def call():
    nonlocal state, done
    state, _ = step(state, stage.data, *stage.batches(done, args.steps_per_call))
    done += args.steps_per_call
    return state.step

  return call


def bare_step(args):
  """The least that trains: flax, optax and cross entropy on one batch, again and again."""
  config = ce_cifar.get_config()
  config.precision = args.precision
  model = parse(config).stages[0].model((1,) * 10)
  tx = optax.chain(optax.add_decayed_weights(2e-4), optax.sgd(0.1, momentum=0.9))
  rng = np.random.default_rng(0)
  images = jax.device_put(rng.standard_normal((args.batch_size, 32, 32, 3), np.float32))
  labels = jax.device_put(rng.integers(0, 10, args.batch_size))
  variables = model.init(jax.random.key(0), images[:1], train=False)

  def step(params, batch_stats, opt_state):
    def loss_fn(params):
      (logits, _), updates = model.apply(
          dict(params=params, batch_stats=batch_stats), images, train=True, mutable=["batch_stats"])
      return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updates["batch_stats"]

    grads, batch_stats_new = jax.grad(loss_fn, has_aux=True)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), batch_stats_new, opt_state

  step = jax.jit(step, donate_argnums=(0, 1, 2))
  box = [variables["params"], variables["batch_stats"], tx.init(variables["params"])]

  def call():
    for _ in range(args.steps_per_call):
      box[:] = step(*box)
    return jax.tree.leaves(box[0])[0]

  return call


def measure(calls: dict, rounds: int, per_round: int, steps_per_call: int) -> dict[str, tuple[float, float]]:
  """{row: (seconds to the first step's end, median seconds a step)}."""
  first, times = {}, {name: [] for name in calls}
  for name, call in calls.items():
    began = time.perf_counter()
    jax.block_until_ready(call())
    first[name] = time.perf_counter() - began
  for _ in range(rounds):
    for name, call in calls.items():
      began = time.perf_counter()
      for _ in range(per_round):
        result = call()
      jax.block_until_ready(result)
      times[name].append((time.perf_counter() - began) / per_round / steps_per_call)
  return {name: (first[name], statistics.median(times[name])) for name in calls}


def typed(program: str) -> str:
  """The command that was given, without the place of the data on this machine."""
  return f"`python benchmarks/{program}.py {re.sub(r'--dir[= ][^ ]+', '--dir=DIR', ' '.join(sys.argv[1:]))}`"


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--dir", required=True)
  parser.add_argument("--batch-size", type=int, default=128)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--calls", type=int, default=4)
  parser.add_argument("--steps-per-call", type=int, default=1)
  parser.add_argument("--precision", choices=sorted(PRECISIONS), default="float32")
  args = parser.parse_args()
  rows = measure({
      "bare flax step, cross entropy": bare_step(args),
      "ce_cifar": complete_step(ce_cifar, "representation", args),
      "gcl_cifar, representation": complete_step(gcl_cifar, "representation", args),
      "gcl_cifar, classifier (frozen backbone)": complete_step(gcl_cifar, "classifier", args),
  }, args.rounds, args.calls, args.steps_per_call)
  bare = rows["bare flax step, cross entropy"][1]
  versions = ", ".join(f"{name} {version}" for name, version in report.versions().items())
  lines = [
      f"# ResNet-32 on CIFAR-10-LT, batch {args.batch_size}, {args.precision}, {args.steps_per_call} steps a call", "",
      "| step | ms a step | images/s | of the bare step | first call, s |", "| --- | ---: | ---: | ---: | ---: |",
      *(f"| {name} | {1e3 * seconds:.1f} | {args.batch_size / seconds:.0f} | {seconds / bare:.2f} | {first:.1f} |"
        for name, (first, seconds) in rows.items()), "",
      f"Medians of {args.rounds} rounds of {args.calls} calls, the rows in turn. {report.hardware()['device']};",
      f"{versions}; commit {report.commit()}.", "", typed("cifar"), ""]
  name = f"step_{jax.devices()[0].platform}_{args.precision}_{args.batch_size}.md"
  (ROOT / "benchmarks" / "results" / name).write_text("\n".join(lines))
  print("\n".join(lines))


if __name__ == "__main__":
  main()
