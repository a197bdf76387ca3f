"""The plan of a command line, made and shown by this process: `ltjax plan` runs it apart where it is for TPUs."""

import json
import pathlib
import signal
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


def show(arguments: list[str]) -> None:
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


def program() -> None:
  """`show` as a program."""
  try:
    show(sys.argv[1:])
  except LtjaxError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(load.EXIT_BAD_INPUT)
  except KeyboardInterrupt:
    sys.exit(128 + signal.SIGINT)
