"""Runs post-hoc methods on a finished run, without training, and compares them with it.

python -m ltjax posthoc runs/mine                                all methods that fit its head
python -m ltjax posthoc runs/mine --method=logit_adjustment      one of them
python -m ltjax posthoc runs/mine --method="dict(name='tau_normalize', tau=(0.5, 0.7, 0.9))"    and its candidates

Candidates of a hyper-parameter are compared on the images that the run holds out (--config.dataset.holdout), never on
the test set; without such images each method has the constants of its paper. The results are printed and stored in
posthoc.json in the work folder. `ltjax predict` and `ltjax export` use them with --posthoc=METHOD.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

import jax
import numpy as np

from ltjax import bridge, posthoc, stage
from ltjax.commands import evaluate
from ltjax.commands.deploy import readouts
from ltjax.config import load, parse
from ltjax.errors import ConfigError, LtjaxError, nearest
from ltjax.report import page
from ltjax.report.names import printable
from ltjax.workdir import folder

# What is compared where there are held-out images; the last grid is Kang et al.'s.
CANDIDATES = dict(
    logit_adjustment=dict(tau=tuple(np.linspace(0, 2, 9).tolist())),
    nearest_class_mean=dict(metric=("cosine", "euclidean")),
    tau_normalize=dict(tau=tuple(np.linspace(0, 2, 21).round(1).tolist())))
CONSTANTS = dict(logit_adjustment={}, nearest_class_mean={}, tau_normalize=dict(tau=1.0))


def run(workdir: pathlib.Path, methods: Sequence[str] = ()) -> list[dict]:
  """Runs post-hoc methods on the last stage of a finished run; returns their entries, as results.json has them.

  Args:
    workdir: of the run; posthoc.json is written there.
    methods: names, or blocks as in config.posthoc; all that fit the head if empty.

  Raises:
    WorkdirError: not a finished run's folder, or its data are not those that it was trained on.
    ConfigError: an unknown method, a hyper-parameter out of range, or candidates without held-out images.
  """
  _, variables = bridge.finished(workdir)
  config = folder.load(workdir)
  dataset = evaluate.own_data(workdir)
  wanted = [_block(text, dataset.held_out is not None) for text in methods or CANDIDATES]
  last, specs = config.stages[-1], []
  for block in wanted:
    if block.get("stage", last) != last:
      raise ConfigError(f"--method: {block['name']}: only the last stage, {last!r}, makes predictions; leave out stage")
    config.posthoc = (block,)
    try:
      specs.append(parse(config).posthoc[0])
    except ConfigError as error:
      if methods:
        raise
      print(printable(f"left out: {error}", sys.stderr), file=sys.stderr)
  if not specs:
    raise ConfigError(f"{workdir}: no post-hoc method fits the head of the run")
  config.posthoc = ()
  made = stage.build(config, dataset)[-1]
  entries = posthoc.run(specs, made, variables)
  for entry in entries:
    if entry["name"] == "nearest_class_mean":  # its means take the training images, which a prediction has not
      features = made.extractor(variables)(dataset.train[0], "features")["features"]
      entry["means"] = np.asarray(posthoc.nearest_class_mean(
          features, dataset.train[1], len(made.class_counts), **entry["hyper_parameters"])).tolist()
  readouts.store(workdir, entries, jax.device_get(variables))
  return entries


def _block(text: str, held_out: bool) -> dict:
  """A method and its hyper-parameters."""
  try:
    found = load.literal(text)
  except ValueError:
    found = text
  if isinstance(found, str):
    if found not in CANDIDATES:
      raise ConfigError(f"--method: there is no post-hoc method {found!r}{nearest(found, CANDIDATES)}; there are "
                        f"{', '.join(CANDIDATES)}")
    return dict(name=found, **(CANDIDATES if held_out else CONSTANTS)[found])
  if not isinstance(found, dict):
    raise ConfigError(f"--method: expected a name or dict(name=..., hyper-parameters), got {text!r}")
  return found


def main(arguments: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(prog="ltjax posthoc", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("run", type=pathlib.Path, metavar="RUN", help="folder of a finished run")
  parser.add_argument("--method", action="append", default=[], help="a name, or dict(name=..., hyper-parameters); may "
                      "be given several times")
  given = parser.parse_args(arguments)
  workdir = given.run.expanduser()
  try:
    entries = run(workdir, given.method)
    found = evaluate.results(workdir)
  except (LtjaxError, OSError) as error:
    print(printable(f"error: {error}", sys.stderr), file=sys.stderr)
    sys.exit(load.EXIT_BAD_INPUT)
  table = page.table(found | dict(posthoc=entries, baselines=[]))
  print(printable(f"{table}\n\nwritten: {workdir / readouts.METHODS}", sys.stdout))


if __name__ == "__main__":
  main(sys.argv[1:])
