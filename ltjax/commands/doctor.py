"""Says what a data set is, what is wrong with it, what training on it takes here, and which config to begin with.

python -m ltjax doctor photographs                              a folder for each class, or train/ and test/ with such
python -m ltjax doctor table.csv --config.dataset.root=DIR      a table of paths below DIR and class names
python -m ltjax doctor configs/gcl_cifar.py:cifar100            the data set of a config

prints the classes, the imbalance, the split, images that cannot be read or come twice, how much the test set can tell,
and an estimate of time and memory; then the command to train with. Up to 5,000 images are decoded, more with --decode;
nothing is written. Exit codes: 0 all is well, 1 something is wrong with the data, 2 with the command.
"""

import pathlib
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

from ltjax import recipes, stage
from ltjax.commands import verify
from ltjax.config import load, parse, shipped, spec
from ltjax.data import decode, longtail, sources
from ltjax.errors import ConfigError, DataError, LtjaxError
from ltjax.report import forecast, names, statistics

OPTIONS = dict(
    images=load.Option("The folder or table, where it is not the first argument."),
    decode=load.Option("Decode every image, however many.", False),
    shown=load.Option("The number of faults to list.", "20"))
DECODED = 5000  # images that are decoded without being asked to
TINY = 10  # test images; the accuracy of a class with fewer says little
_SAMPLE = 200  # images whose sizes are looked at
_LARGE = 100_000  # training images from which on an accelerator trains a network from random weights well
_BALANCED = 2.0  # the imbalance up to which the methods for long tails change nothing
DEFAULT, FROM_SCRATCH, HEADS = "folder", "gcl_folder", "frozen"


class Advice(NamedTuple):
  """A config to begin with, why, and the options behind it that name the data set."""

  config: str
  reason: str
  options: tuple[str, ...]

  def command(self) -> str:
    """The training command."""
    return shlex.join(["python", "-m", "ltjax.main", f"--config={self.config}", *self.options, "--workdir=runs/mine"])


# -- what the data are ------------------------------------------------------------------------------------------------


def balance(dataset: sources.Dataset) -> str:
  """A sentence on the imbalance of the training images."""
  counts = dataset.class_counts
  largest, smallest = (names.shown(dataset.class_names[c], "terminal") for c in (counts.argmax(), counts.argmin()))
  ratio, groups = counts.max() / counts.min(), longtail.shot_groups(counts)
  if ratio < _BALANCED:
    return (f"balanced: the largest class has {ratio:.2g} times the images of the smallest, so that methods for long "
            "tails change little; any loss will do")
  half = np.searchsorted(np.cumsum(np.sort(counts)[::-1]), counts.sum() / 2) + 1
  few = f"; {len(groups['few']):,} classes have fewer than 20 images" if len(groups["few"]) else ""
  return (f"long-tailed: {largest} has {counts.max():,} training images, {smallest} has {counts.min():,}, {ratio:,.4g} "
          f"times fewer; half of all images are in {half:,} of {len(counts):,} classes{few}")


def sizes(dataset: sources.Dataset) -> str:
  """A sentence on the sizes of the training images, from a sample where they are files."""
  images = dataset.train[0]
  if dataset.holds_features:
    return f"features of {' x '.join(map(str, images.shape[2:]))} numbers"
  if not dataset.holds_files:
    return f"arrays of {images.shape[1]} x {images.shape[2]} pixels"
  found = list(_measured(images))
  if not found:
    return "sizes unknown"
  sides = np.sort(np.array(found), axis=1)
  return (f"the shorter side has {np.median(sides[:, 0]):.0f} pixels in the median of {len(found):,} images, "
          f"{sides[:, 0].min()} to {sides[:, 0].max()}; the longer {np.median(sides[:, 1]):.0f}")


def _measured(images) -> Iterator[tuple[int, int]]:
  """(width, height) of a sample, from the beginnings of the files; those that cannot be read are left out."""
  if not hasattr(images, "open"):
    return
  for place in np.unique(np.linspace(0, len(images) - 1, _SAMPLE).astype(int)).tolist():
    try:
      with images.open(place) as file, Image.open(file, formats=decode.FORMATS) as image:
        yield image.size
    except Exception:  # Pillow's readers raise errors of any class; a fault is named elsewhere
      continue


