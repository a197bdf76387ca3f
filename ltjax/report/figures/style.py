"""What all figures share: colours, how a class is named in one, and labels that never lie on each other."""

import pathlib
import warnings
from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from ltjax.report.names import shown, width

COLORS = dict(many="#2166ac", medium="#3f7d20", few="#b2182b")
EARLIER, LATER = "#7a7a7a", "#1f1f1f"  # a stage before the last one, and the last
_DPI = 120
_SETTINGS = {"font.size": 9, "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True,
             "svg.fonttype": "none", "svg.hashsalt": "ltjax",  # text stays text, and one figure is one file
             "axes.spines.top": False, "axes.spines.right": False}


def make(columns: int = 1, rows: int = 1, size: tuple[float, float] = (5.4, 3.7), **options) -> tuple[Figure, object]:
  """(figure, its axes) in the style of the report; `size` is in inches."""
  with rc_context(_SETTINGS):
    figure = Figure(figsize=size, layout="constrained", dpi=_DPI)
    FigureCanvasAgg(figure)  # becomes the figure's canvas, which knows how large a text is
    return figure, figure.subplots(rows, columns, **options)


def save(figure: Figure, path: pathlib.Path, *, vector: bool = False) -> None:
  """Writes `figure` as PNG; with `vector` also as SVG, beside it."""
  with rc_context(_SETTINGS), warnings.catch_warnings():
    # A figure that is too small for its words is drawn without that layout; how it looks is no error.
    warnings.filterwarnings("ignore", message="constrained_layout not applied")
    figure.savefig(path, dpi=_DPI)
    if vector:
      figure.savefig(path.with_suffix(".svg"), metadata=dict(Date=None))


def name(text: str, columns: int = 18) -> str:
  """A class name for a figure: in one line of at most `columns` columns, and never mathematics."""
  text = shown(text, "terminal").strip() or "(blank)"
  if width(text) > columns:
    cut = 0
    while width(text[:cut + 1]) < columns:
      cut += 1
    text = text[:cut].rstrip() + "…"
  # A label that starts with "_" is left out of a legend.
  return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def counts_axis(axis, counts: np.ndarray, label: str = "training images of the class") -> None:
  """A horizontal axis of class sizes: logarithmic with round numbers, or linear where all are alike."""
  axis.set_xlabel(label)
  if counts.max() >= 4 * counts.min():
    axis.set_xscale("log")
    decades = np.log10(counts.max() / counts.min())
    subs = (1, 2, 3, 5, 7) if decades < 1 else (1, 2, 5) if decades < 3 else (1,)
    axis.xaxis.set_major_locator(LogLocator(subs=subs))
    axis.xaxis.set_minor_formatter(NullFormatter())
  else:
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
  axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))


def percent_axis(axis, label: str, limits: tuple[float, float] = (-0.04, 1.04)) -> None:
  """A vertical axis of fractions, in per cent."""
  axis.set(ylabel=label, ylim=limits)
  axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def legend(figure: Figure, handles: Sequence, labels: Sequence[str]) -> None:
  """A legend above the axes, where it hides nothing, with as many columns as the figure is wide enough for."""
  columns = int(14 * figure.get_figwidth() / (7 + max(map(width, labels))))  # 14 characters an inch, 7 for a handle
  figure.legend(handles, labels, loc="outside upper center", ncols=max(1, min(columns, len(labels))), frameon=False,
                fontsize=8)


def annotate(figure: Figure, axis, points: np.ndarray, texts: Sequence[str], others: np.ndarray | None = None,
             limit: int = 40) -> int:
  """Labels as many of `points` as find room: inside the frame, and on no other label and no other point.

  Args:
    figure: of the axis; its layout is final after this.
    axis: where the points are drawn.
    points: [n 2], in the axis' units; the first ones are labelled first.
    texts: of the points.
    others: more points that no label may cover, [m 2].
    limit: the most labels.

  Returns:
    How many labels there are.
  """
  with rc_context(_SETTINGS):
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
  renderer, frame = figure.canvas.get_renderer(), axis.get_window_extent()
  pixels, taken, drawn = axis.transData.transform(points), [], 0
  obstacles = pixels if others is None else np.concatenate([pixels, axis.transData.transform(others)])
  for (x, y), place, text in zip(pixels, points, texts, strict=True):
    if drawn == limit:
      break
    label = axis.annotate(text, place, xytext=(0, 0), textcoords="offset points", fontsize=7.5, color=LATER)
    size = label.get_window_extent(renderer)
    for dx, dy in ((8, -size.height / 2), (-size.width - 8, -size.height / 2), (-size.width / 2, 8),
                   (-size.width / 2, -size.height - 8)):
      box = x + dx, y + dy, x + dx + size.width, y + dy + size.height
      inside = box[0] > frame.x0 and box[1] > frame.y0 and box[2] < frame.x1 and box[3] < frame.y1
      if inside and not _hits(box, taken) and not _covers(box, obstacles):
        label.set_position((dx * 72 / figure.dpi, dy * 72 / figure.dpi))
        label.set(ha="left", va="bottom")
        taken.append(box)
        drawn += 1
        break
    else:
      label.remove()
  return drawn


def _hits(box, others) -> bool:
  return any(box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3] for other in others)


def _covers(box, pixels: np.ndarray) -> bool:
  x, y = pixels.T
  return bool(((x > box[0] - 4) & (x < box[2] + 4) & (y > box[1] - 4) & (y < box[3] + 4)).any())
