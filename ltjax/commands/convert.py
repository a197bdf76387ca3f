"""Copies a data set that TFDS has prepared as TFRecord to ArrayRecord, which can be read in any order.

python -m ltjax convert --dataset=imagenet2012 --out=DIR
"""

import argparse
import sys
from collections.abc import Sequence

from ltjax.data import records
from ltjax.errors import LtjaxError


def main(arguments: Sequence[str]) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(prog="ltjax convert", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--dataset", required=True, help="name in TFDS, such as imagenet2012")
  parser.add_argument("--data_dir", default="", help="TFDS's folder; by default, TFDS's own choice")
  parser.add_argument("--out", required=True, help="folder to write to")
  given = parser.parse_args(arguments)
  try:
    print(f"written: {records.convert(given.dataset, given.data_dir, given.out)}; use it with "
          f"--config.dataset.tfds_dir={given.out}")
  except (LtjaxError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
  main(sys.argv[1:])
