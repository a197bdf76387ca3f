"""Says whether a config fits on a TPU slice or other devices, how long it would take, and what for; runs nothing there.

python -m ltjax plan configs/gcl_inat.py --topology=v5e:4x4

The train and evaluation steps are compiled for the topology from shapes alone. Memory, operations, traffic and
collectives are the compiler's; times are estimated from them and the published peaks of the chip, and are the least
that is possible. TPUs need the compiler libtpu, which the extra `plan` installs on any x86 machine.
"""

import json
import pathlib
import signal
import subprocess
import sys

import jax

from ltjax.commands.planning import host, page, plan, topologies
from ltjax.config import load, parse
from ltjax.errors import ConfigError, LtjaxError, writing

OPTIONS = dict(
    topology=load.Option("v5e:4x4, v6e:16x16, v4:4x4x8, ...; cpu:8; here (the devices that are present)."),
    stage=load.Option("Only this stage."),
    output=load.Option("A folder for plan.json and plan.md."),
    compare=load.Option("Also plan with the other precision, bn_groups, remat and accumulate.", False),
    **{"fit-batch": load.Option("Search the largest batch that fits; several compilations.", False)})


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def make(given: dict) -> dict:
  """The plan that the command line asks for.

  Raises:
    LtjaxError: anything in it that cannot be.
  """
  if given["topology"] is None:
    raise ConfigError("--topology is missing; try --topology=v5e:4x4")
  if given["topology"] != "here":
    jax.config.update("jax_platforms", "cpu")  # a TPU that is here stays free, and one that is not is not looked for
  topology = topologies.find(given["topology"])
  names = (given["stage"],) if given["stage"] else ()
  found = plan.make(given["config"], topology, names, say=_say)
  for name, stage in found["stages"].items():
    if stage["estimated"] and found["data"]["streamed"] and topology.platform != "cpu":
      rate, cores = host.measured(parse(given["config"]).stages[0].size or 32)
      stage["host"] = dict(needed=stage["estimated"]["images"] / topology.hosts, measured=rate, cores=cores)
    if given["fit-batch"]:
      stage["largest_batch"] = plan.fit_batch(given["config"], topology, name, say=_say)
  if given["compare"]:
    found["compare"] = {"as given": dict(found)} | {
        label: plan.make(config, topology, names, say=lambda text, label=label: _say(f"{label}: {text}"))
        for label, config in plan.variants(given["config"], topology).items()}
  return found


def main(arguments=None) -> None:
  """The command line. What is for TPUs runs in a process of its own, because their compiler may crash."""
  arguments = list(sys.argv[1:] if arguments is None else arguments)
  if arguments and not arguments[0].startswith("-"):
    arguments[0] = f"--config={arguments[0]}"
  try:
    wanted = load.parse(arguments, OPTIONS, __doc__)["topology"]
    if not topologies.is_tpu(wanted):
      shown(arguments)
      return
    code = subprocess.run([sys.executable, "-m", "ltjax.commands.plan", *arguments], check=False).returncode
    if code < 0:
      print(file=sys.stderr)  # its last line has no end
      raise ConfigError(f"--topology: the compiler for TPUs has crashed ({signal.Signals(-code).name}, with its own "
                        f"words on stderr) while it compiled for {wanted}; it may do so with very few images a chip: "
                        "try a larger batch_size or another --topology")
  except LtjaxError as error:
    print(f"error: {error}", file=sys.stderr)
    code = load.EXIT_BAD_INPUT
  except KeyboardInterrupt:
    code = 128 + signal.SIGINT
  if code:
    sys.exit(code)


def shown(arguments: list[str]) -> None:
  """Makes the plan in this process, prints it and writes its files."""
  given = load.parse(arguments, OPTIONS, __doc__)
  found = make(given)
  text = page.text(found)
  print(text)
  if given["output"]:
    folder = pathlib.Path(given["output"]).expanduser()
    with writing(folder):
      folder.mkdir(parents=True, exist_ok=True)
      (folder / "plan.json").write_text(json.dumps(found, indent=1) + "\n")
      (folder / "plan.md").write_text(f"# Plan\n\n```\n{text}\n```\n")
    print(f"written: {folder / 'plan.json'}, {folder / 'plan.md'}")
  if sentence := page.too_large(found):
    raise ConfigError(sentence)


if __name__ == "__main__":
  try:
    shown(sys.argv[1:])
  except LtjaxError as problem:
    print(f"error: {problem}", file=sys.stderr)
    sys.exit(load.EXIT_BAD_INPUT)
  except KeyboardInterrupt:
    sys.exit(128 + signal.SIGINT)
