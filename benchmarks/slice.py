"""Every CIFAR config, with every preset, for a few epochs on a slice of real CIFAR: does it train?

python benchmarks/slice.py --dir=DIR [--images=2000] [--epochs=2] [--batch-size=32] [--width=0] [NAME ...]

DIR holds the official binary files. The slice keeps the classes' shares, one image of each at least. Learning rates are
scaled with the batch size. Losses are means over thirds of an epoch. Where a schedule of the loss moves (FBL's alpha,
BBN's share), the first one is that of the epoch after which it is constant. Generation, where a config has it,
begins with the second epoch. --width=4 shrinks the network; ResNeXt-50 is always a ResNet-10 of width 8 here, and a
pretrained ViT one of two blocks that nothing has trained. With names (ce_cifar, or
gcl_cifar:cifar100,cloud_size=cosine) only those are run. Without names all are run, on both data sets, with every
preset, and the table goes to benchmarks/results/slices.md.
"""

import argparse
import importlib
import pathlib
import sys
import tempfile
import time
from unittest import mock

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import cifar, presets  # noqa: E402
from ltjax import main, recipes  # noqa: E402
from ltjax.config import parse  # noqa: E402
from ltjax.config.spec import RunSpec, StageSpec  # noqa: E402
from ltjax.errors import LtjaxError  # noqa: E402
from ltjax.report import page as report  # noqa: E402
from ltjax.schedules import Clock  # noqa: E402
from ltjax.workdir import log as journal  # noqa: E402

TEST_IMAGES = 500
ONLY_CIFAR10 = ("gcl_lws_cifar", "gcl_tau_norm_cifar")  # rows of thesis table 5.6
SMALL = 8  # the width of what has 50 layers in the config and would take a CPU a day
VIT = dict(width=48, depth=2, heads=3)


def sliced(dataset, images: int):
  """About `images` training images in the proportions of the classes, and the first of the test set."""
  pixels, labels = dataset.train
  kept = np.concatenate([places[:max(1, round(len(places) * images / len(labels)))] for places in (
      np.flatnonzero(labels == label) for label in range(len(dataset.class_names)))])
  return dataset._replace(train=(pixels[kept], labels[kept]), selected=dataset.selected[kept],
                          test=tuple(part[:TEST_IMAGES] for part in dataset.test))


