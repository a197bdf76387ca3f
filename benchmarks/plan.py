"""What the image configs need on TPU slices, as the compiler says: python benchmarks/plan.py [NAME ...]

python benchmarks/plan.py gcl_inat ce_imagenet_lt:backbone=resnet10 --topologies v5e:4x4 v6e:16x16

Nothing is run on a device; times are estimates, the least that is possible. One compilation takes minutes. What is
planned already stands in benchmarks/results/plan.json and is not compiled again; --again does. All go into plan.md.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ltjax.commands.planning import page, topologies  # noqa: E402
from ltjax.errors import LtjaxError  # noqa: E402
from ltjax.workdir import log  # noqa: E402

NAMES = ("gcl_inat", "gcl_imagenet_lt", "gcl_places_lt", "ce_crt_inat", "kps_inat", "fbl_inat", "camc_inat",
         "afa_imagenet_lt", "gcl_cifar", "lift_imagenet_lt", "lift_places_lt", "lift_inat")
TOPOLOGIES = ("v5e:4x4", "v5e:16x16", "v4:4x4x8", "v6e:4x4")
PLANS, TABLE = ROOT / "benchmarks" / "results" / "plan.json", ROOT / "benchmarks" / "results" / "plan.md"
PRECISION = "bf16"
HEAD = f"""# What the compiler says of TPU slices

Compiled for the slice with libtpu, on a machine without a TPU: `python benchmarks/plan.py`. Memory, operations and
collectives are the compiler's, traffic is what the compiled program reads and writes in main memory, all of one device
and one training step. **Times are estimated** from them and the published peaks of the chip: the least that is
possible, not measured. Precision {PRECISION}, the published batch sizes.
"""


def write(plans: dict[str, dict]) -> None:
  """Saves the plans and their table."""
  log.write_durably(PLANS, json.dumps(plans, indent=1) + "\n")
  lines = page.table({f"`{key}`": found for key, found in plans.items() if "stages" in found})
  refused = [f"- `{key}`: {found['refused']}" for key, found in plans.items() if "refused" in found]
  TABLE.write_text("\n".join([HEAD, *lines, "", *(["Not possible:", "", *refused, ""] if refused else [])]))


def made(name: str, wanted: str) -> dict:
  """The plan of a config, or why there is none, from a process of its own: the compiler may crash."""
  file, colon, argument = name.partition(":")
  with tempfile.TemporaryDirectory() as folder:
    ended = subprocess.run(
        [sys.executable, "-m", "ltjax", "plan", f"{ROOT}/configs/{file}.py{colon}{argument}", f"--topology={wanted}",
         f"--config.precision={PRECISION}", f"--output={folder}"], check=False, text=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, env=os.environ | dict(PYTHONPATH=str(ROOT), JAX_PLATFORMS="cpu"))
    if (found := pathlib.Path(folder, "plan.json")).is_file():
      return json.loads(found.read_text())
  errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
  if not errors:
    sys.exit(ended.stderr)
  return dict(refused=errors[-1].removeprefix("error: "))


def main(arguments=None) -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("names", nargs="*", default=NAMES, help="configs, NAME or NAME:ARGUMENT")
  parser.add_argument("--topologies", nargs="+", default=TOPOLOGIES)
  parser.add_argument("--again", action="store_true")
  given = parser.parse_args(arguments)
  plans = json.loads(PLANS.read_text()) if PLANS.is_file() else {}
  for name in given.names:
    for wanted in given.topologies:
      topologies.is_tpu(wanted)  # a compiler that is missing here is no result
      if (key := f"{name}, {wanted}") not in plans or given.again:
        print(f"planning {key}", file=sys.stderr)
        plans[key] = made(name, wanted)
        write(plans)


if __name__ == "__main__":
  try:
    main()
  except LtjaxError as error:
    sys.exit(f"error: {error}")
