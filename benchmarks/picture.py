"""Draws docs/report.png, the README's picture of a report: python benchmarks/picture.py [--workdir=runs/digits]

It needs Chromium, and the finished run of the README's main job; without one it trains it first.
"""

import argparse
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import ltjax  # noqa: E402
from tests import browser  # noqa: E402

SIZE = 1100, 1180  # of the picture


def draw(page: pathlib.Path, path: pathlib.Path) -> None:
  """The beginning of a page as a picture, in as few bytes as its colours allow."""
  from PIL import Image

  opened = browser.Browser()
  try:
    opened.open(page, SIZE)
    opened.screenshot(path, height=SIZE[1])
  finally:
    opened.close()
  with Image.open(path) as image:
    image.convert("RGB").save(path, optimize=True)


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", type=pathlib.Path, default=ROOT / "runs" / "digits")
  given = parser.parse_args()
  ltjax.run(str(ROOT / "configs" / "gcl_digits.py"), given.workdir)
  draw(given.workdir / "report" / "index.html", ROOT / "docs" / "report.png")
