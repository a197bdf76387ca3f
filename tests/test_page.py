"""The page in a browser, for a few and for thousands of classes; and in a parser, with names that want to be markup."""

import html.parser
import json

import numpy as np
import pytest

from ltjax import metrics
from ltjax.report import examples, figures, page, predictions, tables
from ltjax.report import html as pages
from ltjax.report.figures import confusion
from tests import browser
from tests.test_names import HOSTILE

needs_browser = pytest.mark.skipif(not browser.found(), reason="there is no Chromium; LTJAX_CHROMIUM may name one")
SIZES = (2, 40, 300, 8142)


def write(folder, number: int) -> list[dict]:
  """Writes a page of so many classes of which the first have hostile names; returns its rows."""
  rng = np.random.default_rng(number)
  counts = (2 + 300 * np.geomspace(1, 0.01, number)).astype(int)
  names = [*list(HOSTILE.values())[:number // 2], *(f"Genus{c % 97} species-{c}" for c in range(number))][:number]
  matrix = np.zeros((number, number), np.int32)
  matrix[np.arange(number), np.arange(number)] = rng.integers(0, 4, number)
  matrix[np.arange(number), rng.integers(0, number, number)] += 1
  test, rows = metrics.scores(matrix, counts), tables.of_classes(matrix, counts, names)
  stage = dict(test=test, per_class=metrics.measured(matrix), epochs=1, batch_size=1, steps=1, seconds=1.0,
               images_per_second=1.0)
  data = dict(name="generated", imbalance=100.0, train_images=int(counts.sum()), test_images=int(matrix.sum()),
              held_out_images=0, class_counts=counts.tolist(), class_names=names, selected_sha256="0" * 64,
              bad_images={HOSTILE["markup"]: "the file is empty"})
  results = dict(
      final=test, stages=dict(representation=stage), data=data, parameters=1, seed=0, precision="float32",
      groups={group: len(found) for group, found in page.longtail.shot_groups(counts).items()}, posthoc=[],
      metrics=page.measures(matrix, counts, names, None), counts=dict(skipped_steps=0), augmentation={},
      hardware=dict(device="a device", host="a host"), versions={}, commit="unknown",
      changes=[["seed", "</script>", "0"]],
      command="python -m ltjax.main --config=configs/gcl_digits.py '--config.seed=</script>'")
  drawn = figures.draw([figures.Picture(
      "confusion_matrix", "Confusion", "A figure.", lambda: confusion.confusion_matrix(matrix, counts, names))],
      names, folder)
  assert len(drawn) == 1
  text = pages.of_run(results, "{}", drawn, folder, rows, _examples(names))
  (folder / "index.html").write_text(text, encoding="utf-8")
  return rows


def _examples(names) -> examples.Examples:
  shown = [page.shown(name, "json") for name in names[:2]]
  image = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
  found = [examples.Example(image, title, *shown, 0.9, 1e-6, True) for title in shown]
  return examples.Examples([examples.Pair(*shown, 3, 0.5, *found)], found, found)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """{number of classes: (page, its rows)}."""
  found = {}
  for number in SIZES:
    folder = tmp_path_factory.mktemp(str(number))
    found[number] = folder / "index.html", write(folder, number)
  return found


class Reader(html.parser.HTMLParser):
  """Collects the tags of a page, and the data of its tables."""

  def __init__(self, text: str):
    super().__init__()
    self.tags, self.data, self._inside, self.headings = [], [], False, []
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    self._inside = tag == "script" and ("type", "application/json") in attrs

  def handle_data(self, data):
    if self._inside:
      self.data.append(data)
      self._inside = False


def test_hostile_names_are_text_in_the_page(written):
  for number in (40, 8142):
    path, rows = written[number]
    found = Reader(path.read_text(encoding="utf-8"))
    assert [tag for tag, _ in found.tags].count("script") == 2  # the table's data, and what sorts it
    for tag, attributes in found.tags:
      assert not any(name.startswith("on") for name in attributes)
      assert tag not in ("iframe", "object", "base", "form") and (tag != "img" or attributes["src"].startswith("data:"))
      assert tag != "img" or attributes["alt"].strip()
    (data,) = map(json.loads, found.data)
    assert [row[0] for row in data["rows"]] == [row["name"] for row in rows]
    addresses = [found.get(key, "") for _, found in found.tags for key in ("src", "href")]
    assert all(address.startswith(("data:", "#")) or not address for address in addresses)


def test_the_headings_of_a_page_are_in_order(written):
  levels = [int(tag[1]) for tag, _ in Reader(written[40][0].read_text()).tags if tag in ("h1", "h2", "h3")]
  assert levels[0] == 1 and levels.count(1) == 1
  assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))


