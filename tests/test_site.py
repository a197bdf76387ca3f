"""The documentation builds without a warning, has a page for each command and method, and needs no network."""

import html
import html.parser
import os
import subprocess
import sys

import pytest

from ltjax import __main__ as program
from tests.test_imports import ROOT

pytest.importorskip("mkdocs", reason="mkdocs is not installed; `pip install -e .[docs]` builds the site")
pytest.importorskip("mkdocstrings_handlers.python", reason="mkdocstrings is not installed; it is in the extra `docs`")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
  """The built site. Its build trains twice on digits and once on photographs, and takes a few minutes."""
  folder = tmp_path_factory.mktemp("site")
  command = [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={folder}"]
  done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=3600,
                        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
  assert done.returncode == 0, done.stderr[-3000:]
  return folder


class Assets(html.parser.HTMLParser):
  """Addresses of what a page loads by itself."""

  def __init__(self, text: str):
    super().__init__()
    self.found = []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    found = dict(attrs)
    if tag in ("script", "img", "iframe", "source") and "src" in found:
      self.found.append(found["src"])
    elif tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload", "preconnect"):
      self.found.append(found["href"])


def test_every_command_has_a_page_with_what_it_prints(site):
  for name in program.names():
    text = (site / "commands" / f"{name}.html").read_text(encoding="utf-8")
    assert f"ltjax {name}" in text
    assert "What it prints" in text and f"$ ltjax {name}" in html.unescape(text)
  trained = (site / "commands" / "train.html").read_text(encoding="utf-8")
  assert "test accuracy, %" in trained and "report.html" in trained
  assert "Calibration" in (site / "commands" / "report.html").read_text(encoding="utf-8")


def test_every_config_has_a_page_that_the_methods_lead_to(site):
  methods = (site / "methods.html").read_text(encoding="utf-8")
  for path in (ROOT / "configs").glob("*.py"):
    assert f'href="configs/{path.stem}.html"' in methods
    assert "each set as in --config.seed=1" in (site / "configs" / f"{path.stem}.html").read_text(encoding="utf-8")


def test_no_page_loads_anything_from_a_network(site):
  pages = sorted(site.rglob("*.html"))
  assert len(pages) > 100
  for path in pages:
    loaded = Assets(path.read_text(encoding="utf-8")).found
    assert not [address for address in loaded if address.startswith(("http:", "https:", "//"))], path
    assert str(ROOT) not in path.read_text(encoding="utf-8"), path
  for path in site.rglob("*.css"):
    assert "fonts.googleapis" not in path.read_text(encoding="utf-8")


def test_references_and_equations_of_docstrings_are_readable(site):
  text = (site / "api" / "losses.html").read_text(encoding="utf-8")
  assert '<a href="https://arxiv.org/abs/' in text and "&gt;</code>_" not in text
  assert "logit_ij = s (cos_ij - m_j [j = y_i])" in html.unescape(text)
