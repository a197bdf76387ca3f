"""What moves the bytes of a training step on a TPU slice, and what a change has saved, as the compiler says.

python benchmarks/traffic.py NAME --label=LABEL [--topology=v5e:4x4] [--stage=representation] [--count=1] [KEY=VALUE]

The step is compiled for the slice with libtpu; nothing is run. What is counted stands in results/traffic.json under the
label, "before" or "after", so that a commit can be compared with one before it, and all goes into results/traffic.md.
With --count=50, as accelerators train on the resident path, the body of the loop counts once: the numbers are those of
one step.
"""

import argparse
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402

from ltjax.commands.planning import nominal, plan, programs, topologies  # noqa: E402
from ltjax.config import load, parse  # noqa: E402
from ltjax.errors import LtjaxError  # noqa: E402
from ltjax.report import page as report  # noqa: E402
from ltjax.workdir import log  # noqa: E402

RESULTS, TABLE = (ROOT / "benchmarks" / "results" / f"traffic.{kind}" for kind in ("json", "md"))
LARGEST = 12
HEAD = """# What moves the bytes of a training step

Compiled for TPU slices with libtpu, on a machine without a TPU, in bf16: `python benchmarks/traffic.py`. All numbers
are of one device and one step, in MB. *Main memory* is what instructions read and write there, *accessed* is the
compiler's own sum, which also counts the memory on the chip. *Gathered* and *reduced* go over the links.
"""


def compiled(name: str, topology: str, stage: str, count: int, values: list[str]) -> dict:
  """What the step of a config moves."""
  file, _, argument = name.partition(":")
  config = load.read(f"{ROOT}/configs/{file}.py{f':{argument}' if argument else ''}")
  for value in ["precision=bf16", *values]:
    load.override(config, *value.split("=", 1))
  spec, found = parse(config), topologies.find(topology)
  (made,) = plan.chosen(spec, nominal.dataset(spec)[0], found, (stage,))
  program = programs.train(made, found, count)
  if program.excess:
    sys.exit(f"error: the step does not fit: {program.excess}")
  return dict(
      accessed=program.accessed, traffic=program.traffic, flops=program.flops,
      temporaries=program.memory["temporaries"], collectives=[each._asdict() for each in program.collectives],
      sources=[source._asdict() for source in program.sources[:LARGEST]], seconds=program.seconds)


def table(results: dict[str, dict]) -> list[str]:
  """Markdown of all results."""
  lines = ["| program | | main memory | accessed | gathered | reduced | temporaries | commit |",
           f"| --- | --- |{' ---: |' * 5} --- |"]
  for name, labels in results.items():
    for label, found in labels.items():
      links = [_links(found, kind) for kind in ("all-gather", "all-reduce")]
      lines.append(f"| `{name}` | {label} | {_mb(found['traffic'])} | {_mb(found['accessed'])} | {' | '.join(links)} | "
                   f"{_mb(found['temporaries'])} | {found['commit'][:10]} |")
  for name, labels in results.items():
    label, found = list(labels.items())[-1]
    lines += ["", f"`{name}`, {label}: the places that move most.", "", "| place | instructions | read | written |",
              "| --- | --- | ---: | ---: |"]
    lines += [f"| {each['place']} | {each['count']}: {', '.join(each['operations'][:4])} | {_mb(each['read'])} | "
              f"{_mb(each['written'])} |" for each in found["sources"]]
  return lines


def _links(found: dict, kind: str) -> str:
  """Bytes and types of the collectives of a kind."""
  return ", ".join(f"{_mb(each['bytes'])} ({each['count']}: {', '.join(each['dtypes'])})"
                   for each in found["collectives"] if each["kind"] == kind) or "0"


def _mb(size: float) -> str:
  return f"{size / 1e6:,.1f}"


def main(arguments=None) -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("name", help="a config, NAME or NAME:ARGUMENT")
  parser.add_argument("--label", required=True)
  parser.add_argument("--topology", default="v5e:4x4")
  parser.add_argument("--stage", default="representation")
  parser.add_argument("--count", type=int, default=1)
  parser.add_argument("values", nargs="*", help="KEY=VALUE of the config")
  given = parser.parse_intermixed_args(arguments)
  jax.config.update("jax_platforms", "cpu")
  key = ", ".join([given.name, given.stage, given.topology, *([f"{given.count} steps"] if given.count > 1 else []),
                   *given.values])
  found = dict(commit=report.commit()) | compiled(given.name, given.topology, given.stage, given.count, given.values)
  results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
  results.setdefault(key, {})[given.label] = found
  log.write_durably(RESULTS, json.dumps(results, indent=1) + "\n")
  TABLE.write_text("\n".join([HEAD, *table(results), ""]))


if __name__ == "__main__":
  try:
    main()
  except LtjaxError as error:
    sys.exit(f"error: {error}")