def twice(dataset: sources.Dataset, looked: verify.Looked) -> tuple[list[str], list[str]]:
  """(faults, sentences) on images that are in the data more than once, byte for byte."""
  groups = [group for alike in looked.alike for group in verify.equal(dataset, alike)]
  wrong = [line for group in groups for line in verify.across(dataset, group)]
  label = {split: getattr(dataset, split)[1] for split in dataset.splits}
  several = [group for group in groups if len({int(label[split][index]) for split, index in group}) > 1]
  for group in several:
    (split, index), other = group[0], next(
        pair for pair in group if label[pair[0]][pair[1]] != label[group[0][0]][group[0][1]])
    wrong.append(f"{verify.image_name(dataset, split, index)}: the same image is in another class, "
                 f"{verify.image_name(dataset, *other)}")
  within = sum(len(group) - len({split for split, _ in group}) for group in groups)
  found = [f"{within:,} {'image repeats' if within == 1 else 'images repeat'} another of the same split" if within else
           "no image comes twice within a split"]
  leaked = len({pair for group in groups for pair in group if pair[0] == "test" and group[0][0] != "test"})
  if leaked:
    found.append(f"{leaked:,} {'test image is' if leaked == 1 else 'test images are'} among the training or held-out "
                 "images too, so that accuracy would look too high; remove from one side what is listed below")
  return wrong, found


def tested(dataset: sources.Dataset) -> list[str]:
  """Sentences on how much the test set can tell, with 95 % intervals."""
  counts = np.bincount(dataset.test[1], minlength=len(dataset.class_names))
  there = counts[counts > 0]
  found = []
  if missing := int((counts == 0).sum()):
    found.append(f"{missing:,} {'class has' if missing == 1 else 'classes have'} no test image, so no accuracy")
  if (small := there[there < TINY]).size:
    n = int(np.median(small))
    low, high = (float(end[0]) for end in statistics.wilson(np.array([round(0.8 * n)]), np.array([n])))
    found.append(f"{small.size:,} {'class has' if small.size == 1 else 'classes have'} fewer than {TINY} test images: "
                 f"of {n}, {round(0.8 * n)} right mean an accuracy of {100 * low:.0f} to {100 * high:.0f} %")
  ends = statistics.intervals(0.8 * counts, counts, dataset.class_counts)
  wide = ", ".join(f"{'mean over classes' if name == 'balanced' else name} ± {50 * (high - low):.1f}"
                   for name, (low, high) in ends.items())
  return [*found, f"if 80 % of every class are right, the test set gives them within (points): {wide}"]


# -- what to do with them ---------------------------------------------------------------------------------------------


def advise(config, dataset: sources.Dataset, given: Sequence[str]) -> Advice:
  """The config to begin with; `given` are --config and --config.KEY of the command line, if they are there."""
  file, *options = given if given and given[0].startswith("--config=") else ("",)
  if file and not parse(config).own_data:
    return Advice(file.partition("=")[2], "you named it, and it is a recipe for this data set", tuple(options))
  total, folder = len(dataset.train[1]), shipped.folder()
  if dataset.holds_features:
    return _for(config, folder / f"{HEADS}.py", total, "these are features already, on which a head trains in seconds")
  if total >= _LARGE and jax.default_backend() != "cpu":
    return _for(config, folder / f"{FROM_SCRATCH}.py", total, f"{total:,} images and an accelerator are enough to "
                "train a network from random weights")
  return _for(config, folder / f"{DEFAULT}.py", total, f"{total:,} training images "
              + ("without a GPU" if total >= _LARGE else "are few to learn features from")
              + ", so a pretrained backbone is the better start: on 2,272 photographs of 40 classes it was right for "
              "95 %, and a network from random weights for 56 % (benchmarks/results/folder.md, caltech.md)")


def _for(config, path: pathlib.Path, images: int, reason: str) -> Advice:
  """The advice to take the config at `path`, with the data set of `config` in it and batches that `images` fill."""
  advised, given = load.read(str(path)), config.dataset
  own, batches = advised.dataset, _batches(advised, images)
  if own.name != given.name:
    block = {key: value for key, value in given.to_dict().items() if value not in ("", None)}
    inside = ", ".join(f"{key}={value!r}" for key, value in block.items())
    return Advice(str(path), reason, (f"--config.dataset=dict({inside})", *batches))
  options = [f"--config.dataset.{key}={value if _is_text(value) else repr(value)}" for key, value in given.items()
             if value != own.get(key)]
  return Advice(str(path), reason, (*options, *batches))


def _batches(config, images: int) -> list[str]:
  """Options with smaller batches for the stages of `config` whose batches few `images` do not fill."""
  # A fifth of the images may be held out, to choose the learning rate.
  devices, kept = jax.device_count(), 4 * images // 5
  fits = max(devices, kept - kept % devices)
  return [f"--config.{name}.batch_size={fits}" for name in config.stages if config[name].batch_size > images]


def _is_text(value) -> bool:
  """Whether the command line takes `value` as it is, and not for a quoted text, a tuple or a dict."""
  if not isinstance(value, str):
    return False
  try:
    return not isinstance(load.literal(value), str | tuple | dict)
  except ValueError:
    return True


