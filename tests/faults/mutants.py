"""Damaged images through the decoder: each is an image or one named error, in bounded time and memory.

python -m tests.faults.mutants --files 1000 [--out benchmarks/results/mutants.md]

makes that many files from complete images of every kind, decodes them in another process, as the pipeline does, and
writes a table.
"""

import argparse
import collections
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

from tests import photos

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 20  # that one image may take
MEGABYTES = 1024  # that the decoder may take in addition to its memory for undamaged images
FORMATS = dict(JPEG=["jpeg", "turned"], PNG=["png"], WebP=["webp"], GIF=["gif"], BMP=["bmp"],
               TIFF=["tiff"])
MUTATIONS = ("bits", "bytes", "cut off", "part removed", "part doubled", "zeros", "mixed", "large numbers")


def kinds() -> dict[str, dict[str, bytes]]:
  """{format: {kind: image}} of images without damage."""
  zoo, found = photos.zoo(), {}
  for name, words in FORMATS.items():
    found[name] = {kind: data for kind, data in zoo.items() if any(word in kind.split() for word in words) and (
        name == "TIFF") == ("tiff" in kind)}
  return found


def mutant(data: bytes, other: bytes, mutation: str, generator: np.random.Generator) -> bytes:
  """`data`, damaged."""
  changed, length = bytearray(data), len(data)
  start, end = sorted(generator.integers(0, length, 2).tolist())
  if mutation == "bits":
    for at in generator.integers(0, length, generator.integers(1, 9)).tolist():
      changed[at] ^= 1 << int(generator.integers(8))
  elif mutation == "bytes":
    for at in generator.integers(0, min(length, 400), generator.integers(1, 9)).tolist():
      changed[at] = int(generator.integers(256))
  elif mutation == "cut off":
    return data[:start]
  elif mutation == "part removed":
    return data[:start] + data[end:]
  elif mutation == "part doubled":
    return data[:end] + data[start:]
  elif mutation == "zeros":
    changed[start:end] = bytes(end - start)
  elif mutation == "mixed":
    return data[:start] + other[min(start, len(other)):]
  elif mutation == "large numbers":
    at = int(generator.integers(0, min(length, 200)))
    changed[at : at + 4] = b"\xff\xff\xff\x7f"[: length - at]
  return bytes(changed)


