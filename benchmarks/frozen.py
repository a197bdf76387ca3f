"""How fast a head trains on frozen features, and how well with each loss of configs/frozen.py.

python -m ltjax extract --config=configs/gcl_folder.py --config.dataset.root=data/caltech101_lt40 \\
    --config.backbone="dict(name='EfficientNet')" --config.pretrained=efficientnet_lite0 --output=caltech.safetensors
python -m ltjax extract --config=configs/ce_cifar.py:cifar100 --config.dataset.dir=data/cifar \\
    --config.backbone="dict(name='EfficientNet')" --config.pretrained=efficientnet_lite0 \\
    --config.augment="(dict(name='random_resized_crop', size=128),)" --config.interpolation=bicubic \\
    --output=cifar100.safetensors
python benchmarks/frozen.py --features caltech.safetensors cifar100.safetensors --seeds 3

Each file has a page, benchmarks/results/frozen_FILE.md.
"""

import argparse
import functools
import importlib
import itertools
import pathlib
import sys
import time
from collections.abc import Sequence

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ltjax import bridge, metrics, posthoc, stage, train  # noqa: E402
from ltjax.config import load, parse  # noqa: E402
from ltjax.data import longtail, tally  # noqa: E402
from ltjax.report import baselines  # noqa: E402
from ltjax.report import page as report  # noqa: E402
from ltjax.workdir import compiled  # noqa: E402

GROUPS = ("overall", *longtail.GROUPS)
BLOCKS = importlib.import_module("configs.frozen").LOSSES
LOSSES = tuple(BLOCKS(1.0))
SCALED = tuple(loss for loss in LOSSES if BLOCKS(1.0)[loss] != BLOCKS(2.0)[loss])
RATES, SCALES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0), (5.0, 10.0, 20.0, 40.0, 80.0)
STARTS = ("class_mean", "random")  # of heads that no scale fits; cosines start from the class means
PLAIN = dict(  # the settings of the table in which only the rate is chosen: LIFT's scale and start, and plain heads
    linear=(25.0, "random"), linear_resampling=(25.0, "random"), linear_adjusted=(25.0, "random"),
    posthoc_adjustment=(25.0, "random"), logit_adjustment=(25.0, "class_mean"), gcl=(25.0, "random"))
EPOCHS, SHORT, KEPT = 50, 10, 3  # all settings and rates train for SHORT epochs, the best KEPT for EPOCHS


@functools.cache
def read(features: pathlib.Path):
  """The data set in a file, for all stages."""
  return parsed(features, LOSSES[0], settings(LOSSES[0])[0], 0, EPOCHS).read()[0]


def settings(loss: str) -> list[tuple[float, str]]:
  """The (scale, start) pairs to choose among: scales where the loss has one, else where the head starts."""
  return [(scale, STARTS[0]) for scale in SCALES] if loss in SCALED else [(SCALES[0], start) for start in STARTS]


def parsed(features: pathlib.Path, loss: str, setting: tuple[float, str], seed: int, epochs: int):
  """The parsed configs/frozen.py with RATES as its candidates."""
  scale, start = setting
  config = load.read(f"{ROOT / 'configs' / 'frozen.py'}:{loss},scale={scale},start={start},epochs={epochs}")
  config.dataset.root, config.seed = str(features), seed
  with config.ignore_type():
    config.classifier.lr.base = RATES
  return parse(config)


def built(features: pathlib.Path, loss: str, setting: tuple[float, str], seed: int = 0,
          epochs: int = EPOCHS) -> stage.Stage:
  """The stage of configs/frozen.py with RATES as its candidates."""
  return in_one_program(stage.build(parsed(features, loss, setting, seed, epochs), read(features))[0])


def in_one_program(made: stage.Stage) -> stage.Stage:
  """`made` with a call an epoch: a rest of single steps would be a second program to compile."""
  made.chunk = made.order.steps_per_epoch
  return made


def held_out(features: pathlib.Path, loss: str, tried: Sequence[tuple[float, str, float]], epochs: int) -> dict:
  """{(scale, start, rate): balanced accuracy on a fifth of the training examples} after `epochs` on the others."""
  scores, starts = {}, {}
  for setting, group in itertools.groupby(sorted(tried), key=lambda each: each[:2]):
    part = in_one_program(built(features, loss, setting, epochs=epochs).on_part(train.HELD_OUT))
    if setting[1] not in starts:  # the class means are the same whatever the scale
      starts[setting[1]] = bridge.start_head(part, part.init())
    scores |= {each: metrics.balanced_accuracy(evaluated(part, "held_out", each[-1], starts[setting[1]]))
               for each in group}
  return scores


def chosen(features: pathlib.Path, loss: str, among: Sequence[tuple[float, str]]) -> tuple[float, str, float]:
  """The scale, start and rate that are best on a fifth of the training examples; of equals the first, smaller ones."""
  tried = [(*setting, rate) for setting in among for rate in RATES]
  scores = held_out(features, loss, tried, SHORT)
  scores = held_out(features, loss, sorted(tried, key=lambda each: -scores[each])[:KEPT], EPOCHS)
  return max(scores, key=scores.get)


