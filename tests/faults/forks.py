"""Forked processes, to be killed: a server that has imported all and started nothing forks each in 0.2 s."""

import multiprocessing

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.faults.kills", "tests.faults.damage", "tests.faults.saves"])
