"""Trains and evaluates one config; the same as python -m ltjax.main."""

import sys
from collections.abc import Sequence

from ltjax import main as program
from ltjax.distributed import signals


def main(arguments: Sequence[str]) -> None:
  """The command line."""
  sys.exit(program.main(list(arguments), signals.listen()))


if __name__ == "__main__":
  main(sys.argv[1:])