def evaluated(made: stage.Stage, split: str, rate: float, start: dict) -> np.ndarray:
  """The confusion matrix of a split after training a stage from `start`, with its post-hoc method if it has one."""
  variables = train.in_memory(made.with_rate(rate), start)
  if not made.posthoc:
    return made.evaluators[split](variables)
  (method,), (examples, labels) = made.posthoc, getattr(made.dataset, split)
  logits = posthoc.adjust_logits(made.extractor(variables)(examples, "logits")["logits"], made.class_counts,
                                 **method.candidates[0])
  return tally.matrix(labels, np.argmax(logits, axis=-1), len(made.class_counts))


def shown(value: float, tried: Sequence[float]) -> str:
  """A chosen number, with a star at an edge of what is tried."""
  return f"{value:g}{'*' if value in (tried[0], tried[-1]) else ''}"


def cells(scores: list[dict]) -> str:
  """The columns of the groups."""
  found = [100 * np.array([score[group] for score in scores]) for group in GROUPS]
  return " | ".join(f"{cell.mean():.1f} ± {cell.std():.1f}" if len(cell) > 1 else f"{cell[0]:.1f}" for cell in found)


def row(features: pathlib.Path, loss: str, among: Sequence[tuple[float, str]], seeds: int) -> str:
  """The row of a loss with the best of some settings."""
  *setting, rate = chosen(features, loss, among)
  made = [built(features, loss, setting, seed) for seed in range(seeds)]
  scores = [metrics.scores(evaluated(each, "test", rate, bridge.start_head(each, each.init())), each.class_counts)
            for each in made]
  scale = shown(setting[0], SCALES) if loss in SCALED else ""
  text = f"| {loss} | {scale} | {setting[1].replace('_', ' ')} | {shown(rate, RATES)} | {cells(scores)} |"
  print(text, flush=True)
  return text


def table(features: pathlib.Path, seeds: int) -> list[str]:
  """What a file holds, how fast a head trains on it, and a row for each loss."""
  first = built(features, LOSSES[0], settings(LOSSES[0])[0])
  plain = [row(features, loss, [setting], seeds) for loss, setting in PLAIN.items()]
  tuned = [row(features, loss, settings(loss), seeds) for loss in LOSSES]
  begun = bridge.start_head(first, first.init())
  evaluated(first, "test", RATES[0], begun)  # compiles
  start, computed = time.perf_counter(), time.process_time()
  evaluated(first, "test", RATES[0], begun)
  duration, computed, data = time.perf_counter() - start, time.process_time() - computed, first.dataset
  simple = [f"| {found['name']} | | | | {cells([found['test']])} |"
            for found in baselines.of_stage(first, first.init())]
  head = [f"| loss | scale | start | rate | {' | '.join(GROUPS)} |",
          f"| --- | ---: | --- | ---: |{' ---: |' * len(GROUPS)}"]
  return [
      f"## {features.stem}", "",
      f"{len(data.train[1]):,} training and {len(data.test[1]):,} test examples of {len(data.class_names)} classes, "
      f"features of {data.made_by['backbone']['name']}", f"(weights {data.made_by['weights_sha256'][:8]}). A head "
      f"trains for {first.order.steps:,} steps of {first.order.batch_size} and is tested in {duration:.1f} s "
      f"({computed:.1f} s of a core) after compilation.", "",
      "Plain heads, and cosines at LIFT's scale; only the learning rate is chosen:", "", *head, *plain, *simple, "",
      "All losses, with the scale and the start chosen too:", "", *head, *tuned, ""]


def page(name: str, lines: list[str], seeds: int, commit: str) -> str:
  """The page on the file called `name`."""
  versions = ", ".join(f"{name} {version}" for name, version in report.versions().items())
  return "\n".join([
      "# Heads on frozen features", "",
      f"Test accuracy in %, mean ± standard deviation over {seeds} seeds, last epoch, with each loss of "
      "configs/frozen.py.", "For each, the learning rate is chosen among "
      f"{', '.join(f'{rate:g}' for rate in RATES)}. In the second table the scale of the cosines is chosen too, among "
      f"{', '.join(f'{scale:g}' for scale in SCALES)}, or where a head has none its start, from the class means or at "
      "random. All settings train for "
      f"{SHORT} epochs and the best {KEPT} for {EPOCHS}; the balanced accuracy on a fifth of the training examples "
      "decides.", "A star marks a choice at the edge of what is tried. The lowest rate leaves a head near its start. "
      "All other numbers are those of the papers.",
      "Classes of Caltech-101 and CIFAR-100 are also classes of ImageNet, on which the backbone was trained.", "",
      *lines, f"`python benchmarks/frozen.py --features {name} --seeds {seeds}`, commit {commit},",
      f"{report.hardware()['host']}; {versions}.", ""])


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--features", type=pathlib.Path, required=True, nargs="+")
  parser.add_argument("--seeds", type=int, default=3)
  args = parser.parse_args()
  compiled.keep()  # a seed runs the programs of another
  commit = report.commit()  # before a page changes the checkout
  for file in args.features:
    text = page(file.name, table(file, args.seeds), args.seeds, commit)
    (ROOT / "benchmarks" / "results" / f"frozen_{file.stem}.md").write_text(text)
    print(text)
