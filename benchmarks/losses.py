"""Time and memory of every loss and adjustment beside plain cross entropy: forward and backward, jitted.

python benchmarks/losses.py [--batch-size=512] [--classes=8142] [--rounds=9] [--only=NAME]

An adjustment is timed with the cross entropy that follows it. In each round a function and cross entropy take turns,
and the median over the rounds of the ratio of the two is what counts; the goal is 1.5 for every closed form.
Temporary memory is what the compiler says, besides arguments and results. Writes benchmarks/results/losses_*.md, with
the platform in its name.
"""

import argparse
import inspect
import os
import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ltjax import losses  # noqa: E402
from ltjax.config import bind, outside  # noqa: E402
from ltjax.report import page as report  # noqa: E402

GOAL = 1.5
ADJUSTMENT = outside.returns("b c")  # whether a function gives logits
DIM = 64
CASES = {
  "fbl": dict(alpha=60.0),
  "label_aware_smoothing": dict(head=0.3, tail=0.0),
  "kps, GA": dict(adjust=1.0),
}
# What the rows do that a cross entropy, one exponential an element, does not.
MORE = dict(
    class_balanced_focal="two exponentials and a logarithm an element",
    gcl_angular="reads the noise; sine and cosine of the angle, sine of theta",
    kps_angular="arc cosine, cosine and their derivatives",
    prior_lade="two losses, each with a softmax of its own",
    seesaw="a second softmax, of the raw logits",
    sigmoid_equalization="an exponential and a logarithm an element")
DRAWS = ("gcl", "gcl_angular", "softmax_equalization")  # with a key, besides with the noise or the mask given


def functions() -> dict:
  """{row: (function, static keywords, whether it draws)} of every loss and adjustment of logits.

  Losses that belong to a transform or a head compare features, and cost what their shape costs.
  """
  found = bind.public(losses, outside.returns("b")) | bind.public(losses, ADJUSTMENT)
  found = {name: function for name, function in found.items() if not {"rows_of", "takes"} & set(vars(function))}
  rows = {name: (function, CASES.get(name, {}), False) for name, function in found.items()}
  rows |= {row: (found[row.split(",")[0]], keywords, False) for row, keywords in CASES.items() if "," in row}
  return rows | {f"{name}, drawing": (found[name], {}, True) for name in DRAWS}


def arguments(batch: int, classes: int) -> dict:
  rng = np.random.default_rng(0)
  counts = np.maximum(1000 * 0.002 ** (np.arange(classes) / classes), 1).astype(np.float32)
  cosines = rng.uniform(-1, 1, (batch, classes)).astype(np.float32)
  made = dict(logits=5 * cosines, cosines=cosines, labels=rng.integers(0, classes, batch), class_counts=counts,
              seen_counts=counts, features=rng.standard_normal((batch, DIM), np.float32),
              noise=rng.standard_normal((batch, classes), np.float32) / 3,
              mask=rng.random((batch, classes)) < 0.9, key=jax.random.key(0))
  return jax.device_put(made)


def compiled(function, keywords: dict, draws: bool, given: dict):
  """(executable, its arguments): the mean loss and its gradient in the first argument."""
  adjusts = ADJUSTMENT(function)
  names = [name for name in inspect.signature(function).parameters if name in given]
  names = [name for name in names if name not in (("noise", "mask") if draws else ("key",))]

  def objective(first, rest):
    result = function(**{names[0]: first}, **rest, **keywords)
    return losses.mean(losses.cross_entropy(result, rest["labels"]) if adjusts else result)

  rest = {name: given[name] for name in names[1:]}
  return jax.jit(jax.value_and_grad(objective)).lower(given[names[0]], rest).compile(), (given[names[0]], rest)


def seconds(executable, inputs, calls: int) -> float:
  began = time.perf_counter()
  for _ in range(calls):
    result = executable(*inputs)
  jax.block_until_ready(result)
  return (time.perf_counter() - began) / calls


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--batch-size", type=int, default=512)
  parser.add_argument("--classes", type=int, default=8142)
  parser.add_argument("--rounds", type=int, default=9)
  parser.add_argument("--calls", type=int, default=5)
  parser.add_argument("--only", default="")
  args = parser.parse_args()
  given = arguments(args.batch_size, args.classes)
  plain = compiled(losses.cross_entropy, {}, False, given)
  jnp.zeros(()).block_until_ready()
  lines = []
  for name, case in sorted(functions().items()):
    if args.only and args.only not in name:
      continue
    other = compiled(*case, given)
    seconds(*plain, 2), seconds(*other, 2)
    pairs = [(seconds(*other, args.calls), seconds(*plain, args.calls)) for _ in range(args.rounds)]
    ratio = statistics.median(a / b for a, b in pairs)
    memory = other[0].memory_analysis().temp_size_in_bytes / 2**20
    more = "draws" if case[2] else MORE.get(name.split(",")[0], "") if ratio > GOAL else ""
    lines.append(f"| {name} | {1e3 * statistics.median(a for a, _ in pairs):.2f} | "
                 f"{1e3 * statistics.median(b for _, b in pairs):.2f} | {ratio:.2f} | {memory:.1f} | {more} |")
    print(lines[-1], flush=True)
  versions = ", ".join(f"{name} {version}" for name, version in report.versions().items())
  hardware, load = report.hardware(), os.getloadavg()[0]
  text = "\n".join([
      f"# Losses beside cross entropy, batch {args.batch_size}, {args.classes} classes, float32", "",
      "Forward and backward, jitted; an adjustment with the cross entropy that follows it. The two take turns, and the",
      f"ratio is the median of {args.rounds} rounds of {args.calls} calls. The goal for closed forms is {GOAL}; the",
      "last column says what those above it do besides; what draws its noise spends its time on the generator.",
      "Temporary memory is the compiler's, besides arguments and results;",
      f"{plain[0].memory_analysis().temp_size_in_bytes / 2**20:.1f} MiB for cross entropy.", "",
      "| function | ms | cross entropy beside it, ms | ratio | temporary MiB | |",
      "| --- | ---: | ---: | ---: | ---: | --- |", *lines, "",
      f"{hardware['device']}, load {load:.1f} at the end; {versions}; commit {report.commit()}.", "",
      f"`python benchmarks/losses.py {' '.join(sys.argv[1:])}`".replace(" `", "`"), ""])
  results = ROOT / "benchmarks" / "results"
  results.mkdir(exist_ok=True)
  if not args.only:
    (results / f"losses_{jax.devices()[0].platform}.md").write_text(text)


if __name__ == "__main__":
  main()