def write(folder: pathlib.Path, count: int, seed: int = 0) -> list[tuple[str, str, str]]:
  """(file name, format, mutation) of `count` damaged files, as many of each format as of any other."""
  generator, found, whole = np.random.default_rng(seed), [], kinds()
  everything = [data for images in whole.values() for data in images.values()]
  for number in range(count):
    name = [*whole][number % len(whole)]
    images = [*whole[name].values()]
    mutation = MUTATIONS[number // len(whole) % len(MUTATIONS)]
    data = mutant(images[generator.integers(len(images))], everything[generator.integers(len(everything))], mutation,
                  generator)
    (folder / f"{number:06d}.jpg").write_bytes(data)
    found.append((f"{number:06d}.jpg", name, mutation))
  return found


# -- in the other process ---------------------------------------------------------------------------------------------


def child(folder: str, first: int, count: int) -> None:
  """Decodes the files from number `first` on, and prints a line of JSON before and after each."""
  import signal

  from ltjax.data import decode, pipeline
  from ltjax.data.files import Paths

  tf = pipeline.tensorflow()
  whole = photos.zoo()
  ready = photos.write(pathlib.Path(folder) / "whole", {str(k): data for k, data in enumerate(whole.values())})
  for place in range(len(ready)):
    _one(tf, decode, ready, place)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  files = Paths(folder, [f"{number:06d}.jpg" for number in range(first, count)])
  for place in range(len(files)):
    print(json.dumps(dict(begin=first + place)), flush=True)
    signal.alarm(SECONDS)  # an uncaught exception ends the process
    began = time.perf_counter()
    outcome, reason = _one(tf, decode, files, place)
    signal.alarm(0)
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    print(json.dumps(dict(number=first + place, outcome=outcome, reason=reason, memory=max(memory, 0),
                          seconds=time.perf_counter() - began)), flush=True)


def _one(tf, decode, files, place: int) -> tuple[str, str]:
  """Decodes an image as `Pipeline` does: a plain JPEG with TensorFlow, anything that this refuses with Pillow."""
  images = decode.Images(files, log := decode.BadImages("substitute", limit=1))
  try:
    image = images.open(place)
    if image.jpeg:
      try:
        pixels = tf.io.decode_jpeg(image.jpeg, channels=3, dct_method="INTEGER_ACCURATE").numpy()
      except tf.errors.OpError:
        images.by_pillow.add(place)
        pixels = images.open(place).pixels
    else:
      pixels = image.pixels
  except Exception as error:
    return "another error", f"{type(error).__name__}: {error}"
  if log.found:
    (reason,) = log.found.values()
    return ("named error" if reason and len(reason.splitlines()) == 1 else "error without a name"), reason
  is_image = pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8
  return ("image" if is_image else "no image"), str(pixels.shape)


# -- the table --------------------------------------------------------------------------------------------------------


def run(count: int, seed: int = 0) -> list[dict]:
  """The outcomes of `count` files: {"format", "mutation", "outcome", "reason", "seconds", "memory"} of each."""
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    made, found = write(folder, count, seed), []
    while len(found) < count:
      process = subprocess.run(
          [sys.executable, "-W", "ignore", "-m", "tests.faults.mutants", "--child", name, str(len(found)), str(count)],
          cwd=ROOT, env=os.environ | dict(JAX_PLATFORMS="cpu", CUDA_VISIBLE_DEVICES=""), capture_output=True, text=True,
          timeout=SECONDS * count)
      lines = [json.loads(line) for line in process.stdout.splitlines() if line.startswith("{")]
      found += [line for line in lines if "outcome" in line]
      if len(found) < count:
        if not lines:
          raise RuntimeError(process.stderr[-3000:])
        hangs = process.returncode == -14  # SIGALRM
        found.append(dict(number=len(found), outcome="hang" if hangs else "crash", memory=0, seconds=SECONDS * hangs,
                          reason=f"exit code {process.returncode}: {process.stderr[-300:]}"))
    return [dict(outcome, format=kind, mutation=mutation) for outcome, (_, kind, mutation) in zip(
        found, made, strict=True)]


def bad(outcomes: list[dict]) -> list[dict]:
  """Those that are neither an image nor one named error, or that took too much."""
  return [outcome for outcome in outcomes if outcome["outcome"] not in ("image", "named error")
          or outcome["memory"] > MEGABYTES or outcome["seconds"] > SECONDS]


def table(outcomes: list[dict], seed: int) -> str:
  """Markdown."""
  lines = [
      "# Damaged images", "",
      f"`python -m tests.faults.mutants --files {len(outcomes)} --seed {seed}`: complete images of every kind, damaged",
      "at random, through the decoder of the pipeline: TensorFlow for plain JPEGs, Pillow for all else. Each must be",
      "an image or one named error.", "",
      "| format | files | an image | one named error | crash, hang or another error | slowest, ms |",
      "| --- | ---: | ---: | ---: | ---: | ---: |"]
  for name in FORMATS:
    own = [outcome for outcome in outcomes if outcome["format"] == name]
    count = collections.Counter(outcome["outcome"] for outcome in own)
    images, errors = count["image"], count["named error"]
    slowest = max((outcome["seconds"] for outcome in own), default=0)
    lines.append(f"| {name} | {len(own)} | {images} | {errors} | {len(own) - images - errors} | {1000 * slowest:.0f} |")
  memory = max(outcome["memory"] for outcome in outcomes)
  lines += ["", f"The decoder took at most {memory} MB more than for undamaged images; the test allows {MEGABYTES} MB.",
            "A damaged file that still decodes counts as an image: nothing in a JPEG says that its pixels are wrong.",
            ""]
  return "\n".join(lines)


def main() -> None:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--files", type=int, default=1000)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--out", type=pathlib.Path, default=ROOT / "benchmarks/results/mutants.md")
  parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
  given = parser.parse_args()
  if given.child:
    child(given.child[0], *map(int, given.child[1:]))
    return
  outcomes = run(given.files, given.seed)
  given.out.write_text(table(outcomes, given.seed))
  print(given.out.read_text())
  if wrong := bad(outcomes):
    sys.exit("\n".join(map(str, wrong[:20])))


if __name__ == "__main__":
  main()