def shrunk(name: str, args):
  """(config, sliced data set, log of bad images) of a config, by its name and any arguments after a colon."""
  stem, _, argument = name.partition(":")
  get_config = importlib.import_module(f"configs.{stem}").get_config
  config = get_config(argument) if argument else get_config()
  config.dataset.dir = args.dir
  if args.width or config.backbone.name in ("ResNet", "ViT"):
    shrink(config.backbone, args.width or SMALL)
  config.pretrained = ""
  dataset, bad_images = parse(config).read()
  data = sliced(dataset, args.images)
  config.log_every_steps = max(1, len(data.train[1]) // args.batch_size // 3)
  config.eval_every_epochs = config.checkpoint_every_epochs = args.epochs
  for stage in config.stages:
    for transform in config[stage].transforms:
      if "at" in (transform.get("weight") or ()):
        transform["weight"]["at"] = 1
    config[stage].epochs = args.epochs
  # A batch of 32 with the learning rate of 128 would make the second stages diverge.
  return recipes.scaled_batch(config, args.batch_size), data, bad_images


def shrink(backbone, width: int) -> None:
  """Makes a backbone of `width` channels in its first stage; of the deep ones, the shallowest."""
  with backbone.unlocked():
    if backbone.name == "ViT":
      backbone.update(VIT)
    elif backbone.name == "ResNet":
      backbone.depth, backbone.width, backbone.groups, backbone.group_width = 10, width, 1, None
    else:
      backbone.widths = (width, width, 2 * width)


def settled(stage: StageSpec) -> int:
  """The epoch from which on the stage minimises one and the same thing."""
  objective = stage.objective
  parts = [part for part in (objective.adjust, objective.loss, stage.class_weights, *stage.transforms) if part]

  def values(epoch: int) -> list:
    return [part.at(Clock(epoch, 1, stage.epochs)) for part in parts]

  return max((epoch + 1 for epoch in range(stage.epochs) if values(epoch) != values(stage.epochs - 1)), default=0)


def losses(config, stage: str, workdir: pathlib.Path) -> tuple[float, float]:
  """The first and the last mean loss of a stage, as the docstring of this file defines them."""
  lines = [line for line in journal.read(workdir / stage / "metrics.jsonl") if "loss" in line]
  starts = [0, *(line["step"] for line in lines[:-1])]
  first = lines[-1]["step"] * settled(parse(config).stage(stage)) // config[stage].epochs
  complete = [line for start, line in zip(starts, lines, strict=True)
              if line["step"] - start == config.log_every_steps and start >= first]
  return complete[0]["loss"], complete[-1]["loss"]


def run(name: str, args) -> tuple[str, bool]:
  """The rows of a config, one a stage, and whether all of them are as they should be."""
  began = time.perf_counter()
  config, *data = shrunk(name, args)
  with tempfile.TemporaryDirectory() as folder, mock.patch.object(RunSpec, "read", lambda self, *given: tuple(data)):
    try:
      main.run(config, pathlib.Path(folder) / "run")
    except LtjaxError as error:
      return f"| {name} | - | - | - | no: {error} | {time.perf_counter() - began:.0f} |", False
    found = {stage: losses(config, stage, pathlib.Path(folder) / "run") for stage in config.stages}
  seconds = time.perf_counter() - began
  rows = [f"| {name} | {stage} | {first:.3f} | {last:.3f} | {'falls' if last < first else 'does not fall'}, finite "
          f"| {seconds:.0f} |" for stage, (first, last) in found.items()]
  return "\n".join(rows), all(last < first for first, last in found.values())


def names() -> list[str]:
  """Every config on CIFAR, with each data set and preset."""
  chosen = {}
  for row in presets.rows():
    chosen.setdefault(row.config, []).append(f",preset={row.preset}")
  return [f"{path.stem}:{dataset}{preset}" for path in sorted((ROOT / "configs").glob("*_cifar.py"))
          for dataset in (recipes.CIFAR if path.stem not in ONLY_CIFAR10 else recipes.CIFAR[:1])
          for preset in chosen.get(f"configs/{path.name}", [""])]


def command() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("names", nargs="*")
  parser.add_argument("--dir", required=True)
  parser.add_argument("--images", type=int, default=2000)
  parser.add_argument("--epochs", type=int, default=2)
  parser.add_argument("--batch-size", type=int, default=32)
  parser.add_argument("--width", type=int, default=0)
  args = parser.parse_args()
  head = "| config | stage | loss, first | loss, last | | s, all stages |\n| --- | --- | ---: | ---: | --- | ---: |"
  print(head)
  rows, good = [], True
  for name in args.names or names():
    row, fine = run(name, args)
    print(row, flush=True)
    rows, good = [*rows, row], good and fine
  if not args.names:
    versions = ", ".join(f"{name} {version}" for name, version in report.versions().items())
    (ROOT / "benchmarks" / "results" / "slices.md").write_text("\n".join([
        f"# CIFAR configs on a slice of CIFAR: {args.images} images, {args.epochs} epochs, batch {args.batch_size}",
        "", "Losses are means over thirds of an epoch; from the epoch on in which the loss is that of the last one.",
        "Learning rates are scaled with the batch size.",
        f"ResNeXt-50 (afa) is a ResNet-10 of width {args.width or SMALL} here, a pretrained ViT (lift) one of 2 blocks",
        "that nothing has trained; all others are as configured"
        f"{f' but for the width {args.width}' if args.width else ''}.", "",
        head, *rows, "", f"{cifar.typed('slice')}, commit {report.commit()},",
        f"{report.hardware()['device']}; {versions}.", ""]))
  return 0 if good else 1


if __name__ == "__main__":
  sys.exit(command())
