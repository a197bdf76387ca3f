"""Injects random faults for a given time, and writes a table of the outcomes.

python -m tests.faults.soak --minutes 30 --output benchmarks/results/faults.md

Two lanes work side by side: short trials in this process and in forked ones, and complete runs of
`python -m ltjax.main`. Each lane next tries the kind that is furthest behind the plan. Exits with 1 if work was lost,
damage went unnoticed or a kind had fewer trials than planned.
"""

import argparse
import datetime
import functools
import pathlib
import shlex
import shutil
import sys
import tempfile
import threading
import time
import traceback

import jax
import numpy as np

from ltjax.report import page as report
from tests.faults import damage, kills, others, peers, runs, saves, stops
from tests.faults.tally import Tally, Trial

BATCH = 10  # flips that are one turn
# kind -> (name in the table, how many in 30 minutes at least, how many of them are one turn)
PLAN = dict(
    kill=("kill -9 during a save, at a random time (F1)", 150, 1),
    call=("kill -9 at a call of a save that changes files (F1)", 100, 1),
    flip=("a flipped bit in the newest checkpoint (F3)", 1000, BATCH),
    clean=("none: restored whole, for false alarms (F3)", 100, 1),
    cut=("a cut or removed file in the newest checkpoint (F2)", 125, 1),
    save=("a save that fails (F4)", 20, 1),
    stop=("SIGTERM, SIGINT, SIGUSR1 or SIGHUP to a run (F5)", 50, 1),
    peer=("a process lost of two (F20)", 20, 1),
    three=("a process lost of three (F20)", 2, 1),
    number=("a number that becomes infinite (F13)", 3, 1),
    lock=("a second run in the same folder (F19)", 3, 1),
)
LIMITS = dict(stop=stops.LIMIT, peer=peers.LIMIT, three=peers.LIMIT)  # seconds
LANES = (("kill", "call", "flip", "clean", "cut", "save"), ("stop", "peer", "three", "number", "lock"))


class Soak:
  """All trials of one soak, in `folder`."""

  def __init__(self, folder: pathlib.Path, seed: int, minutes: float):
    self.tallies, self._folder, self._seed = {kind: Tally() for kind in PLAN}, folder, seed
    self.orbax, self._shares = {}, dict.fromkeys(PLAN, 0)
    self._end, self._cache = time.monotonic() + 60 * minutes, folder / "cache"
    self.problems = []  # for the overhead around the trials

  def run(self) -> None:
    """Runs both lanes until the time is over, and says each minute how far they are."""
    lanes = [threading.Thread(target=self._lane, args=(makers,), daemon=True) for makers in (self._cheap, self._heavy)]
    for lane in lanes:
      lane.start()
    while any(lane.is_alive() for lane in lanes):
      minute = time.monotonic() + 60
      for lane in lanes:
        lane.join(max(0, minute - time.monotonic()))
      print(f"{max(0, self._end - time.monotonic()) / 60:.1f} min left: " + ", ".join(
          f"{kind} {tally.survived}/{tally.injected}" for kind, tally in self.tallies.items()), flush=True)

  def _lane(self, makers) -> None:
    try:
      trials, end = makers()
      rngs = {kind: np.random.default_rng([self._seed, list(PLAN).index(kind)]) for kind in trials}
      while time.monotonic() < self._end:
        kind = min(trials, key=lambda kind: self._shares[kind] / PLAN[kind][1])
        self._shares[kind] += PLAN[kind][2]
        for _ in range(PLAN[kind][2]):
          self._try(kind, functools.partial(trials[kind], rngs[kind]))
      end()
    except BaseException:
      self.problems.append(traceback.format_exc())

  def _try(self, kind: str, trial) -> None:
    try:
      found = trial()
    except BaseException as error:
      self.tallies[kind].fail(f"{type(error).__name__}: {error}")
      print(f"NOT SURVIVED: {kind}: {traceback.format_exc()}", file=sys.stderr, flush=True)
    else:
      if found is None:  # the run was finished before the fault came
        self._shares[kind] -= 1
      else:
        self.tallies[kind].add(found)

  def _cheap(self):
    folder = self._folder / "cheap"
    damaged = damage.prepare(folder / "damaged")
    changes, mount = kills.changes_of_a_save(folder / "kills"), saves.can_mount(folder / "mounted")
    faults = [fault for fault in saves.FAULTS if mount or fault not in saves.MOUNTED]
    flips = 0

    def flip(rng) -> Trial:
      nonlocal flips
      trial = damage.flip(damaged, rng)
      flips += 1
      if flips % BATCH == 0:
        self._orbax_alone(folder / "orbax", flips)
      return trial

    return dict(
        kill=lambda rng: kills.kill(folder / "kills", rng), flip=flip, clean=lambda rng: damage.clean(damaged),
        call=lambda rng: kills.kill(folder / "calls", rng, die_at=int(rng.integers(1, changes + 1))),
        cut=lambda rng: damage.cut(damaged, rng, damage.CUTS[rng.integers(len(damage.CUTS))]),
        save=lambda rng: saves.in_child(folder / "saves", int(rng.integers(2**31)), faults[rng.integers(len(faults))]),
    ), lambda: None

  def _orbax_alone(self, folder: pathlib.Path, seed: int) -> None:
    for outcome, count in damage.orbax_in_child(folder, self._seed * 10**6 + seed, BATCH).items():
      self.orbax[outcome] = self.orbax.get(outcome, 0) + count

  def _heavy(self):
    folder = self._folder / "heavy"
    stopped = stops.Stopped(folder / "stops", self._cache, runs.straight(self._cache))
    two, three = (peers.Peers(folder / f"peers {count}", self._cache, count) for count in (2, 3))
    two.straight()

    def end():
      stopped.finish()
      two.finish()
      self.tallies["stop"].notes["runs finished, all as the straight one"] = stopped.finished
      self.tallies["peer"].notes["runs finished, all as the straight one"] = two.finished

    return dict(
        stop=stopped.stop, peer=two.lose, three=three.lose,
        number=lambda rng: others.number(folder / "numbers", self._cache, rng),
        lock=lambda rng: others.second_run(folder / "locked", self._cache)), end

  def all_survived(self) -> bool:
    """Whether nothing was lost, nothing went unnoticed and nothing took too long."""
    return not self.problems and not self.too_slow() and not any(
        tally.problems or tally.lost or tally.survived != tally.injected for tally in self.tallies.values())

  def too_slow(self) -> list[str]:
    """The kinds of which one trial took longer than it may."""
    return [f"{kind}: {max(self.tallies[kind].seconds):.1f} s, at most {limit:.0f}" for kind, limit in LIMITS.items()
            if max(self.tallies[kind].seconds, default=0) > limit]

  def short_of(self, minutes: float) -> list[str]:
    """The kinds with fewer trials than planned for this number of minutes."""
    return [f"{kind}: {self.tallies[kind].injected}, planned {least}" for kind, (_, least, _) in PLAN.items()
            if self.tallies[kind].injected < least * min(1, minutes / 30)]