def here(advice: Advice, dataset: sources.Dataset) -> list[str]:
  """Sentences on the time and memory that the advised config takes on this machine."""
  config = load.parse([f"--config={advice.config}", *advice.options], {}, "")["config"]
  try:
    stages = stage.build(config, decode.opened(dataset)[0])
    lines = [_estimate(each) for each in stages]
  except DataError as error:  # weights that are not installed, above all
    return [f"not estimated: {error}"]
  except ConfigError as error:
    return [f"this config does not fit the data: {error}"]
  if jax.default_backend() != "cpu":
    lines.append(f"times are not estimated on a {jax.devices()[0].device_kind}; the first minute of the run tells them")
  return lines


def _estimate(each: stage.Stage) -> str:
  text = f"{each.name}: about {_amount(forecast.memory_of(each))} on the device"
  if jax.default_backend() == "cpu":
    seconds = forecast.seconds_of(each)
    shown = (f"{seconds / 3600:.1f} hours" if seconds >= 5400 else f"{seconds / 60:.0f} minutes" if seconds >= 90
             else "a minute or less")
    text += f", {shown} on {forecast.cores()} besides reading the images"
  return text + f"; {each.order.steps:,} steps of {each.order.batch_size} examples"


def _amount(size: float) -> str:
  return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def examine(config, given: Sequence[str] = (), complete: bool = False) -> tuple[str, list[str]]:
  """(what the data set of `config` is, as text; a line for each fault in it).

  Args:
    config: any config; of one for a folder or table, the data set alone is looked at.
    given: --config=FILE and --config.KEY=VALUE of the command line, if the first was there.
    complete: whether to decode more than `DECODED` images.

  Raises:
    DataError: there are no images to look at.
  """
  dataset = spec.dataset(config.dataset)[0]()
  total = sum(len(getattr(dataset, split)[1]) for split in dataset.splits)
  decoded = complete or total <= DECODED
  looked = verify.look(dataset, decoded)
  wrong, alike = twice(dataset, looked)
  advice = advise(config, dataset, given)
  readable = f"{len(looked.lines):,} of {total:,} images cannot be read" if looked.lines else (
      f"all {total:,} images {'can be decoded' if decoded else 'begin as images do; --decode decodes them'}")
  parts = {
      "data": [dataset.summary()], "": ["", *verify.table(dataset, looked.bad).splitlines(), ""],
      "balance": [balance(dataset)], "images": [sizes(dataset), readable, *alike], "test": tested(dataset),
      "config": [f"{advice.config}: {advice.reason}"], "here": here(advice, dataset),
      "train": [advice.command()]}
  text = "\n".join(line if not title else f"{f'{title}:' if not row else '':9}{line}"
                   for title, lines in parts.items() for row, line in enumerate(lines))
  return text, looked.lines + wrong


# -- the command ------------------------------------------------------------------------------------------------------


def _arguments(arguments: Sequence[str]) -> list[str]:
  """The command line with its first argument as the option that it stands for."""
  first, *rest = arguments or [""]
  if not first or first.startswith("-"):
    return list(arguments)
  return [f"--{'config' if re.search(r'[.]py(:|$)', first) else 'images'}={first}", *rest]


def _of_images(given: dict):
  """A config with the data set that a folder or table is."""
  if given["images"] is None:
    raise ConfigError("doctor: expected a folder of images, a table or a config; try `ltjax doctor DIR`")
  path = pathlib.Path(given["images"]).expanduser()
  if path.is_file() and path.suffix.lower() in (".csv", ".tsv", ".txt"):
    config = recipes.csv(augment=(), backbone={})
    config.dataset.root, config.dataset.train_csv = str(path.parent), str(path)
    return config
  if path.suffix == ".safetensors":
    return recipes.features(root=given["images"])
  return recipes.folder(root=given["images"], augment=(), backbone={})


def main(arguments: Sequence[str]) -> None:
  """The command line."""
  try:
    rest = _arguments(arguments)
    given = load.parse(rest, OPTIONS, __doc__, _of_images)
    words = sorted((text for text in rest if text.startswith("--config")), key=lambda text: text[8] != "=")
    if not given["shown"].isdecimal():
      raise ConfigError(f"--shown: expected a number, got {given['shown']!r}")
    text, wrong = examine(given["config"], words, given["decode"])
  except (LtjaxError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(load.EXIT_BAD_INPUT)
  print(names.printable(text, sys.stdout))
  verify.tell(wrong, int(given["shown"]))
  if wrong:
    sys.exit(verify.EXIT_WRONG_DATA)


if __name__ == "__main__":
  main(sys.argv[1:])
