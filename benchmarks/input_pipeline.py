"""Images/s of the tf.data path on real JPEGs, beside raw decoding and beside a PyTorch DataLoader with Pillow.

python benchmarks/input_pipeline.py --dir=DIR [--size=224] [--batch-size=64] [--batches=40] [--rounds=6] \
    [--torch-python=PYTHON]

DIR is searched for *.jpg; the two photographs of 640 x 427 that come with scikit-learn are a second set. All rows take
turns (A B C C B A ...); each turn times `--batches` batches after those that were read ahead, and the medians over the
rounds of the rates and of their ratios count. CPU seconds are those of the row's own processes, so they depend less on
what else the machine does.
PYTHON is an interpreter that has torch, pillow and numpy, where the one that runs this has not. Writes
benchmarks/results/input_pipeline_*.md.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
CORES = len(os.sched_getaffinity(0))
CLASSES, EXAMPLES = 8142, 437_513  # iNaturalist 2018
AHEAD = 3 + 2 * CORES  # batches that either side may have ready


def cpu_seconds() -> float:
  """Of this process; of children that have ended, too."""
  return sum(use.ru_utime + use.ru_stime for use in map(resource.getrusage, (resource.RUSAGE_SELF,
                                                                             resource.RUSAGE_CHILDREN)))


def timed(call, count: int) -> tuple[float, float]:
  """(wall, CPU) seconds of `count` calls."""
  wall, cpu = time.perf_counter(), cpu_seconds()
  for _ in range(count):
    call()
  return time.perf_counter() - wall, cpu_seconds() - cpu


# -- the PyTorch side, in an interpreter and a process of its own ------------------------------------------------------


def torch_worker(paths: list[str], size: int, batch_size: int, batches: int) -> None:
  """Answers each line of stdin with (wall, CPU) seconds of that many batches."""
  import torch
  from PIL import Image

  class Photographs(torch.utils.data.Dataset):
    def __len__(self):
      return 10**7

    def __getitem__(self, index):
      image = Image.open(paths[index * 2654435761 % len(paths)]).convert("RGB")
      width, height = image.size
      while True:
        area = width * height * torch.empty(1).uniform_(0.08, 1).item()
        ratio = torch.exp(torch.empty(1).uniform_(float(np.log(3 / 4)), float(np.log(4 / 3)))).item()
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
          break
      top, left = (int(torch.randint(0, free + 1, (1,))) for free in (height - h, width - w))
      image = image.crop((left, top, left + w, top + h)).resize((size, size), Image.BILINEAR)
      if torch.rand(1) < 0.5:
        image = image.transpose(Image.FLIP_LEFT_RIGHT)
      return torch.from_numpy(np.array(image))  # uint8, as ours: ToTensor and Normalize would only slow it down

  # Its workers draw ahead by `prefetch_factor` batches each.
  loader = iter(torch.utils.data.DataLoader(Photographs(), batch_size=batch_size, num_workers=CORES, prefetch_factor=2))
  print("ready", flush=True)
  for _ in sys.stdin:
    timed(lambda: next(loader), AHEAD)
    before = worker_cpu(loader)
    wall, cpu = timed(lambda: next(loader), batches)
    print(json.dumps((wall, cpu + worker_cpu(loader) - before)), flush=True)


def worker_cpu(loader) -> float:
  """CPU seconds of the worker processes of a DataLoader's iterator."""
  ticks = 0
  for worker in loader._workers:
    fields = pathlib.Path(f"/proc/{worker.pid}/stat").read_text().rsplit(")", 1)[1].split()
    ticks += int(fields[11]) + int(fields[12])
  return ticks / os.sysconf("SC_CLK_TCK")