def test_a_table_in_the_csv_file_has_every_class_and_no_formula(written, tmp_path):
  rows = written[8142][1]
  tables.write_classes(rows, tmp_path / "classes.csv")
  import pandas as pd

  found = pd.read_csv(tmp_path / "classes.csv", keep_default_na=False)
  assert found["label"].tolist() == list(range(8142))
  assert not found["name"].str.strip().str.match(r"[=+\-@]").any()


# -- the facts behind -----------------------------------------------------------------------------------------------


def test_rows_of_classes():
  matrix, counts = np.array([[3, 1, 0], [2, 2, 0], [0, 0, 0]]), np.array([500, 50, 5])
  first, second, third = tables.of_classes(matrix, counts, ("a", "b", "c"))
  assert (first["name"], first["accuracy"], first["taken_for"], first["group"]) == ("b", 0.5, "a", "medium")
  assert (second["name"], second["accuracy"], second["precision"], second["test"]) == ("a", 0.75, 0.6, 4)
  assert (third["name"], third["accuracy"], third["low"], third["precision"]) == ("c", None, None, None)


def test_pairs_are_the_most_frequent_ones_first():
  assert tables.confused_pairs(np.array([[3, 1, 4], [1, 2, 0], [9, 0, 0]])) == [
      (2, 0, 9), (0, 2, 4), (0, 1, 1), (1, 0, 1)]


def test_the_features_shown_are_of_large_and_of_small_classes():
  labels, counts = np.repeat(np.arange(300), 50), np.arange(300, 0, -1)
  found = predictions.shown_places(labels, counts)
  assert len(found) == 400 and (np.diff(found) > 0).all()
  assert {0, 299} <= set(labels[found]) and len(set(labels[found])) == 10


@pytest.mark.parametrize(("kind", "value", "text"), [
    ("percent", 0.12345, "12.3"), ("points", 0.12345, "+12.3"), ("points", -0.5, "-50.0"), ("count", 12345, "12,345"),
    ("number", 0.123456, "0.1235"), ("name", "a", "a"), ("percent", None, "–")])
def test_values_in_cells(kind, value, text):
  assert tables.Column("key", "label", kind).text(value) == text


# -- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium():
  pytest.importorskip("websocket", reason="websocket-client speaks to the browser; it is in the extra `test`")
  opened = browser.Browser()
  yield opened
  opened.close()


@needs_browser
@pytest.mark.parametrize("number", SIZES)
def test_the_page_in_a_browser(number, written, chromium):
  path, rows = written[number]
  for size in (browser.PHONE, browser.DESKTOP):
    for dark in (False, True):
      chromium.open(path, size, dark)
      assert chromium.errors == []
      assert chromium.run("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
      assert chromium.run("document.documentElement.scrollWidth") <= size[0], "the page scrolls sideways"
      background = chromium.run("getComputedStyle(document.body).backgroundColor")
      assert background == ("rgb(18, 20, 23)" if dark else "rgb(255, 255, 255)")
  names = "[...document.querySelectorAll('#classes-table tbody tr')].map(row => row.cells[0].textContent)"
  shown = chromium.run(names)
  assert shown == [row["name"] for row in rows[:100]]
  chromium.run("document.querySelectorAll('#classes-table th button')[2].click()")  # training images, largest first
  largest = sorted(rows, key=lambda row: -row["train"])
  assert chromium.run(names)[:2] == [row["name"] for row in largest[:2]]
  last = rows[-1]["name"]
  chromium.run(f"""(() => {{ const box = document.querySelector('input[type=search]'); box.value = {json.dumps(last)};
                   box.dispatchEvent(new Event('input')); }})()""")
  found = chromium.run(names)
  assert last in found and all(last.lower().strip() in name.lower() for name in found)
  chromium.run("""(() => { const box = document.querySelector('input[type=search]'); box.value = '';
                  box.dispatchEvent(new Event('input')); })()""")
  chromium.run("""(() => { const box = document.querySelector('select'); box.value = 'few';
                  box.dispatchEvent(new Event('change')); })()""")
  few = sum(row["group"] == "few" for row in rows)
  assert chromium.run("document.querySelector('output').textContent") == f"{min(few, 100):,} of {few:,} rows"
  chromium.run("document.getElementById('classes-table-all').click()")
  assert len(chromium.run(names)) == few and chromium.errors == []