def table(soak: Soak, minutes: float, command: str, commit: str) -> str:
  """The page."""
  hardware, versions = report.hardware(), report.versions()
  lines = [
      "# Faults injected at random", "",
      f"`{command}`, {datetime.date.today().isoformat()}, commit {commit}, {minutes:.1f} minutes.", "",
      f"Hardware: {_words(hardware)}. Versions: {_words(versions)}.", "",
      "Survived means all that `tests/faults/` asserts: no committed step lost, values equal bit by bit, damage named,",
      "exit codes as told. Lost work is in steps that were committed (F1 to F4) or done (F5) and not there afterwards.",
      "Seconds are those to restore the newest whole checkpoint (F1, F2, F3), to restore and save again (F4),",
      "from the signal to the end of the program (F5), from the loss to the end of all other processes (F20, heartbeat",
      f"{peers.HEARTBEAT:.0f} s), to replay the step (F13), to be refused (F19).", "",
      "| fault | injected | survived | lost work (steps) | seconds to recover (median, worst) | of these |",
      "|---|---|---|---|---|---|"]
  lines += [soak.tallies[kind].row(name) for kind, (name, _, _) in PLAN.items()]
  flips = soak.tallies["flip"]
  lines += [
      "", "A bit flipped in the newest checkpoint, in a file chosen with the same chance as any other (by file) or in",
      "proportion to its size (by byte):", "",
      "| | flips | restored silently wrong | found | restored right |", "|---|---|---|---|---|",
      f"| ltjax | {flips.injected} | {len(flips.problems)} | {flips.survived}, step before restored | 0 |"]
  for by in ("byte", "file"):
    counts = {key: soak.orbax.get(f"{key}, by {by}", 0) for key in (
        "restored silently wrong", "error", "the process died", "restored right")}
    found = f"{counts['error']}" + (f", and {died} ended the process" if (died := counts["the process died"]) else "")
    lines.append(f"| Orbax alone, by {by} | {sum(counts.values())} | {counts['restored silently wrong']} | {found} | "
                 f"{counts['restored right']} |")
  problems = [f"- {kind}: {' '.join(problem.split())[:500]}" for kind, tally in soak.tallies.items()
              for problem in tally.problems] + [f"- {' '.join(problem.split())[:500]}" for problem in soak.problems]
  return "\n".join([*lines, "", *(["Not survived:", "", *problems] if problems else ["Nothing lost, nothing silent."])])


def _words(found: dict) -> str:
  return ", ".join(f"{key} {value}" for key, value in found.items())


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--minutes", type=float, required=True)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--output", type=pathlib.Path)
  args = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  began, command = time.monotonic(), shlex.join(["python", "-m", "tests.faults.soak", *sys.argv[1:]])
  folder, commit = pathlib.Path(tempfile.mkdtemp(prefix="soak")), report.commit()
  try:
    soak = Soak(folder, args.seed, args.minutes)
    soak.run()
  finally:
    shutil.rmtree(folder, ignore_errors=True)
  page = table(soak, (time.monotonic() - began) / 60, command, commit)
  print(f"\n{page}")
  if args.output:
    args.output.write_text(page + "\n")
  short = soak.short_of(args.minutes)
  print("\n".join(["", *(f"fewer than planned: {text}" for text in short), *(
      f"too slow: {text}" for text in soak.too_slow())]))
  sys.exit(0 if soak.all_survived() and not short else 1)


if __name__ == "__main__":
  main()
