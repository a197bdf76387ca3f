"""Figures of what the network sees: its features in two dimensions, where it looks, and how sure it is."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from ltjax.report import statistics
from ltjax.report.figures import style

_HUES = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22")
_MARKERS = "os^Dvp*Xhd"
_SMOOTH = 7  # from this many places a side on, a map is drawn smoothly


def features(embedded: np.ndarray, labels: np.ndarray, class_counts: np.ndarray,
             class_names: tuple[str, ...]) -> Figure:
  """Features of test images in two dimensions, a colour and a marker each class; `embedded` is [m 2]."""
  figure, axis = style.make(size=(5.8, 3.9))
  present = np.unique(labels)
  handles = {}
  for number, c in enumerate(present[np.argsort(-class_counts[present], kind="stable")]):
    look = dict(color=_HUES[number % len(_HUES)], marker=_MARKERS[number % len(_MARKERS)])
    axis.scatter(*embedded[labels == c].T, s=16, alpha=0.8, linewidths=0, **look)
    handles[f"{style.name(class_names[c], 24)} ({class_counts[c]:,})"] = Line2D([], [], linestyle="", **look)
  axis.set(xticks=[], yticks=[])
  axis.spines[:].set_visible(False)
  figure.legend(handles.values(), handles.keys(), loc="outside right upper", title="class (training images)",
                frameon=False, fontsize=8, title_fontsize=8)
  return figure


def embed(values: np.ndarray) -> np.ndarray:
  """t-SNE of features [m d] in two dimensions, [m 2]; the same for the same features."""
  from sklearn.manifold import TSNE
  from threadpoolctl import threadpool_limits

  perplexity = min(30.0, (len(values) - 1) / 3)
  with threadpool_limits(1):  # of so few points, threads that wait for each other take longer than one
    return TSNE(perplexity=perplexity, init="pca", random_state=0, max_iter=500).fit_transform(values)


def reliability(found: dict[str, statistics.Reliability]) -> Figure:
  """How often the model is right against how sure it is, of all test images and of each group's."""
  rows = 1 + (len(found) > 2)
  figure, axes = style.make(2, rows, (4.8, 0.4 + 2.2 * rows), squeeze=False, sharex=True, sharey=True)
  for axis in axes.flat[len(found):]:
    axis.set_visible(False)
  for axis, (group, bins) in zip(axes.flat, found.items(), strict=False):
    width = 1 / len(bins.counts)
    middles = (np.arange(len(bins.counts)) + 0.5) * width
    axis.bar(middles, np.nan_to_num(bins.accuracy), width, color=style.COLORS.get(group, "#5a5a5a"), alpha=0.75)
    axis.plot((0, 1), (0, 1), color=style.LATER, linestyle="--", linewidth=0.8)
    axis.set_title(f"{group}, ECE {100 * bins.error:.1f} %", fontsize=9)
    axis.set(xlim=(0, 1), ylim=(0, 1), xticks=(0, 0.5, 1))
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    axis.yaxis.set_major_formatter(PercentFormatter(1))
  figure.supylabel("accuracy", fontsize=9)
  figure.supxlabel("confidence", fontsize=9)
  return figure


def activation_maps(found, class_names: tuple[str, ...]) -> Figure:
  """A column an image: the image, then each kind of map of its class over it, from its smallest value to its largest.

  `found` is an `activation_maps.Activations`.
  """
  images = found.images.squeeze(-1) if found.images.shape[-1] == 1 else found.images
  height, width = found.images.shape[1:3]
  figure, rows = style.make(
      len(images), 1 + len(found.maps),
      (1.5 * len(images) + 0.3, 0.55 + (1.5 * height / width + 0.1) * (1 + len(found.maps))), squeeze=False)
  for column, (image, label, prediction) in enumerate(zip(images, found.labels, found.predictions, strict=True)):
    verdict = "right" if label == prediction else f"taken for {style.name(class_names[prediction], 12)}"
    rows[0, column].set_title(f"{style.name(class_names[label], 20)}\n{verdict}", fontsize=7.5)
    for row, (axis, heat) in enumerate(zip(rows[:, column], (None, *found.maps.values()), strict=True)):
      axis.imshow(image, cmap="gray", extent=(0, width, height, 0))
      if heat is not None:
        smooth = "bilinear" if min(heat.shape[1:]) >= _SMOOTH else "nearest"  # few places are shown as what they are
        axis.imshow(heat[column], cmap="inferno", alpha=0.55, extent=(0, width, height, 0), interpolation=smooth)
      axis.grid(visible=False)
      axis.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
      if column == 0:
        axis.set_ylabel(("image", *found.maps)[row], fontsize=7.5)
  return figure
