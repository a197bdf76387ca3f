"""Unpacks a .tar, .tar.gz or .zip, refusing archives that would write outside the folder or fill the disk.

python -m ltjax unpack ARCHIVE DIR
"""

import argparse
import sys
from collections.abc import Sequence

from ltjax.data import archives
from ltjax.errors import LtjaxError


def main(arguments: Sequence[str]) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(prog="ltjax unpack", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("archive", metavar="ARCHIVE")
  parser.add_argument("folder", metavar="DIR")
  if len(arguments) != 2 and not {"-h", "--help"} & set(arguments):
    print(f"error: expected an archive and a folder: {archives.COMMAND}", file=sys.stderr)
    sys.exit(2)
  given = parser.parse_args(arguments)
  try:
    print(f"written: {archives.extract(given.archive, given.folder)}")
  except (LtjaxError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
  main(sys.argv[1:])