class Torch:
  """A DataLoader that can be asked for its time; `None` from `start` where there is no torch."""

  def __init__(self, process):
    self._process = process

  @classmethod
  def start(cls, python: str, paths: list[str], args):
    """A loader in a process of its own."""
    if subprocess.run([python, "-c", "import torch, PIL"], capture_output=True).returncode:
      return None
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
      json.dump(dict(paths=paths, size=args.size, batch_size=args.batch_size, batches=args.batches), file)
    process = subprocess.Popen([python, __file__, "--worker", file.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True)
    assert process.stdout.readline() == "ready\n"
    pathlib.Path(file.name).unlink()
    return cls(process)

  def __call__(self) -> tuple[float, float]:
    """(wall, CPU) seconds of the next batches."""
    self._process.stdin.write("go\n")
    self._process.stdin.flush()
    return json.loads(self._process.stdout.readline())

  def stop(self) -> None:
    """Ends the process."""
    self._process.stdin.close()
    self._process.wait(60)


# -- our side ----------------------------------------------------------------------------------------------------------


class Spread:
  """`EXAMPLES` `Files` that stand for a large set: the real ones, over and over."""

  def __init__(self, paths: list[str]):
    self._paths = paths

  def __len__(self):
    return EXAMPLES

  def read(self, place: int) -> bytes:
    """The bytes of one of the real files."""
    with open(self.name(place), "rb") as file:
      return file.read()

  def name(self, place: int) -> str:
    """Its path."""
    return self._paths[int(place) * 2654435761 % len(self._paths)]


def long_tail() -> np.ndarray:
  """Labels of `EXAMPLES` images of `CLASSES` classes, from 2 to 1,000 a class, as many as iNaturalist 2018 has."""
  low, high = 1e-3, 20.0  # of the decay that gives this total
  for _ in range(60):
    decay = (low + high) / 2
    counts = np.clip(1000 * np.exp(-decay * np.linspace(0, 1, CLASSES)), 2, 1000).astype(int)
    low, high = (decay, high) if counts.sum() > EXAMPLES else (low, decay)
  counts[0] += EXAMPLES - counts.sum()
  return np.repeat(np.arange(CLASSES), counts)


def order(labels, sampler, batch_size: int):
  from ltjax import stage
  from ltjax.config import spec
  from ltjax.data.order import Order

  drawn = stage.sampler(spec.sampler(dict(name=sampler), "sampler"), "representation", np.bincount(labels))
  return Order(labels, CLASSES, batch_size=batch_size, epochs=90, seed=0, stage="representation", samplers=(drawn,))


def pipeline(paths: list[str], labels, sampler: str, args):
  from ltjax.data.pipeline import Pipeline, RandomCrops

  found = order(labels, sampler, args.batch_size)
  return Pipeline(Spread(paths), labels, found.batch, found.steps,
                  crop=RandomCrops(args.size, 0, "representation", args.batch_size))


class Ours:
  """The pipeline, timed as the DataLoader is."""

  def __init__(self, *given):
    self._pipeline, self._batches, self._step = pipeline(*given), given[-1].batches, 0

  def _next(self):
    self._pipeline.batch(self._step)
    self._step += 1

  def __call__(self) -> tuple[float, float]:
    """(wall, CPU) seconds of the next batches."""
    timed(self._next, AHEAD)
    return timed(self._next, self._batches)


def raw(paths: list[str], count: int):
  """A function that decodes `count` JPEGs whole on one thread: the ceiling of a core."""
  from ltjax.data.pipeline import tensorflow

  tf = tensorflow()
  data = [pathlib.Path(path).read_bytes() for path in paths[:: max(1, len(paths) // 200)]]
  images = iter(range(10**9))
  return lambda: timed(lambda: tf.io.decode_jpeg(data[next(images) % len(data)], channels=3), count)


def measure(paths: list[str], labels, args) -> dict[str, np.ndarray]:
  """{row: (images/s, CPU microseconds an image) of every round}."""
  count = args.batches * args.batch_size
  rows = {"TensorFlow decodes whole JPEGs, one thread": raw(paths, count),
          "ltjax, instance sampling": Ours(paths, labels, "instance", args),
          "ltjax, class-balanced sampling": Ours(paths, labels, "class_balanced", args),
          "PyTorch DataLoader, Pillow": Torch.start(args.torch_python, paths, args)}
  rows = {name: row for name, row in rows.items() if row}
  found = {name: [] for name in rows}
  for turn in range(args.rounds):
    for name, row in list(rows.items())[:: -1 if turn % 2 else 1]:
      time.sleep(2)  # until those who had their turn have read ahead what they may
      wall, cpu = row()
      found[name].append((count / wall, 1e6 * cpu / count))
  for row in rows.values():
    if isinstance(row, Torch):
      row.stop()
  return {name: np.array(pairs) for name, pairs in found.items()}


def resumes(paths, labels, args) -> list[tuple[str, int, float]]:
  """(sampler, step, seconds to its first batch) of pipelines that have read nothing."""
  found = []
  for sampler in ("instance", "class_balanced", "class_aware"):
    steps = order(labels, sampler, args.batch_size).steps
    for step in (0, steps // 2, steps - 1):
      made = pipeline(paths, labels, sampler, args)
      found.append((sampler, step, timed(lambda: made.batch(step), 1)[0]))  # noqa: B023
  return found


def order_memory(labels, batch_size: int) -> float:
  """MB that an order and what it has drawn for its epoch hold, besides the labels."""
  tracemalloc.start()
  found = order(labels, "instance", batch_size)
  found.batch(0)
  held, _ = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  return held / 1e6


def table(measured: dict) -> str:
  lines = ["| | images/s | CPU microseconds an image |", "| --- | ---: | ---: |"]
  lines += ["| {} | {:,.0f} | {:.0f} |".format(name, *np.median(rounds, axis=0)) for name, rounds in measured.items()]

  def ratio(one, other):
    """(of the images/s, of the images a CPU second)."""
    return np.median(one[:, 0] / other[:, 0]), np.median(other[:, 1] / one[:, 1])

  decoding, ours, balanced, *beside = measured.values()
  wall, cpu = ratio(ours, decoding)
  lines += ["", f"- of raw decoding on all {CORES} cores: {wall / CORES:.0%}, by CPU time {cpu:.0%} (goal 70 %)"]
  lines += ["- class-balanced over instance sampling: {:.2f}, by CPU time {:.2f} (goal 0.97)".format(
      *ratio(balanced, ours))]
  lines += ["- ltjax over PyTorch: {:.2f}, by CPU time {:.2f} (goal 1.3)".format(*ratio(ours, other))
            for other in beside] or ["- not beside PyTorch, which is not installed here"]
  return "\n".join(lines)


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--dir", required=True)
  for name, value in (("size", 224), ("batch-size", 64), ("batches", 40), ("rounds", 6)):
    parser.add_argument(f"--{name}", type=int, default=value)
  parser.add_argument("--torch-python", default=sys.executable)
  args = parser.parse_args()

  import sklearn

  from ltjax.report import page as report

  photographs = sorted(map(str, pathlib.Path(args.dir).rglob("*.jpg")))
  two = sorted(map(str, (pathlib.Path(sklearn.__file__).parent / "datasets" / "images").glob("*.jpg")))
  labels, load = long_tail(), os.getloadavg()[0]
  sets = {f"{len(paths):,} photographs of {name}, {statistics.mean(map(os.path.getsize, paths)) / 1e3:.0f} kB each":
          measure(paths, labels, args) for name, paths in
          ((pathlib.Path(args.dir).resolve().name, photographs), ("scikit-learn, 640 x 427", two))}
  resumed = resumes(photographs, labels, args)
  sections = "\n\n".join(f"## {name}\n\n{table(measured)}" for name, measured in sets.items())
  rows = "\n".join(f"| {sampler} | {step:,} | {seconds:.2f} |" for sampler, step, seconds in resumed)
  text = f"""# Input pipeline, random-resized crops of {args.size} pixels, batch {args.batch_size}

{report.hardware()["host"]}; medians of {args.rounds} rounds of {args.batches} batches, all rows in turns. The machine's
load when it began was {load:.1f}. {EXAMPLES:,} examples in {CLASSES:,} classes stand for iNaturalist 2018: the
photographs, over and over. ltjax flips on the device, PyTorch in its {CORES} workers; neither normalises.

{sections}

## First batch after a resume, and memory

Seconds from a new pipeline to its first batch, goal 1; TensorFlow is imported.

| sampler | step | seconds |
| --- | ---: | ---: |
{rows}

The order of {EXAMPLES:,} examples holds {order_memory(labels, args.batch_size):.1f} MB (goal 16).
"""
  path = ROOT / "benchmarks" / "results" / f"input_pipeline_{CORES}_cores.md"
  path.write_text(text)
  print(text)


if __name__ == "__main__":
  if sys.argv[1:2] == ["--worker"]:
    torch_worker(**json.loads(pathlib.Path(sys.argv[2]).read_text()))
  else:
    sys.path.insert(0, str(ROOT))
    main()
